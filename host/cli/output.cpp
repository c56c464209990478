#include "host/cli/output.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>

#include "host/cli/ranks.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

constexpr int kInterruptedExit = 130;

int print_error(int code, const std::string& message, const std::string& hint, bool as_json) {
  if (as_json) {
    nlohmann::ordered_json json;
    json["error"] = {{"code", code}, {"message", message}, {"hint", hint}};
    std::cerr << json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << std::endl;
  } else {
    fmt::print(stderr, "ncollapse: error: {}\n", message);
    if (!hint.empty()) fmt::print(stderr, "  hint: {}\n", hint);
  }
  return code;
}

}  // namespace

std::string printable(const std::string& text) {
  using Json = nlohmann::json;
  std::string clean = Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
  for (char& c : clean)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return clean;
}

void check_output(const std::string& path) {
  if (path.empty() || path == "-") return;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw DataError(path + ": is a directory", "name a file to write");
  const auto folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder, ignored))
    throw DataError(path + ": the folder " + folder.string() + " does not exist", "create it first");
}

void part_outputs(const std::string& option, const std::string& path, const std::string& other_option,
                  const std::string& other) {
  if (path.empty() || other.empty()) return;
  if (path == "-" && other == "-")
    throw UsageError(option + " - and " + other_option + " - cannot share standard output", "give one of them a file");
  std::error_code ignored;
  const auto place = [&](const std::string& name) {
    return std::filesystem::weakly_canonical(std::filesystem::absolute(name, ignored), ignored);
  };
  const bool special = std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored);
  if (!special && place(path) == place(other))
    throw UsageError(option + " and " + other_option + " name one file, " + path, "give each its own");
}

namespace {

/// What a link leads to is replaced, not the link. But links of the system stand for open files (/dev/stdout).
std::string behind_link(const std::string& path) {
  constexpr int kMostLinks = 40;  // as the system
  std::error_code status;
  if (!std::filesystem::is_symlink(path, status)) return path;
  std::filesystem::path at = std::filesystem::absolute(path, status);
  for (int links = 0; links < kMostLinks && std::filesystem::is_symlink(at, status); ++links) {
    const auto folder = std::filesystem::canonical(at.parent_path(), status);
    const std::string place = folder.string() + "/";
    if (place.starts_with("/proc/") || (place.starts_with("/dev/") && !place.starts_with("/dev/shm/"))) return path;
    at = folder / std::filesystem::read_symlink(at, status);
    if (status) return path;
  }
  return std::filesystem::is_symlink(at, status) ? path : at.string();
}

}  // namespace

void write_output(const std::string& name, const std::string& text) {
  if (name == "-") {
    std::cout << text << std::flush;
    if (!std::cout) throw DataError("cannot write to standard output");
    return;
  }
  // A regular file is replaced as a whole; a pipe or a device is written where it is.
  const std::string path = behind_link(name);
  std::error_code ignored;
  const auto old = std::filesystem::symlink_status(path, ignored);
  bool replace =
      old.type() == std::filesystem::file_type::not_found || old.type() == std::filesystem::file_type::regular;
  const std::string temporary = replace ? path + ".tmp" + std::to_string(getpid()) : path;
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  if (!file && path != name) {  // a folder that is not ours, behind a link
    replace = false;
    file.clear();
    file.open(path, std::ios::binary | std::ios::trunc);
  }
  if (file && replace && old.type() == std::filesystem::file_type::regular)  // who may read the old one
    std::filesystem::permissions(temporary, old.permissions(), ignored);
  file << text << std::flush;
  if (file) file.close();  // some file systems tell only now that there is no room
  const bool written = static_cast<bool>(file);
  const int reason = errno;
  std::error_code status;
  if (written && replace) std::filesystem::rename(temporary, path, status);
  if (!written || status) {
    if (replace) std::filesystem::remove(temporary, ignored);
    throw DataError(name + ": cannot write: " +
                    (written ? status.message() : std::error_code(reason, std::generic_category()).message()));
  }
}

void spare_inputs(const std::vector<FileList>& inputs, const std::string& option, const std::string& output) {
  if (output.empty() || output == "-") return;
  for (const FileList& list : inputs)
    for (const auto& spec : expand(list)) {
      std::string path = spec;
      std::error_code ignored;
      while (!path.empty() && !std::filesystem::exists(path, ignored)) {  // the key, though a path may hold colons, too
        const auto colon = path.rfind(':');
        path.resize(colon == path.npos ? 0 : colon);
      }
      if (std::filesystem::equivalent(path, output, ignored))
        throw UsageError(path + " is read, and " + option + " would replace it", "name another file for the output");
    }
}

void write_report(const Report& report, const std::string& json, const std::string& csv, bool quiet) {
  if (!json.empty()) write_output(json, to_json(report) + "\n");
  if (!csv.empty()) write_output(csv, to_csv(report));
  if (quiet || json == "-" || csv == "-") return;
  std::string table = to_table(report, wants_colour(STDOUT_FILENO));
  for (const auto& [kind, path] : {std::pair{"JSON", json}, std::pair{"CSV", csv}})
    if (!path.empty()) table += fmt::format("\n{} written to {}\n", kind, path);
  write_output("-", table);
}

LineWriter::LineWriter(const std::string& path) : path_(path) {
  if (path == "-") return;
  file_.open(path, std::ios::binary | std::ios::trunc);
  if (!file_) throw DataError(path + ": cannot write: " + std::error_code(errno, std::generic_category()).message());
}

void LineWriter::write(const std::string& line) {
  if (path_ == "-") return write_output(path_, line + "\n");
  file_ << line + "\n" << std::flush;
  if (!file_) throw DataError(path_ + ": cannot write: " + std::error_code(errno, std::generic_category()).message());
}

bool wants_colour(int descriptor) {
  const char* no_colour = std::getenv("NO_COLOR");
  // mpirun gives its processes a terminal of their own, whatever its own output is.
  return isatty(descriptor) == 1 && launched_ranks() == 0 && (no_colour == nullptr || *no_colour == '\0');
}

int report_error(std::exception_ptr error, bool as_json, const std::string& who) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return print_error(static_cast<int>(e.kind()), who + e.what(), e.hint(), as_json);
  } catch (const Interrupted& e) {
    return print_error(kInterruptedExit, who + e.what(), "", as_json);
  } catch (const std::bad_alloc&) {
    return print_error(static_cast<int>(ErrorKind::device), who + "out of memory",
                       "analyze, accumulate: try a smaller --batch-rows; simulate: a smaller --dim", as_json);
  } catch (const std::exception& e) {
    return print_error(static_cast<int>(ErrorKind::internal), who + e.what(), "", as_json);
  }
}

}  // namespace ncollapse::cli
