// What a measurement will need of memory, before it is begun.
#pragma once

#include <string>
#include <vector>

#include "ncollapse/accumulator.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

struct PlanRequest {
  Index classes = 0;  ///< K
  Index dim = 0;      ///< d
  Statistics statistics = Statistics::full;
  Dtype dtype = Dtype::f32;  ///< of the features
  Index samples = 0;         ///< N; 0: not known, taken as many
  DeviceType device = DeviceType::cpu;
  int threads = 0;         ///< CPU threads; 0: as a Context would take
  Index batch_rows = 0;    ///< 0: about 64 MiB of features a batch
  Index memory_bytes = 0;  ///< what may be used of the device's memory, the host's for a CPU; 0: no limit
};

/// The most that is held at a time in one phase. On the CPU everything is host memory.
struct PhaseMemory {
  std::string name;  ///< "accumulate", "save", "load", "merge", "finish", "measure"
  Index host_bytes = 0, device_bytes = 0;
};

/// All in bytes of arrays; the program, its libraries and BLAS's buffers (OpenBLAS: up to 32 MiB a thread) come on top.
/// Runs on the CPU have stayed within -10 and +10 % for accumulate, -25 and +10 % for the others (pages that stay zero
/// are never resident), apart from those buffers. The figures for CUDA have not been compared with a GPU's; add_bytes
/// is what the library asks for.
struct MemoryPlan {
  Statistics statistics = Statistics::full;
  Index batch_rows = 0;
  Index state_bytes = 0;       ///< of an Accumulator, whatever N is
  Index batch_bytes = 0;       ///< features and labels of a batch, on the host
  Index add_bytes = 0;         ///< workspace of Accumulator::add
  Index finish_bytes = 0;      ///< what Accumulator::finish makes, its result included
  Index measure_bytes = 0;     ///< workspace of measure with a classifier of one layer, without weight decays
  Index state_file_bytes = 0;  ///< without its note
  /// What has to travel to merge a part with others: counts, means, variances and the packed scatter.
  Index exchange_bytes = 0;
  Index data_bytes = 0;  ///< features of N samples, to be read
  std::vector<PhaseMemory> phases;
  Index host_peak_bytes = 0, device_peak_bytes = 0;  ///< the largest phase
  bool fits = true;                                  ///< the peak is within PlanRequest::memory_bytes
};

/// Follows what the library allocates: its own code is run on a device that counts instead of computing, for sizes of
/// any kind and in time O(K); workspaces of vendor libraries come from their documentation. A measurement of decisions
/// (NC4) is not in it. With `memory_bytes`, takes the largest batch that fits. Throws UsageError for sizes below 1 (of
/// what may be 0, below 0), more than 2^24 classes or 2^28 dimensions, bytes beyond 64 bits and an unknown element
/// type; MemoryError when the statistics do not fit, saying what would.
NCOLLAPSE_EXPORT MemoryPlan plan(const PlanRequest& request);

/// The same for means, traces and full, each with `fits`; throws as plan, but not for want of memory.
NCOLLAPSE_EXPORT std::vector<MemoryPlan> plan_all_statistics(const PlanRequest& request);

}  // namespace ncollapse
