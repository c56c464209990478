#include "ranks.hpp"

#include <cstdlib>

#include <ncollapse/error.hpp>
#ifdef TRAIN_MLP_MPI
#include <ncollapse/mpi.hpp>
#endif

namespace train_mlp {

#ifdef TRAIN_MLP_MPI

Ranks::Ranks(bool distributed) {
  if (!distributed) return;
  MPI_Init(nullptr, nullptr);
  started_ = true;
  communicator_ = ncollapse::mpi_communicator(MPI_COMM_WORLD);
  MPI_Comm here = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank(), MPI_INFO_NULL, &here);
  MPI_Comm_rank(here, &local_rank_);
  MPI_Comm_size(here, &local_size_);
  MPI_Comm_free(&here);
}

Ranks::~Ranks() {
  if (started_) MPI_Finalize();
}

void Ranks::abort(int exit_code) const {
  if (started_) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

#else

Ranks::Ranks(bool distributed) {
  if (distributed)
    throw ncollapse::UsageError("--distributed: this train_mlp was built without MPI",
                                "install MPI (Debian: libopenmpi-dev) and build it again");
}

Ranks::~Ranks() = default;

void Ranks::abort(int exit_code) const { std::_Exit(exit_code); }

#endif

}  // namespace train_mlp
