// Runs the command as a user does, and keeps what it printed.
#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/io/array_writers.hpp"

namespace ncollapse::test {

struct Outcome {
  int exit_code = -1;  ///< negative: the signal that ended it
  std::string out, err;
  long peak_kib = 0;  ///< largest resident size
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The command while it runs.
class RunningCommand {
 public:
  /// `address_space` > 0 limits the child's address space to that many bytes.
  explicit RunningCommand(const std::vector<std::string>& arguments, rlim_t address_space = 0,
                          const char* program = NCOLLAPSE_COMMAND) {
    std::vector<char*> argv{const_cast<char*>(program)};
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    child_ = fork();
    if (child_ < 0) throw std::runtime_error("fork failed");
    if (child_ > 0) return;
    const int to_out = open(out_.c_str(), O_WRONLY | O_CREAT, 0600),
              to_err = open(err_.c_str(), O_WRONLY | O_CREAT, 0600);
    dup2(to_out, STDOUT_FILENO);
    dup2(to_err, STDERR_FILENO);
    if (address_space > 0) {
      const rlimit limit{address_space, address_space};
      if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(126);
    }
    execv(argv[0], argv.data());
    _exit(127);
  }

  void signal(int number) const { kill(child_, number); }

  /// To be called once, for a child must not be left behind.
  Outcome wait() {
    int status = 0;
    rusage usage{};
    if (wait4(child_, &status, 0, &usage) != child_) throw std::runtime_error("wait4 failed");
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), read_file(out_), read_file(err_),
            usage.ru_maxrss};
  }

 private:
  TemporaryDirectory folder_;
  std::string out_ = folder_.path("out"), err_ = folder_.path("err");
  pid_t child_ = -1;
};

inline Outcome run_command(const std::vector<std::string>& arguments, rlim_t address_space = 0) {
  return RunningCommand(arguments, address_space).wait();
}

}  // namespace ncollapse::test
