// The way of host batches to the device: packed into pinned memory by several threads, piece by piece, and copied on a
// stream of its own into one of two device buffers, taken in turn. So the copy of a block runs while the block before
// is worked on, the caller's memory may be reused as soon as it was packed, and the host waits only for pieces that are
// still being copied. Pinned caller memory is copied directly, and waited for. What is copied where depends on sizes
// alone.
#pragma once

#include <array>

#include "cuda/queue.hpp"

namespace ncollapse::cuda {

class Staging {
 public:
  /// Copies go on while `queue`'s stream works, in pieces of `piece_bytes`, packed by `threads` (0: as many as OpenMP
  /// would take), of which more than a few would only wait for memory.
  Staging(Queue& queue, Index piece_bytes, int threads);
  ~Staging() { cudaStreamSynchronize(copies_.get()); }  // the pinned memory goes
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Makes room for `bytes` in both buffers, so that begin() cannot fail later for lack of memory.
  void reserve(Index bytes);
  /// Turns to the other buffer: `bytes` of device memory that `copy` may fill. What was queued before may still use the
  /// one before. Throws MemoryError when it does not fit.
  unsigned char* begin(Index bytes);
  /// `rows` pieces of `width` bytes, `pitch` bytes apart in host memory, closely packed to `to`; they may be reused at
  /// return.
  void copy(unsigned char* to, const void* host, Index width, Index pitch, Index rows);
  /// What is queued from now on sees the copies.
  void end();

 private:
  struct Piece {
    explicit Piece(Index bytes) : size(bytes), memory(bytes) {}
    Index size;
    Pinned<unsigned char> memory;
    Event copied;
  };
  struct Slot {
    Buffer<unsigned char> memory;
    Event used;  ///< on the queue's stream: the last work with it
  };

  void grow(Slot& slot, Index bytes);

  Queue& queue_;
  int threads_;
  Stream copies_;
  Event copied_;
  std::array<Slot, 2> slots_;
  std::array<Piece, 2> pieces_;
  std::size_t slot_ = 0, piece_ = 0;
};

}  // namespace ncollapse::cuda
