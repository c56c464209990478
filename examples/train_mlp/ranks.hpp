// The processes of a run with --distributed, which mpirun starts: each has a part of the samples.
#pragma once

#include <ncollapse/communicator.hpp>

namespace train_mlp {

class Ranks {
 public:
  /// Starts MPI where the run is `distributed`; else this process is alone. Throws UsageError for a distributed run of
  /// a program that was built without MPI.
  explicit Ranks(bool distributed);
  ~Ranks();  ///< ends MPI where it was started
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  const ncollapse::Communicator& communicator() const { return communicator_; }
  int rank() const { return communicator_.rank(); }
  int size() const { return communicator_.size(); }
  /// Which of the job's processes on this machine, and of how many: each takes its own GPU, or its share of the cores.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }

  /// Ends all processes; the others may be waiting for this one.
  void abort(int exit_code) const;

 private:
  ncollapse::Communicator communicator_;
  int local_rank_ = 0, local_size_ = 1;
  bool started_ = false;
};

}  // namespace train_mlp
