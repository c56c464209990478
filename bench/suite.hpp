// The benchmark suite: every operation of the library over the benchmark matrix, on one device, beside what the
// vendor's library and a plain copy reach in the same run, with an error against an oracle and a hash of the bits.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/matrix.hpp"
#include "bench/vendor.hpp"
#include "ncollapse/context.hpp"

namespace ncollapse::bench {

struct Options {
  Device device;
  int threads = 0;  ///< of the CPU; 0: all
  std::vector<Case> matrix = bench::matrix();
  std::vector<std::string> cases;       ///< ids; empty: all
  std::vector<std::string> operations;  ///< names; empty: all
  double scale = 1;                     ///< times the samples of a case, and the classes where they are more
  double sigma = 0;                     ///< instead of the case's own; 0: that
  int repeats = 0;                      ///< 0: 7 on the CPU, 20 on a GPU
  double seconds = 0.8;                 ///< of timing for a row
  double limit = 0;                     ///< seconds after which no further row is begun; 0: none
  bool baseline = false;                ///< also time the plain way
  bool profile = false;                 ///< show a profiler one call of each operation (Vendor::profile)
};

/// What a measured time is compared with: the larger of what the bytes need at the rate of a copy and the operations at
/// the rate of a product, or a bare call.
struct Floor {
  /// "copy", "dgemm", "sgemm", "hgemm", "products" (of several types), the solver's name, or "limit"
  std::string kind;
  double seconds = 0;  ///< 0: there is none
};

struct Measurement {
  Shape shape;  ///< as measured, after scaling to the machine
  std::string operation;
  Index repeats = 0;
  double seconds = 0, fastest = 0, slowest = 0;  ///< median and range
  bool by_rows = true;  ///< one time is that of a pass over shape.samples; else samples are no measure of the work
  double bytes = 0, flop = 0;  ///< that the operation needs
  Floor floor;
  double bar = 0;  ///< the fraction of the floor that is to be reached; 0: none
  double error = 0;
  std::string error_of;  ///< what was compared, with what
  std::uint64_t hash = 0;
  Index hashed = 0;  ///< runs whose results were hashed
  bool same_bits = true;
  std::optional<PlainResult> plain;
  double nc1_trace_ratio = 0, nc1_cdnv = 0;  ///< of end_to_end with the plain way, to hold them against its numbers
  Index agree = 0;

  double fraction() const { return floor.seconds / seconds; }
};

struct Skipped {
  std::string id, operation, why;
};

struct Rates {
  double copy_bytes_per_s = 0;             ///< bytes read and bytes written
  double dgemm = 0, sgemm = 0, hgemm = 0;  ///< FLOP/s of large square products; 0: not measured
};

struct Results {
  DeviceInfo device;
  Rates rates;
  std::vector<Measurement> rows;
  std::vector<Skipped> skipped;
  double seconds = 0;  ///< that all of it took
  double others = 0;   ///< share of the host's processor that other processes took meanwhile
};

/// Is told before every row what was measured so far, and which row comes.
using Progress = std::function<void(const Results& so_far, const std::string& next)>;

/// Throws UsageError for unknown cases and operations, DeviceError without the device.
Results run(const Options& options, const Progress& progress);

}  // namespace ncollapse::bench
