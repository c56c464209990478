#include "host/cli/interrupt.hpp"

#include <csignal>
#include <initializer_list>

namespace ncollapse::cli {

namespace {

volatile std::sig_atomic_t signalled = 0;

}  // namespace

void catch_interrupts() {
  struct sigaction on_interrupt = {};
  on_interrupt.sa_handler = [](int) { signalled = 1; };
  on_interrupt.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &on_interrupt, nullptr);  // job systems send SIGTERM
}

bool interrupted() { return signalled != 0; }

}  // namespace ncollapse::cli
