// Ranks that measure one data set together, each with a part of it: what the library needs of them is to add up.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>

#include "ncollapse/export.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// How ranks add up. Each function replaces values[i] on every rank by the sum over all ranks of values[i], and returns
/// when that is done. It is called on every rank in the same order with the same count, at most
/// Communicator::kMostValues at once. It may throw; then the other ranks are in an unknown state and have to be ended.
struct CommunicatorCallbacks {
  /// Every rank has to receive the same bits. Results are deterministic where these sums are.
  std::function<void(double* values, Index count)> sum_doubles;
  std::function<void(std::int64_t* values, Index count)> sum_integers;  ///< exact
  /// Where `values` lie. `device`: on the GPU of the rank's Context; work queued before on the Context's stream has
  /// ended, and what is queued there afterwards does not wait for other streams.
  MemorySpace space = MemorySpace::host;
  /// Optional. Called on a rank that fails, with what it is about to throw, before the other ranks are told. They are
  /// told when they meet this rank next, which may be at the end of a pass over data: a program that wants to end at
  /// once does it here (as MPI_Abort does).
  std::function<void(std::exception_ptr)> on_failure = {};
};

/// The ranks of a job, made by the caller from what connects them: mpi_communicator (ncollapse/mpi.hpp),
/// nccl_communicator (ncollapse/nccl.hpp), or callbacks around anything else that sums arrays (torch::distributed, a
/// job's own threads). Nothing is started or ended by the library. Cheap to copy; each copy keeps the callbacks, not
/// what they refer to. One call at a time.
class NCOLLAPSE_EXPORT Communicator {
 public:
  /// The largest number of values in one call of a callback: 32 MiB, so that buffers inside stay small.
  static constexpr Index kMostValues = Index{1} << 22;

  Communicator() = default;  ///< one rank, alone
  /// Throws UsageError unless 0 <= rank < size, and for a missing sum where size is above 1.
  Communicator(int rank, int size, CommunicatorCallbacks callbacks);

  int rank() const { return rank_; }
  int size() const { return size_; }
  MemorySpace space() const { return callbacks_.space; }
  const CommunicatorCallbacks& callbacks() const { return callbacks_; }

  /// In place, in pieces of at most kMostValues; with one rank nothing happens. Collective: every rank calls it.
  void sum(double* values, Index count) const;
  void sum(std::int64_t* values, Index count) const;

 private:
  int rank_ = 0, size_ = 1;
  CommunicatorCallbacks callbacks_ = {};
};

}  // namespace ncollapse
