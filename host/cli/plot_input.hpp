// What `plot` draws: runs in JSON lines and reports of `analyze`, reduced to what a picture needs.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "ncollapse/metrics.hpp"

namespace ncollapse::cli {

/// The values of a curve over the steps: nothing where a step did not measure it, NaN where it is undefined.
struct RecordedCurve {
  std::string name;
  std::vector<std::optional<double>> values;
};

struct Recording {
  std::string file;
  std::string title;  ///< the model, or the file's name where that says nothing about its model

  // A run; a report has none of these.
  std::string x_name;     ///< "epoch" or "iteration"
  std::vector<double> x;  ///< of every step
  /// Loss, minimum and gap, then the metrics in catalogue order; those that have a value in some step.
  std::vector<RecordedCurve> curves;

  // NaN where undefined.
  std::vector<SpectrumRow> spectrum;      ///< of the report, or of the last step that has one
  double spectrum_at = 0;                 ///< that step's x
  BlockCosines block_cos_h, block_cos_w;  ///< of a report

  std::string file_name() const { return std::filesystem::path(file).filename().string(); }
  bool is_run() const { return !x_name.empty(); }
};

/// Reads a file; its schema says what it is. Notes on stderr when the last line is broken, as a killed run leaves it.
/// Throws DataError with file and line for any other line that is broken, and for a schema that cannot be drawn.
Recording read_recording(const std::string& file);

}  // namespace ncollapse::cli
