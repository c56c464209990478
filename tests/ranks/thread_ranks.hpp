// Several ranks as threads of one process, with a communicator made of callbacks.
#pragma once

#include <algorithm>
#include <barrier>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ncollapse/communicator.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse_test {

/// Runs a body once per rank. Ranks take turns: one runs while the others wait in a sum, since CPU contexts share the
/// process's BLAS. Sums are formed in rank order. A rank that leaves early is left out of later sums, so that a missing
/// collective call fails a test instead of hanging it.
class ThreadRanks {
 public:
  using Index = ncollapse::Index;

  explicit ThreadRanks(int size) : size_(size), barrier_(size), buffers_(static_cast<std::size_t>(size)) {}

  /// What each rank threw: null when it did not.
  std::vector<std::exception_ptr> run(const std::function<void(const ncollapse::Communicator&)>& body) {
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(size_));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size_; ++rank)
      threads.emplace_back([&, rank] {
        {
          std::unique_lock turn(turn_);
          try {
            body(communicator(rank, turn));
          } catch (...) {
            errors[static_cast<std::size_t>(rank)] = std::current_exception();
          }
          buffers_[static_cast<std::size_t>(rank)] = {};
        }
        barrier_.arrive_and_drop();
      });
    for (auto& thread : threads) thread.join();
    return errors;
  }

  Index doubles() const { return doubles_; }          ///< that each rank has sent
  Index largest_call() const { return largest_; }     ///< values in one call
  bool counts_agreed() const { return !disagreed_; }  ///< in every call all ranks gave the same type and count
  /// Rank `rank` throws in the sum number `call` (from 0).
  void break_sum(int rank, int call) { broken_rank_ = rank, broken_call_ = call; }

 private:
  struct Buffer {
    void* values = nullptr;
    Index count = 0;
    bool real = false;
  };

  ncollapse::Communicator communicator(int rank, std::unique_lock<std::mutex>& turn) {
    ncollapse::CommunicatorCallbacks callbacks;
    callbacks.sum_doubles = [this, rank, &turn](double* values, Index count) { sum(rank, values, count, turn); };
    callbacks.sum_integers = [this, rank, &turn](Index* values, Index count) { sum(rank, values, count, turn); };
    return {rank, size_, callbacks};
  }

  template <class T>
  void sum(int rank, T* values, Index count, std::unique_lock<std::mutex>& turn) {
    buffers_[static_cast<std::size_t>(rank)] = {values, count, std::is_same_v<T, double>};
    turn.unlock();
    barrier_.arrive_and_wait();
    if (rank == 0) {
      if (std::is_same_v<T, double>) doubles_ += count;
      largest_ = std::max(largest_, count);
      std::vector<T> total(static_cast<std::size_t>(count), T{});
      for (const Buffer& buffer : buffers_) {
        if (buffer.count != count || buffer.real != std::is_same_v<T, double>) {
          disagreed_ = true;
          continue;
        }
        for (Index i = 0; i < count; ++i) total[static_cast<std::size_t>(i)] += static_cast<const T*>(buffer.values)[i];
      }
      for (const Buffer& buffer : buffers_)
        if (buffer.count == count) std::copy(total.begin(), total.end(), static_cast<T*>(buffer.values));
    }
    barrier_.arrive_and_wait();
    turn.lock();
    if (rank == broken_rank_ && broken_call_-- == 0) throw ncollapse::Error(ncollapse::ErrorKind::internal, "line cut");
  }

  int size_;
  std::barrier<> barrier_;
  std::vector<Buffer> buffers_;
  std::mutex turn_;
  Index doubles_ = 0, largest_ = 0;
  bool disagreed_ = false;
  int broken_rank_ = -1, broken_call_ = -1;
};

/// The rank's message, "" when it did not fail.
inline std::string message_of(const std::exception_ptr& error) {
  if (!error) return {};
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

}  // namespace ncollapse_test
