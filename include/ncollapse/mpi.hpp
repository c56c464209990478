// A Communicator from an MPI_Comm. Needs the caller's own MPI; the library itself knows none. In CMake:
// find_package(ncollapse COMPONENTS mpi) and target_link_libraries(app ncollapse::mpi).
#pragma once

#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1  // not MPI's withdrawn C++ interface
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ncollapse/communicator.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace mpi_detail {

inline void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw Error(ErrorKind::internal, std::string(call) + ": " + text);
}

// Each rank sums a share of the values, in rank order, and hands it to all: the traffic of an allreduce, and bits that
// depend on the number of ranks only, not on the algorithm that MPI picks.
inline void sum_doubles(MPI_Comm comm, int rank, int size, double* values, Index count) {
  const auto ranks = static_cast<std::size_t>(size);
  const Index share = (count + size - 1) / size;
  std::vector<int> lengths(ranks), starts(ranks), mine(ranks), mine_starts(ranks);
  for (int r = 0; r < size; ++r) {
    const auto i = static_cast<std::size_t>(r);
    const Index start = std::min(share * r, count);
    starts[i] = static_cast<int>(start);  // below Communicator::kMostValues
    lengths[i] = static_cast<int>(std::min(share, count - start));
  }
  const int length = lengths[static_cast<std::size_t>(rank)];
  for (int r = 0; r < size; ++r) {
    mine[static_cast<std::size_t>(r)] = length;
    mine_starts[static_cast<std::size_t>(r)] = length * r;
  }
  std::vector<double> parts(static_cast<std::size_t>(length) * ranks);
  check(MPI_Alltoallv(values, lengths.data(), starts.data(), MPI_DOUBLE, parts.data(), mine.data(), mine_starts.data(),
                      MPI_DOUBLE, comm),
        "MPI_Alltoallv");
  double* sums = values + starts[static_cast<std::size_t>(rank)];
  for (int i = 0; i < length; ++i) {
    double sum = parts[static_cast<std::size_t>(i)];
    for (int r = 1; r < size; ++r) sum += parts[static_cast<std::size_t>(mine_starts[static_cast<std::size_t>(r)] + i)];
    sums[i] = sum;
  }
  check(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, values, lengths.data(), starts.data(), MPI_DOUBLE, comm),
        "MPI_Allgatherv");
}

}  // namespace mpi_detail

/// The ranks of `comm`, which has to stay valid; other traffic on it may not come between the library's calls. MPI is
/// neither initialised nor finalised here. Values are exchanged in host memory. Deterministic: sums are formed in rank
/// order. Throws UsageError when MPI is not running or `comm` is null or joins two groups; later, on errors that
/// MPI returns (by default it ends the job instead), Error(internal).
inline Communicator mpi_communicator(MPI_Comm comm) {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  if (started == 0 || ended != 0) throw UsageError("MPI is not running", "call MPI_Init first, MPI_Finalize last");
  if (comm == MPI_COMM_NULL) throw UsageError("the MPI communicator is MPI_COMM_NULL");
  int rank = 0, size = 1, two_groups = 0;
  mpi_detail::check(MPI_Comm_test_inter(comm, &two_groups), "MPI_Comm_test_inter");
  if (two_groups != 0) throw UsageError("the MPI communicator joins two groups", "give one of a single group");
  mpi_detail::check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  mpi_detail::check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  CommunicatorCallbacks callbacks;
  callbacks.sum_doubles = [=](double* values, Index count) {
    mpi_detail::sum_doubles(comm, rank, size, values, count);
  };
  callbacks.sum_integers = [=](std::int64_t* values, Index count) {
    mpi_detail::check(MPI_Allreduce(MPI_IN_PLACE, values, static_cast<int>(count), MPI_INT64_T, MPI_SUM, comm),
                      "MPI_Allreduce");
  };
  return {rank, size, std::move(callbacks)};
}

}  // namespace ncollapse
