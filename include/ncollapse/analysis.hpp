// The whole job over saved files: what `ncollapse analyze` does.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ncollapse/communicator.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/file_list.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse {

/// How far a pass over a data set has come, all its files together. `pass` names it ("moments", "decisions", ...). With
/// several ranks what is done is the calling rank's, and the total that of all.
struct Progress {
  std::string pass;
  Index rows_done = 0, rows_total = 0;
  Index bytes_done = 0, bytes_total = 0;
};

/// Files as ArrayFile::open takes them ("path" or "path:key"). Features may lie in many files, one after the other;
/// then there are as many files of labels, row for row, or one for all.
struct AnalysisRequest {
  FileList features = {}, labels = {};
  RowRange rows = {};                     ///< of features and labels, all files together
  std::vector<std::string> weights = {};  ///< W_1 first
  std::string bias = {};
  FileList test_features = {}, test_labels = {};
  FileList ood_features = {};
  Precision precision = Precision::exact;  ///< of the within-class scatter
  Index classes = 0;                       ///< K; 0: from the classifier's rows, else the largest label + 1
  Convention convention = Convention::zhu;
  std::vector<double> lambda_w = {};  ///< as in Evidence
  double lambda_h = 0;
  Index batch_rows = 0;                                   ///< 0: about 64 MiB of features a batch
  std::function<void(const Progress&)> on_progress = {};  ///< called after every batch; may throw to stop
};

/// Streams the files through Accumulator and DecisionCounter in bounded memory and measures. One pass over the training
/// features for the moments and a second one for the decisions (they need the final means).
/// Throws DataError and UsageError naming the file.
NCOLLAPSE_EXPORT Report analyze(const Context& context, const AnalysisRequest& request);

/// The same by all ranks together; collective. Every rank sees all files, opens their headers and reads a contiguous
/// part of the rows of each data set, as many as the others but for one; on_progress is called on each. The report is
/// made on rank 0, the others get none; its metrics agree with those of a single process to rounding, and its counts
/// exactly. The same ranks give the same bits where their sums do.
/// When a rank fails, all throw, the others when their own pass has ended (CommunicatorCallbacks::on_failure is called
/// at once). UsageError when the ranks see other files or were asked for something else.
NCOLLAPSE_EXPORT std::optional<Report> analyze(const Context& context, const AnalysisRequest& request,
                                               const Communicator& ranks);

}  // namespace ncollapse
