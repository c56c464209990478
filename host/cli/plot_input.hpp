// What `plot` draws: runs in JSON lines and reports of `analyze`, reduced to what a picture needs.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "ncollapse/metrics.hpp"

namespace ncollapse::cli {

/// A value that the file does not give, or gives as undefined, is NaN.
struct Recording {
  std::string file;
  std::string title;  ///< the model, or the file's name where that says nothing about its model

  // A run; a report has none of these.
  std::string x_name;     ///< "epoch" or "iteration"
  std::vector<double> x;  ///< of every step
  /// Name and values over the steps: loss, minimum, gap, then the metrics in catalogue order.
  std::vector<std::pair<std::string, std::vector<double>>> curves;

  std::vector<SpectrumRow> spectrum;      ///< of the report, or of the last step that has one
  double spectrum_at = 0;                 ///< that step's x
  BlockCosines block_cos_h, block_cos_w;  ///< of a report

  bool is_run() const { return !x_name.empty(); }
};

/// Reads a file; its schema says what it is. Notes on stderr when the last line is broken, as a killed run leaves it.
/// Throws DataError with file and line for any other line that is broken, and for a schema that cannot be drawn.
Recording read_recording(const std::string& file);

}  // namespace ncollapse::cli
