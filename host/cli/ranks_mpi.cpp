// The command built with MPI.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>
#include <map>
#include <thread>
#include <vector>

#include "host/cli/output.hpp"
#include "host/cli/ranks.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/mpi.hpp"

namespace ncollapse::cli {

namespace {

constexpr int kProgressTag = 1;

/// What a rank tells rank 0 during a pass.
struct Told {
  char pass[40] = {};
  Index rows_done = 0;
};

/// The cores that this process may use, as a set.
std::vector<char> allowed_cores() {
  std::vector<char> cores(CPU_SETSIZE, 0);
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cores;
  for (int i = 0; i < CPU_SETSIZE; ++i) cores[static_cast<std::size_t>(i)] = CPU_ISSET(i, &set) ? 1 : 0;
  return cores;
}

/// Those cores, divided by the number of processes on this machine that may use the same ones: mpirun binds small jobs
/// to a core each, and leaves large ones unbound.
int share_of_cores(MPI_Comm machine, int local_size) {
  const std::vector<char> mine = allowed_cores();
  std::vector<char> all(mine.size() * static_cast<std::size_t>(local_size));
  const int length = static_cast<int>(mine.size());
  MPI_Allgather(mine.data(), length, MPI_CHAR, all.data(), length, MPI_CHAR, machine);
  int sharing = 0;
  for (auto other = all.begin(); other != all.end(); other += length)
    sharing += std::equal(mine.begin(), mine.end(), other) ? 1 : 0;
  const auto cores = static_cast<int>(std::count(mine.begin(), mine.end(), 1));
  return std::max(1, cores / sharing);
}

}  // namespace

struct Ranks::Job {
  MPI_Comm world = MPI_COMM_NULL;  // for the library's sums
  MPI_Comm side = MPI_COMM_NULL;   // for progress
  Told outgoing;
  MPI_Request sending = MPI_REQUEST_NULL;
  std::chrono::steady_clock::time_point last;
  std::map<std::string, std::vector<Index>> rows_done;  // on rank 0: by pass, of every rank

  /// On rank 0: takes in what has arrived.
  void listen(int size) {
    for (;;) {
      int waiting = 0;
      MPI_Status status;
      MPI_Iprobe(MPI_ANY_SOURCE, kProgressTag, side, &waiting, &status);
      if (waiting == 0) return;
      Told told;
      MPI_Recv(&told, sizeof(told), MPI_BYTE, status.MPI_SOURCE, kProgressTag, side, MPI_STATUS_IGNORE);
      auto& rows = rows_done[told.pass];
      rows.resize(static_cast<std::size_t>(size));
      rows[static_cast<std::size_t>(status.MPI_SOURCE)] = told.rows_done;
    }
  }
};

Ranks::Ranks() {
  const int launched = launched_ranks();
  if (launched == 0 || launched == 1) return;
  int ignored = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &ignored);
  job_ = std::make_unique<Job>();
  MPI_Comm_dup(MPI_COMM_WORLD, &job_->world);
  MPI_Comm_dup(MPI_COMM_WORLD, &job_->side);
  MPI_Comm_rank(job_->world, &rank_);
  MPI_Comm_size(job_->world, &size_);
  if (launched > 1 && size_ == 1)
    throw UsageError("started as one of " + std::to_string(launched) + " processes, but its MPI sees itself alone",
                     "start it with the mpirun of the MPI that it was built with");
  MPI_Comm machine = MPI_COMM_NULL;
  MPI_Comm_split_type(job_->world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  int local_size = 1;
  MPI_Comm_rank(machine, &local_rank_);
  MPI_Comm_size(machine, &local_size);
  threads_ = share_of_cores(machine, local_size);
  MPI_Comm_free(&machine);
}

Ranks::~Ranks() {
  if (!job_) return;
  MPI_Comm_free(&job_->world);
  MPI_Comm_free(&job_->side);
  MPI_Finalize();
}

Communicator Ranks::communicator(bool json_errors) {
  if (!job_) return {};
  CommunicatorCallbacks callbacks = mpi_communicator(job_->world).callbacks();
  callbacks.on_failure = [this, json_errors](std::exception_ptr error) { fail(error, json_errors); };
  return {rank_, size_, std::move(callbacks)};
}

Progress Ranks::together(const Progress& mine) {
  if (!job_) return mine;
  if (rank_ != 0) {
    // Never waits: what rank 0 has not taken in yet is not followed by more.
    const auto now = std::chrono::steady_clock::now();
    int sent = 0;
    MPI_Test(&job_->sending, &sent, MPI_STATUS_IGNORE);
    if (sent == 0 || now - job_->last < std::chrono::milliseconds(100)) return mine;
    job_->last = now;
    job_->outgoing = {};
    std::strncpy(job_->outgoing.pass, mine.pass.c_str(), sizeof(Told::pass) - 1);
    job_->outgoing.rows_done = mine.rows_done;
    MPI_Isend(&job_->outgoing, sizeof(Told), MPI_BYTE, 0, kProgressTag, job_->side, &job_->sending);
    return mine;
  }
  job_->listen(size_);
  Progress all = mine;
  if (const auto rows = job_->rows_done.find(mine.pass); rows != job_->rows_done.end())
    for (const Index done : rows->second) all.rows_done += done;
  if (all.rows_total > 0) all.bytes_done = all.bytes_total / all.rows_total * all.rows_done;
  return all;
}

void Ranks::finish() {
  if (!job_) return;
  if (rank_ != 0) MPI_Wait(&job_->sending, MPI_STATUS_IGNORE);  // rank 0 listens until all have come here
  MPI_Request all_here = MPI_REQUEST_NULL;
  MPI_Ibarrier(job_->side, &all_here);
  for (int here = 0; here == 0;) {
    if (rank_ == 0) job_->listen(size_);
    MPI_Test(&all_here, &here, MPI_STATUS_IGNORE);
    if (here == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

int Ranks::fail(std::exception_ptr error, bool json_errors) {
  if (!job_) return report_error(error, json_errors);
  std::this_thread::sleep_for(std::chrono::milliseconds(rank_ == 0 ? 0 : 2000 + 20 * std::min(rank_, 100)));
  const int code = report_error(error, json_errors, rank_ == 0 ? "" : "rank " + std::to_string(rank_) + ": ");
  std::cout.flush();
  MPI_Abort(MPI_COMM_WORLD, code);
  return code;
}

}  // namespace ncollapse::cli
