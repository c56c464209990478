// The run's log: JSON lines, schema "ncollapse.run/1". One line for the run, one for every measured epoch, one for the
// end of the run. `ncollapse plot` draws it.
#pragma once

#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

#include "options.hpp"

namespace train_mlp {

using Json = nlohmann::ordered_json;

/// Each line is whole in the file before the run goes on.
class RunLog {
 public:
  /// Begins the log `path`, in place of an old one. Throws DataError when it cannot be written.
  static RunLog begin(const std::string& path, const Json& header);
  /// Goes on with the log of a run that is resumed at `epoch`: keeps its header and its lines of earlier epochs; what a
  /// run wrote after its last checkpoint is measured again. Throws DataError when the log is missing or another run's.
  static RunLog resume(const std::string& path, const Json& header, Index epoch);

  void write(const Json& line);

 private:
  explicit RunLog(const std::string& path) : path_(path) {}
  void open(std::ios::openmode mode);

  std::string path_;
  std::ofstream file_;
};

}  // namespace train_mlp
