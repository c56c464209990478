#include "host/cli/run_log.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <initializer_list>
#include <system_error>

#include "host/cli/output.hpp"
#include "host/io/report_json.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/version.hpp"

namespace ncollapse::cli {

namespace {

constexpr const char* kSchema = "ncollapse.run/1";
constexpr const char* kTool = "ncollapse";

std::string system_message() { return std::error_code(errno, std::generic_category()).message(); }

// ------------------------------------------------------------------------------------------------ what is written

// Names of devices need not be UTF-8.
std::string line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

Json model_of(const RunOptions& run) {
  Json model = Json::object();
  if (run.layers > 0) {
    model["layers"] = run.layers;
    model["with_bias"] = run.with_bias;
  }
  if (!run.lambda_w.empty()) {
    model["lambda_w"] = run.lambda_w;
    model["lambda_h"] = run.lambda_h;
  }
  return model;
}

Json header_of(const Report& report) {
  RunOptions run{report.convention.preset, 0, false, report.lambda_w, report.lambda_h};
  for (const auto& [name, file] : report.source) {
    run.layers += name == "weights" ? 1 : 0;
    run.with_bias = run.with_bias || name == "bias";
  }
  Json header;
  header["schema"] = kSchema;
  header["tool"] = {{"name", kTool}, {"version", version()}};
  header["device"] = device_json(report.device);
  header["convention"] = std::string(to_string(report.convention.preset));
  header["precision"] = std::string(to_string(report.precision));
  header["model"] = {{"K", report.classes}, {"N", report.samples}};
  header["model"].update(model_of(run));
  header["model"]["width"] = report.dim;
  header["model"]["counts"] = report.counts;
  return header;
}

std::string step_of(const Report& report, Index epoch, std::optional<double> loss) {
  Json step = {{"type", "step"}, {"epoch", epoch}};
  if (loss) step["loss"] = *loss;
  step["metrics"] = metrics_json(report);
  step["status"] = status_json(report);
  step["per_class"]["counts"] = report.counts;
  for (const auto& metric : report.per_class) step["per_class"][metric.key] = json_numbers(metric.values);
  if (!report.spectrum.empty()) step["spectrum"] = spectrum_json(report);
  add_blocks(step, report);
  return line_of(step);
}

// ------------------------------------------------------------------------------------------------ what is there

/// A file that is open to be read, or appended to under a lock.
class LogFile {
 public:
  /// Throws DataError for what is no regular file, and for one that is missing unless it is made: `flags` as for open.
  LogFile(const std::string& name, int flags) : name_(name) {
    struct stat info = {};
    if (::stat(name.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
      throw DataError(name + ": is there and no regular file, so it cannot be a log", "name another file");
    raw_ = ::open(name.c_str(), flags | O_CLOEXEC, 0666);
    if (raw_ < 0) throw DataError(name + ": cannot open: " + system_message());
  }
  ~LogFile() { ::close(raw_); }
  LogFile(const LogFile&) = delete;
  LogFile& operator=(const LogFile&) = delete;

  void lock() const {
    while (::flock(raw_, LOCK_EX) != 0)
      if (errno != EINTR) return;  // some file systems know no locks
  }
  off_t size() const {
    struct stat info = {};
    if (::fstat(raw_, &info) != 0) throw DataError(name_ + ": cannot be read: " + system_message());
    return info.st_size;
  }
  std::string read(off_t begin, off_t end) const {
    std::string text(static_cast<std::size_t>(end - begin), '\0');
    for (std::size_t done = 0; done < text.size();) {
      const auto count = ::pread(raw_, text.data() + done, text.size() - done, begin + static_cast<off_t>(done));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) throw DataError(name_ + ": cannot be read: " + (count < 0 ? system_message() : "it was cut off"));
      done += static_cast<std::size_t>(count);
    }
    return text;
  }
  /// The text instead of what lies behind `at`; or the file is as it was, as far as it can be.
  void replace_end(off_t at, const std::string& text) const {
    const std::string old = read(at, size());
    try {
      write(at, text);
      if (::ftruncate(raw_, at + static_cast<off_t>(text.size())) != 0 || ::fsync(raw_) != 0)
        throw DataError(name_ + ": cannot write: " + system_message());
    } catch (const DataError&) {
      if (::ftruncate(raw_, at) == 0 && !old.empty()) write(at, old);
      throw;
    }
  }

 private:
  void write(off_t at, const std::string& text) const {
    for (std::size_t done = 0; done < text.size();) {
      const auto count = ::pwrite(raw_, text.data() + done, text.size() - done, at + static_cast<off_t>(done));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) throw DataError(name_ + ": cannot write: " + system_message(), "is the disk full?");
      done += static_cast<std::size_t>(count);
    }
  }

  std::string name_;
  int raw_ = -1;
};

/// The last line that is not blank, of what lies between `begin` and `end`.
struct LastLine {
  std::string text;  ///< empty: there is none
  off_t at = 0;
  bool whole = false;  ///< its end is there
};

LastLine last_line(const LogFile& file, off_t begin, off_t end) {
  constexpr const char* kBlanks = " \t\r\n";
  LastLine found{"", begin, true};
  off_t from = end;
  for (off_t block = 1 << 16; from > begin; block *= 2) {
    from = std::max(begin, end - block);
    const std::string tail = file.read(from, end);
    const auto last = tail.find_last_not_of(kBlanks);
    if (last == tail.npos) continue;
    const auto start = tail.rfind('\n', last);
    if (start == tail.npos && from > begin) continue;
    const std::size_t first = start + 1;  // npos + 1 is 0
    return {tail.substr(first, last + 1 - first), from + static_cast<off_t>(first), tail.find('\n', last) != tail.npos};
  }
  return found;
}

/// What a log says; an empty file says nothing.
struct Seen {
  Json header = nullptr;
  off_t end = 0;            ///< of what is kept
  bool ends_line = true;    ///< the last line that is kept has its end
  std::size_t dropped = 0;  ///< bytes of a line that was cut off
};

std::string word(const Json& json, const char* key) {
  const auto value = json.is_object() ? json.find(key) : json.end();
  return json.is_object() && value != json.end() && value->is_string() ? value->get<std::string>() : "";
}

Seen look_at(const LogFile& file, const std::string& name, Index epoch) {
  const off_t size = file.size();
  Seen seen;
  if (size == 0) return seen;
  std::string head;
  for (off_t at = 0; at < size && head.find('\n') == head.npos; at = static_cast<off_t>(head.size()))
    head += file.read(at, std::min<off_t>(size, at + (1 << 16)));
  const std::size_t first_end = std::min(head.find('\n'), head.size());
  seen.header = Json::parse(head.substr(0, first_end), nullptr, false);
  if (word(seen.header, "schema") != kSchema)
    throw DataError(name + ": is there and no log of a run",
                    fmt::format("name another file; a log begins with a line of the schema {}", kSchema));
  if (word(seen.header.value("tool", Json()), "name") != kTool || !seen.header.contains("model"))
    throw DataError(name + ": is the log of another program",
                    "that one goes on with it; name another file for what is measured here");
  seen.end = size;
  if (first_end == head.size()) {
    seen.ends_line = false;
    return seen;
  }
  const off_t begin = static_cast<off_t>(first_end) + 1;
  LastLine last = last_line(file, begin, size);
  Json step = Json::parse(last.text, nullptr, false);
  if (!last.whole && !step.is_object()) {  // a kill has cut it off
    seen.dropped = static_cast<std::size_t>(size - last.at);
    seen.end = last.at;
    last = last_line(file, begin, last.at);
    step = Json::parse(last.text, nullptr, false);
  }
  seen.ends_line = last.whole;
  if (last.text.empty()) return seen;
  if (word(step, "type") == "end") throw DataError(name + ": the run has ended", "name another file for another run");
  if (word(step, "type") != "step" || !step.contains("epoch") || !step["epoch"].is_number())
    throw DataError(name + ": its last line is no step of an epoch", "name another file");
  if (step["epoch"].get<double>() >= static_cast<double>(epoch))
    throw DataError(
        fmt::format("{}: holds epoch {} already, so epoch {} cannot follow", name, step["epoch"].dump(), epoch),
        "steps come in the order of their epochs; name another file for another run");
  return seen;
}

/// Throws DataError unless both say the same under these keys.
void compare(const std::string& name, const Json& was, const Json& is, std::initializer_list<const char*> keys) {
  const auto shown = [](const Json& object, const char* key) {
    return object.contains(key) ? object[key].dump() : std::string("not given");
  };
  for (const char* key : keys) {
    if (was.contains(key) == is.contains(key) && (!was.contains(key) || was[key] == is[key])) continue;
    std::string what = fmt::format("{} is {} there, {} here", key, shown(was, key), shown(is, key));
    if (was.contains(key) && is.contains(key) && was[key].is_array() && was[key].size() == is[key].size())
      for (std::size_t k = 0; k < was[key].size(); ++k)
        if (was[key][k] != is[key][k]) {
          what = fmt::format("{}[{}] is {} there, {} here", key, k, was[key][k].dump(), is[key][k].dump());
          break;
        }
    throw DataError(name + ": is the log of another run: " + what, "name another file for this run");
  }
}

}  // namespace

RunLog::RunLog(LogOptions options, const RunOptions& run) : options_(std::move(options)) {
  constexpr Index kLastEpoch = Index{1} << 53;  // beyond, two epochs may be one double
  const auto& [file, epoch, loss] = options_;
  if (file.empty() && !epoch && !loss) return;
  if (file.empty() || !epoch)
    throw UsageError(file.empty() ? "--epoch and --loss are for a --log" : "--log needs the --epoch of this step",
                     "for every measured epoch: --log run.jsonl --epoch 7, with --loss if it is known");
  if (file == "-") throw UsageError("a log is a file, not standard output", "write ./- for one named -");
  if (*epoch > kLastEpoch) throw UsageError(fmt::format("--epoch is {}, must be at most {}", *epoch, kLastEpoch));
  if (loss && !std::isfinite(*loss)) throw UsageError(fmt::format("--loss is {}", *loss), "leave it out");
  check_output(file);
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) return;
  const Seen seen = look_at(LogFile(file, O_RDONLY), file, *epoch);
  if (seen.header.is_null()) return;
  compare(file, seen.header, {{"convention", std::string(to_string(run.convention))}}, {"convention"});
  compare(file, seen.header["model"], model_of(run), {"layers", "with_bias", "lambda_w", "lambda_h"});
}

void RunLog::append(const Report& report) const {
  const auto& [name, epoch, loss] = options_;
  if (name.empty()) return;
  const Json header = header_of(report);
  const LogFile file(name, O_RDWR | O_CREAT);
  file.lock();
  const Seen seen = look_at(file, name, *epoch);
  std::string text;
  if (seen.header.is_null()) {
    text = line_of(header);
  } else {
    compare(name, seen.header, header, {"convention", "precision"});
    compare(name, seen.header["model"], header["model"],
            {"K", "width", "counts", "layers", "with_bias", "lambda_w", "lambda_h"});
    if (!seen.ends_line) text = "\n";
  }
  file.replace_end(seen.end, text + step_of(report, *epoch, loss));
  if (seen.dropped > 0)
    fmt::print(stderr, "ncollapse: note: {}: its last line, {} bytes, was cut off and is dropped\n", name,
               seen.dropped);
}

}  // namespace ncollapse::cli
