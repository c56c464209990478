#include "cuda/staging.hpp"

#include <algorithm>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace ncollapse::cuda {
namespace {

constexpr Index kShare = Index{256} << 10;  ///< what a thread packs at a time
constexpr int kMostThreads = 8;

/// Bytes first .. first + count - 1 of the rows as if they were closely packed.
void pack(unsigned char* to, const unsigned char* from, Index width, Index pitch, Index first, Index count) {
  for (Index row = first / width, col = first % width; count > 0; ++row, col = 0) {
    const Index bytes = std::min(width - col, count);
    std::memcpy(to, from + row * pitch + col, static_cast<std::size_t>(bytes));
    to += bytes;
    count -= bytes;
  }
}

int threads_for(int wanted) {
#ifdef _OPENMP
  if (wanted == 0) wanted = omp_get_max_threads();
#endif
  return std::clamp(wanted, 1, kMostThreads);
}

}  // namespace

Staging::Staging(Queue& queue, Index piece_bytes, int threads)
    : queue_(queue),
      threads_(threads_for(threads)),
      copies_(nullptr),
      pieces_{Piece(piece_bytes), Piece(piece_bytes)} {}

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
  for (Index done = 0, filled = 0; done < width * rows; done += filled) {
    piece_ = 1 - piece_;
    Piece& piece = pieces_[piece_];
    piece.copied.wait();
    filled = std::min(piece.size, width * rows - done);
    unsigned char* packed = piece.memory.get();
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads_) if (filled > kShare)
#endif
    for (Index share = 0; share < filled; share += kShare)
      pack(packed + share, from, width, pitch, done + share, std::min(kShare, filled - share));
    check(cudaMemcpyAsync(to + done, packed, size(filled), cudaMemcpyHostToDevice, copies_.get()));
    piece.copied.record(copies_.get());
  }
}

void Staging::end() {
  copied_.record(copies_.get());
  copied_.hold(queue_.stream());
}

}  // namespace ncollapse::cuda
