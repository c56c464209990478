// Runs the command as a user does, and keeps what it printed.
#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>
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

/// `address_space` > 0 limits the child's address space to that many bytes.
inline Outcome run_command(const std::vector<std::string>& arguments, rlim_t address_space = 0) {
  const TemporaryDirectory folder;
  const std::string out = folder.path("out"), err = folder.path("err");
  std::vector<char*> argv{const_cast<char*>(NCOLLAPSE_COMMAND)};
  for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int to_out = open(out.c_str(), O_WRONLY | O_CREAT, 0600),
              to_err = open(err.c_str(), O_WRONLY | O_CREAT, 0600);
    dup2(to_out, STDOUT_FILENO);
    dup2(to_err, STDERR_FILENO);
    if (address_space > 0) {
      const rlimit limit{address_space, address_space};
      if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(126);
    }
    execv(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  rusage usage{};
  if (wait4(child, &status, 0, &usage) != child) throw std::runtime_error("wait4 failed");
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), read_file(out), read_file(err), usage.ru_maxrss};
}

}  // namespace ncollapse::test
