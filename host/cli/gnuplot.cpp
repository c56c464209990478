#include "host/cli/gnuplot.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>
#include <system_error>

#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

std::string message(int code) { return std::error_code(code, std::generic_category()).message(); }

void check(int code, std::string_view what) {
  if (code != 0) throw Error(ErrorKind::internal, fmt::format("cannot start gnuplot: {}: {}", what, message(code)));
}

/// Where gnuplot's complaints come out.
class Pipe {
 public:
  Pipe() { check(pipe2(ends_.data(), O_CLOEXEC) == 0 ? 0 : errno, "pipe"); }
  ~Pipe() {
    for (int& end : ends_) close_end(end);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  int writer() const { return ends_[1]; }

  /// Everything until the child has closed its end.
  std::string read_all() {
    close_end(ends_[1]);
    std::string text;
    std::array<char, 4096> buffer;
    for (ssize_t got; (got = read(ends_[0], buffer.data(), buffer.size())) != 0;) {
      if (got > 0)
        text.append(buffer.data(), static_cast<std::size_t>(got));
      else if (errno != EINTR)
        break;
    }
    return text;
  }

 private:
  static void close_end(int& end) {
    if (end >= 0) close(end);
    end = -1;
  }
  std::array<int, 2> ends_{-1, -1};
};

/// What the child does before it becomes gnuplot.
class FileActions {
 public:
  FileActions() { check(posix_spawn_file_actions_init(&raw_), "file actions"); }
  ~FileActions() { posix_spawn_file_actions_destroy(&raw_); }
  FileActions(const FileActions&) = delete;
  FileActions& operator=(const FileActions&) = delete;
  posix_spawn_file_actions_t* get() { return &raw_; }

 private:
  posix_spawn_file_actions_t raw_;
};

}  // namespace

void run_gnuplot(const std::string& folder, const std::string& script, const std::string& remark) {
  Pipe errors;
  FileActions actions;
  check(posix_spawn_file_actions_addchdir_np(actions.get(), folder.c_str()), folder);
  check(posix_spawn_file_actions_addopen(actions.get(), STDIN_FILENO, "/dev/null", O_RDONLY, 0), "/dev/null");
  check(posix_spawn_file_actions_addopen(actions.get(), STDOUT_FILENO, "/dev/null", O_WRONLY, 0), "/dev/null");
  check(posix_spawn_file_actions_adddup2(actions.get(), errors.writer(), STDERR_FILENO), "stderr");
  std::string program = "gnuplot", default_settings = "-d", argument = script;  // -d: not those of the user's own file
  const std::array<char*, 4> arguments{program.data(), default_settings.data(), argument.data(), nullptr};
  pid_t child = 0;
  const int status = posix_spawnp(&child, program.c_str(), actions.get(), nullptr, arguments.data(), environ);
  if (status == ENOENT)
    throw Error(ErrorKind::internal, "gnuplot, which draws the pictures, is not installed (not found in PATH)",
                "install the package gnuplot-nox (Debian, Ubuntu) or gnuplot" + (remark.empty() ? "" : "; " + remark));
  check(status, "posix_spawn");
  const std::string said = errors.read_all();
  int ended = 0;
  while (waitpid(child, &ended, 0) < 0)
    if (errno != EINTR) throw Error(ErrorKind::internal, "lost sight of gnuplot: " + message(errno));
  if (WIFEXITED(ended) && WEXITSTATUS(ended) == 0) return;
  throw Error(
      ErrorKind::internal,
      fmt::format("gnuplot failed on {} ({} {}): {}", script, WIFEXITED(ended) ? "exit code" : "signal",
                  WIFEXITED(ended) ? WEXITSTATUS(ended) : WTERMSIG(ended), said.empty() ? "it said nothing" : said),
      remark);
}

}  // namespace ncollapse::cli
