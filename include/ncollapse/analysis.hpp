// The whole job over saved files: what `ncollapse analyze` does.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ncollapse/context.hpp"
#include "ncollapse/export.hpp"
#include "ncollapse/file_list.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse {

/// How far a pass over a data set has come, all its files together. `pass` names it ("moments", "decisions", ...).
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
  Index classes = 0;  ///< K; 0: from the classifier's rows, else the largest label + 1
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

}  // namespace ncollapse
