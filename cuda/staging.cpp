#include "cuda/staging.hpp"

#include <algorithm>
#include <cstring>

namespace ncollapse::cuda {

void Staging::grow(Slot& slot, Index bytes) {
  if (slot.memory.size() >= bytes) return;
  slot.memory = {};  // before the new one, or both would be held
  slot.memory = Buffer<unsigned char>(queue_, bytes);
  slot.used.record(queue_.stream());  // allocations are in the order of the queue's stream
}

void Staging::reserve(Index bytes) {
  for (Slot& slot : slots_) grow(slot, bytes);
}

unsigned char* Staging::begin(Index bytes) {
  slots_[slot_].used.record(queue_.stream());
  slot_ = 1 - slot_;
  Slot& slot = slots_[slot_];
  grow(slot, bytes);
  slot.used.hold(copies_.get());
  return slot.memory.get();
}

void Staging::copy(unsigned char* to, const void* host, Index width, Index pitch, Index rows) {
  if (width == 0 || rows == 0) return;
  if (width == pitch) {  // one long row
    width *= rows;
    rows = 1;
  }
  const auto size = [](Index bytes) { return static_cast<std::size_t>(bytes); };
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, host));
  if (attributes.type == cudaMemoryTypeHost) {
    if (rows == 1)
      check(cudaMemcpyAsync(to, host, size(width), cudaMemcpyHostToDevice, copies_.get()));
    else
      check(cudaMemcpy2DAsync(to, size(width), host, size(pitch), size(width), size(rows), cudaMemcpyHostToDevice,
                              copies_.get()));
    copied_.record(copies_.get());
    return copied_.wait();
  }
  const auto* from = static_cast<const unsigned char*>(host);
  for (Index row = 0, col = 0; row < rows;) {
    piece_ = 1 - piece_;
    Piece& piece = pieces_[piece_];
    piece.copied.wait();
    Index filled = 0;
    while (row < rows && filled < piece.size) {
      const Index bytes = std::min(width - col, piece.size - filled);
      std::memcpy(piece.memory.get() + filled, from + row * pitch + col, size(bytes));
      filled += bytes;
      col += bytes;
      if (col < width) continue;
      col = 0;
      ++row;
    }
    check(cudaMemcpyAsync(to, piece.memory.get(), size(filled), cudaMemcpyHostToDevice, copies_.get()));
    piece.copied.record(copies_.get());
    to += filled;
  }
}

void Staging::end() {
  copied_.record(copies_.get());
  copied_.hold(queue_.stream());
}

}  // namespace ncollapse::cuda
