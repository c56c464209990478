#include "host/cli/interrupt.hpp"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <exception>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string>

#include "host/cli/output.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cli {

namespace {

volatile std::sig_atomic_t signalled = 0;
bool errors_as_json = false;

/// The file that is mapped there to be read; empty when none is.
std::string file_at(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {  // "7f00-7f10 r--s 00001000 fe:00 1234   /a/path"
    std::istringstream words(line);
    std::uintptr_t begin = 0, end = 0;
    std::string access, skipped, path;
    words >> std::hex >> begin;
    words.ignore(1);
    words >> end >> access >> skipped >> skipped >> skipped >> std::ws;
    if (wanted < begin || wanted >= end) continue;
    std::getline(words, path);
    return access.starts_with("r-") ? path : "";
  }
  return "";
}

/// The thread has stopped at the very instruction that reads a sample, in no function that holds a lock, so all of the
/// language may be used here; other threads that come to the same hole wait for the end. A signal that somebody sent,
/// or that comes of other memory (a full /dev/shm), ends the process as it would without this.
void report_lost_file(int signal, siginfo_t* info, void*) {
  static std::atomic_flag reported;
  while (reported.test_and_set()) pause();
  const std::string file = info->si_code == BUS_ADRERR ? file_at(info->si_addr) : "";
  if (file.empty()) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    return;
  }
  const DataError error(file + ": a part of it that was there can be read no more",
                        "was it cut off, or written anew, while it was read?");
  _exit(report_error(std::make_exception_ptr(error), errors_as_json));
}

}  // namespace

void catch_interrupts() {
  struct sigaction on_interrupt = {};
  on_interrupt.sa_handler = [](int) { signalled = 1; };
  on_interrupt.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &on_interrupt, nullptr);  // job systems send SIGTERM
}

void catch_lost_files(bool json_errors) {
  errors_as_json = json_errors;
  struct sigaction on_lost = {};
  on_lost.sa_sigaction = report_lost_file;
  on_lost.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &on_lost, nullptr);
}

bool interrupted() { return signalled != 0; }

}  // namespace ncollapse::cli
