// Everything that belongs to one opened device: the stream in whose order all work is done, the memory pool, and the
// vendor handles bound to that stream. Objects passed in, no globals, never the default stream.
//
// Determinism: cuBLAS runs with atomics forbidden, in the default math mode (no silent TF32) without reductions in the
// result's 16 bits, and in a workspace of its own, which has to be set after the stream because setting the stream
// resets it. cuSOLVER runs in deterministic mode. Memory comes from an own pool that keeps what it got (the default
// pool would give it back at every wait); the pool hands memory out in stream order, so a buffer may be dropped while
// kernels that use it are still queued.
#pragma once

#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/check.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse::cuda {

/// Makes a device current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_));
    changed_ = device != previous_;
    if (changed_) check(cudaSetDevice(device));
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

/// A vendor handle (they all are pointers) with its destroy function.
template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const {
    destroy(handle);
  }
};
template <class Handle, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<destroy>>;

/// An own stream, or one borrowed from the caller. An own one also keeps the order of the legacy default stream, so
/// that callers who queue their work there are seen; one beside it (kBeside) follows events alone: it may become part
/// of a capture, which a stream tied to the default stream must not while anybody works there.
class Stream {
 public:
  static constexpr unsigned kBeside = cudaStreamNonBlocking;
  explicit Stream(cudaStream_t borrowed, unsigned flags = cudaStreamDefault);
  cudaStream_t get() const { return raw_; }

 private:
  Owned<cudaStream_t, cudaStreamDestroy> own_;
  cudaStream_t raw_ = nullptr;
};

/// A point in a stream's work, for other streams and for the host to wait for.
class Event {
 public:
  Event();
  void record(cudaStream_t stream) { check(cudaEventRecord(event_.get(), stream)); }
  /// `stream` goes on only after the recorded point (at once when none was recorded).
  void hold(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_.get(), 0)); }
  bool happened() const;  ///< does not wait
  void wait() const { check(cudaEventSynchronize(event_.get())); }

 private:
  Owned<cudaEvent_t, cudaEventDestroy> event_;
};

/// For work on a second stream whose end the queue's stream waits for when the scope is done. An exception may leave
/// the scope before that; then the host waits, because what the work uses is released in the order of the queue's
/// stream.
class WaitOnException {
 public:
  explicit WaitOnException(cudaStream_t stream) : stream_(stream) {}
  ~WaitOnException() {
    if (std::uncaught_exceptions() > exceptions_) cudaStreamSynchronize(stream_);
  }
  WaitOnException(const WaitOnException&) = delete;
  WaitOnException& operator=(const WaitOnException&) = delete;

 private:
  cudaStream_t stream_;
  int exceptions_ = std::uncaught_exceptions();
};

/// Pinned host memory, which copies reach without the driver's detour and without a wait.
template <class T>
class Pinned {
 public:
  explicit Pinned(Index count) {
    void* raw = nullptr;
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    const cudaError_t status = cudaHostAlloc(&raw, bytes, cudaHostAllocDefault);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw MemoryError("out of memory: " + std::to_string(bytes) + " pinned bytes were wanted of the host",
                        "is the memory that may be locked limited? see ulimit -l");
    }
    check(status);
    memory_.reset(static_cast<T*>(raw));
  }
  T* get() const { return memory_.get(); }

 private:
  std::unique_ptr<T, Destroy<cudaFreeHost>> memory_;
};

class Queue {
 public:
  /// `borrowed` null: an own stream.
  Queue(int device, cudaStream_t borrowed);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  int device() const { return device_; }
  std::recursive_mutex& mutex() { return mutex_; }
  cudaStream_t stream() const { return stream_->get(); }
  cublasHandle_t blas() const { return blas_.get(); }
  cusolverDnHandle_t solver() const { return solver_.get(); }
  cusolverDnParams_t solver_params() const { return solver_params_.get(); }

  /// Uninitialised device memory in stream order; never null. Throws MemoryError, saying how much is free.
  void* allocate(Index bytes);
  void release(void* memory) noexcept;

  /// Host memory may be reused at return. Small copies do not wait for the device.
  void upload(void* to, const void* host, Index bytes);
  void download(void* host, const void* from, Index bytes);  ///< waits
  void copy(void* to, const void* from, Index bytes);
  void wait();
  /// Queues a copy to pinned memory, where it is after the next wait, until `release_fetched`. Null where there is no
  /// room. See Fetch.
  const void* fetch(const void* from, Index bytes);
  void release_fetched() noexcept;
  Index waits() const { return waits_; }  ///< so far

  /// What was found out about cuBLAS here (narrow_products_are_exact, narrow_results_are_rounded_once), for f16 and
  /// bf16.
  std::optional<bool> exact_halves, exact_bfloats, rounded_halves, rounded_bfloats;
  /// Whether the stream is being captured into a CUDA graph: then nothing may wait or allocate.
  bool capturing() const;

 private:
  int device_;
  std::recursive_mutex mutex_;
  std::unique_ptr<Stream> stream_;
  Owned<cudaMemPool_t, cudaMemPoolDestroy> pool_;
  std::optional<Pinned<unsigned char>> outgoing_, incoming_;  ///< of small copies
  Index outgoing_used_ = 0, incoming_used_ = 0;               ///< since the last wait; by fetches that are not released
  Index fetches_ = 0, waits_ = 0;
  void* blas_workspace_ = nullptr;
  Owned<cublasHandle_t, cublasDestroy> blas_;
  Owned<cusolverDnHandle_t, cusolverDnDestroy> solver_;
  Owned<cusolverDnParams_t, cusolverDnDestroyParams> solver_params_;
};

/// A verb's turn with the queue, whose buffers and handles are one thread's at a time; its device is current meanwhile.
class Turn {
 public:
  explicit Turn(Queue& queue) : lock_(queue.mutex()), on_(queue.device()) {}

 private:
  std::lock_guard<std::recursive_mutex> lock_;
  DeviceGuard on_;
};

/// Values on their way to the host. A wait for one is a wait for all that were begun before: begin all, then take.
template <class T>
class Fetch {
 public:
  Fetch(Queue& queue, const T* from, Index count)
      : queue_(queue),
        values_(static_cast<std::size_t>(count)),
        waits_(queue.waits()),
        pinned_(queue.fetch(from, bytes())) {
    if (pinned_ == nullptr) queue.download(values_.data(), from, bytes());
  }
  ~Fetch() {
    if (pinned_ != nullptr) queue_.release_fetched();
  }
  Fetch(const Fetch&) = delete;
  Fetch& operator=(const Fetch&) = delete;

  /// Once. Waits, if nothing has since they were begun.
  std::vector<T> take() {
    if (pinned_ != nullptr) {
      if (queue_.waits() == waits_) queue_.wait();
      if (bytes() > 0) std::memcpy(values_.data(), pinned_, static_cast<std::size_t>(bytes()));
      queue_.release_fetched();
      pinned_ = nullptr;
    }
    return std::move(values_);
  }
  /// Instead, added up in their order.
  T sum() {
    T total = 0;
    for (const T value : take()) total += value;
    return total;
  }

 private:
  Index bytes() const { return static_cast<Index>(values_.size() * sizeof(T)); }

  Queue& queue_;
  std::vector<T> values_;
  Index waits_;
  const void* pinned_;
};

/// Scratch memory of a verb.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Queue& queue, Index count)
      : queue_(&queue), data_(static_cast<T*>(queue.allocate(count * static_cast<Index>(sizeof(T))))), size_(count) {}
  /// A copy of host values, which may be reused at return.
  Buffer(Queue& queue, std::span<const T> values) : Buffer(queue, static_cast<Index>(values.size())) {
    queue.upload(data_, values.data(), bytes());
  }
  Buffer(Queue& queue, const std::vector<T>& values) : Buffer(queue, std::span<const T>(values)) {}
  Buffer(Buffer&& other) noexcept
      : queue_(other.queue_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(queue_, other.queue_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_) queue_->release(data_);
  }

  T* get() const { return data_; }
  Index size() const { return size_; }
  Index bytes() const { return size_ * static_cast<Index>(sizeof(T)); }
  std::vector<T> to_host() const { return fetch().take(); }
  /// To the host, with others.
  Fetch<T> fetch() const { return {*queue_, data_, size_}; }

 private:
  Queue* queue_ = nullptr;
  T* data_ = nullptr;
  Index size_ = 0;
};

}  // namespace ncollapse::cuda
