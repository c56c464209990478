// The command under mpirun: the processes of one job, which divide the rows of `analyze` among them.
#pragma once

#include <exception>
#include <memory>
#include <string>

#include "ncollapse/analysis.hpp"
#include "ncollapse/communicator.hpp"
#include "ncollapse/context.hpp"

namespace ncollapse::cli {

/// This process and its like. MPI is started only in a process that was launched as one of several, which mpirun and
/// srun tell by the environment: OMPI_COMM_WORLD_SIZE (Open MPI), PMI_SIZE (MPICH, Intel MPI, srun --mpi=pmi2),
/// PMIX_RANK (srun --mpi=pmix). Any other process is alone and runs as if there were no MPI.
class Ranks {
 public:
  /// Throws UsageError in a job of several processes when the command was built without MPI.
  Ranks();
  ~Ranks();  ///< ends MPI where it was started
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// Which of the job's processes on this machine, to give each its own GPU.
  int local_rank() const { return local_rank_; }
  /// This process's share of the cores that it may use: all, when mpirun has bound it to its own.
  int threads() const { return threads_; }

  /// Failures end the job at once, see fail().
  Communicator communicator(bool json_errors);

  /// To be called with this rank's progress after every batch; on rank 0 it returns that of all ranks, as far as known.
  Progress together(const Progress& mine);
  /// Waits for the other ranks and takes in what they still had to tell.
  void finish();

  /// Prints the error once and ends every rank with its exit code. Rank 0 speaks first; the others wait a moment, so
  /// that an error that all have is printed once. Returns the exit code when this process is alone.
  int fail(std::exception_ptr error, bool json_errors);

 private:
  struct Job;

  int rank_ = 0, size_ = 1, local_rank_ = 0, threads_ = 0;
  std::unique_ptr<Job> job_;
};

/// How many processes the environment says there are: 0 when it does not say, -1 when only that there are some.
int launched_ranks();

}  // namespace ncollapse::cli
