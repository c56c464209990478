// Measuring in parts: over many files, days or machines, without MPI. Each part accumulates its rows into a state file;
// the files are merged, in any order, and measured. What `ncollapse accumulate`, `merge` and `finalize` do.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ncollapse/accumulator.hpp"
#include "ncollapse/analysis.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/file_list.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse {

struct AccumulationRequest {
  FileList features = {}, labels = {};  ///< as in AnalysisRequest
  RowRange rows = {};                   ///< of all files together
  Index classes = 0;                    ///< K, the same for all parts
  Statistics statistics = Statistics::full;
  Precision precision = Precision::exact;
  std::string state = {};           ///< the state file to write
  bool resume = false;              ///< go on where `state` ends; from the start without that file
  Index save_every_rows = 0;        ///< save after the batch that completes so many; 0: do not
  double save_every_seconds = 300;  ///< and after the batch that ends so late; 0: do not
  Index batch_rows = 0;             ///< 0: about 64 MiB of features a batch
  std::function<void(const Progress&)> on_progress = {};  ///< called after every batch; may throw to stop
};

/// Streams the rows into a state file. The file remembers its inputs (names, shapes, rows) and how many rows are done.
/// It is saved as `save_every_*` say, at the end, and also when a batch or on_progress throws. A process that is
/// killed, or whose device refuses work in the middle of a batch, loses what came after the last save. Where that save
/// fails, its DataError replaces what on_progress threw. Batches do not depend on where a run was interrupted, so a
/// resumed run ends in the bits of an uninterrupted one on the same kind of device. Throws DataError when the state
/// file exists and `resume` is not set; when it does and the file was made from other inputs or options; and as Dataset
/// inputs and Accumulator::add do, naming the file. UsageError where features, labels or a state file are not given,
/// and for a number of classes outside 1 .. 2^28 or numbers below 0.
NCOLLAPSE_EXPORT Accumulator accumulate_files(const Context& context, const AccumulationRequest& request);

/// The sum of state files, in the order given; globs are expanded. With `output`, saved there: never over an existing
/// file. Throws DataError naming the file: unreadable, given twice, incomplete (accumulated to the middle only), of
/// another K, d, statistics or scatter weights than the first. UsageError where no file is given.
/// `overlaps` takes a sentence for every part that shares rows of a file with another one, by what their notes say:
/// name, shape and rows of each file of features. On other machines that name may stand for another file, so it is no
/// error; of states that accumulate_files did not make nothing is known.
NCOLLAPSE_EXPORT Accumulator merge_states(const Context& context, const FileList& states,
                                          const std::string& output = {}, std::vector<std::string>* overlaps = nullptr);

struct StateMeasurement {
  std::string state = {};
  std::vector<std::string> weights = {};  ///< W_1 first
  std::string bias = {};
  Convention convention = Convention::zhu;
  std::vector<double> lambda_w = {};  ///< as in Evidence
  double lambda_h = 0;
};

/// All metrics that need no second pass over the data (no decisions: NC4, accuracies). Throws DataError and UsageError.
NCOLLAPSE_EXPORT Report measure_state(const Context& context, const StateMeasurement& request);

}  // namespace ncollapse
