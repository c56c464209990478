// Ranks of an MPI job, each with samples of its own, end with the moments of all. MPI belongs to the program.
#include <cmath>
#include <cstdio>
#include <vector>

#include <ncollapse/mpi.hpp>
#include <ncollapse/ncollapse.hpp>

int main(int argc, char** argv) {
  try {
    ncollapse::mpi_communicator(MPI_COMM_WORLD);
    return 1;  // MPI is not running yet
  } catch (const ncollapse::UsageError&) {
  }
  MPI_Init(&argc, &argv);
  int rank = 0, size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  bool right = true;
  {
    // Sample i of N has the label i % 2 and lies at (i, -i): rank r holds i = r, r + size, ...
    const int samples = 100;
    std::vector<double> features;
    std::vector<std::int64_t> labels;
    for (int i = rank; i < samples; i += size) {
      features.insert(features.end(), {1.0 * i, -1.0 * i});
      labels.push_back(i % 2);
    }
    const auto rows = static_cast<ncollapse::Index>(labels.size());
    ncollapse::Accumulator moments(ncollapse::Context(ncollapse::Device::parse("cpu")), {.classes = 2, .dim = 2});
    moments.add(ncollapse::view(features.data(), rows, 2), ncollapse::view(labels.data(), rows));
    moments.reduce(ncollapse::mpi_communicator(MPI_COMM_WORLD));
    const auto all = moments.finish();
    right = all.counts() == std::vector<ncollapse::Index>{50, 50} && all.means()[0] == 49 && all.means()[3] == -50;
    for (const double variance : all.within_variances()) right = right && std::abs(variance - 2 * 833) < 1e-9;
    if (rank == 0)
      std::printf("%d ranks: variances %g and %g\n", size, all.within_variances()[0], all.within_variances()[1]);
  }
  MPI_Finalize();
  return right ? 0 : 1;
}
