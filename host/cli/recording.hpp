// What `plot` and `report` show: runs in JSON lines and reports of `analyze`, reduced to what a page needs.
#pragma once

#include <filesystem>
#include <istream>
#include <limits>
#include <optional>
#include <string>
#include <utility>
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
  std::string title;   ///< the model, or the file's name where that says nothing about its model
  std::string data;    ///< the data set and its class sizes; may be empty
  std::string decays;  ///< the weight decays; may be empty
  std::vector<std::pair<std::string, std::string>> facts;  ///< name and value: device, convention, settings

  // A run; a report has none of these.
  std::string x_name;     ///< "epoch" or "iteration"
  std::vector<double> x;  ///< of every step
  /// Loss, minimum and gap, then the metrics in catalogue order; those that have a value in some step.
  std::vector<RecordedCurve> curves;
  double spectrum_at = 0;                                  ///< x of the step that gave the spectrum
  double rank = std::numeric_limits<double>::quiet_NaN();  ///< of the predicted minimiser; NaN: the run does not tell

  /// The report, or what the last step of a run says; spectrum, cosines and per-class values of the last line that has
  /// them. NaN where undefined. Only metrics, status, counts, per_class, spectrum, block_cos_h, block_cos_w and notes
  /// are filled.
  Report report;

  std::string file_name() const { return std::filesystem::path(file).filename().string(); }
  bool is_run() const { return !x_name.empty(); }
  /// "epoch 1500" of a run, else nothing.
  std::string last_step() const;
};

/// Reads a file; its schema says what it is. Notes on stderr when the last line is broken, as a killed run leaves it.
/// Throws DataError with file and line for any other line that is broken, and for a schema that cannot be shown.
Recording read_recording(const std::string& file);
/// What is left of a file. Throws DataError, with its name, when it cannot be read.
std::string rest_of(std::istream& input, const std::string& file);

/// A report that was just measured; `name` stands for its file.
Recording recording_of(const Report& report, const std::string& name);

}  // namespace ncollapse::cli
