#include "run_log.hpp"

#include <cerrno>
#include <filesystem>
#include <system_error>

#include <ncollapse/error.hpp>

namespace train_mlp {

namespace {

using ncollapse::DataError;

std::string reason() { return std::error_code(errno, std::generic_category()).message(); }

}  // namespace

void RunLog::open(std::ios::openmode mode) {
  file_.open(path_, std::ios::binary | mode);
  if (!file_) throw DataError(path_ + ": cannot be written: " + reason());
}

RunLog RunLog::begin(const std::string& path, const Json& header) {
  RunLog log(path);
  log.open(std::ios::trunc);
  log.write(header);
  return log;
}

RunLog RunLog::resume(const std::string& path, const Json& header, Index epoch) {
  std::ifstream old(path, std::ios::binary);
  std::string line;
  if (!old || !std::getline(old, line))
    throw DataError(path + ": the log of the run that is to be resumed is missing or empty",
                    "give the --log it was begun with, or remove the checkpoint to begin anew");
  const Json found = Json::parse(line, nullptr, false);
  for (const auto* part : {"schema", "model", "dataset", "optimizer"})
    if (!found.is_object() || !found.contains(part) || found[part] != header[part])
      throw DataError(path + ": is the log of another run: its \"" + part + "\" differs",
                      "give the --log that the run was begun with");
  std::string kept = line + "\n";
  while (std::getline(old, line)) {
    const Json step = Json::parse(line, nullptr, false);  // the line that a kill cut off is no JSON
    if (!step.is_object() || step.value("type", "") != "step" || step.value("epoch", epoch) >= epoch) break;
    kept += line + "\n";
  }
  old.close();
  const std::string temporary = path + ".new";
  {
    std::ofstream copy(temporary, std::ios::binary | std::ios::trunc);
    if (!(copy << kept << std::flush)) throw DataError(temporary + ": cannot be written: " + reason());
  }
  std::error_code status;
  std::filesystem::rename(temporary, path, status);
  if (status) throw DataError(path + ": cannot be replaced: " + status.message());
  RunLog log(path);
  log.open(std::ios::app);
  return log;
}

void RunLog::write(const Json& line) {
  file_ << line.dump() + "\n" << std::flush;
  if (!file_) throw DataError(path_ + ": cannot be written: " + reason());
}

}  // namespace train_mlp
