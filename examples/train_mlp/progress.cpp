#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <string>

namespace train_mlp {

namespace {

std::string duration(double seconds) {
  const auto total = static_cast<long>(seconds + 0.5);
  if (total < 60) return fmt::format("{} s", total);
  if (total < 3600) return fmt::format("{} min {:02} s", total / 60, total % 60);
  return fmt::format("{} h {:02} min", total / 3600, total % 3600 / 60);
}

}  // namespace

Progress::Progress(bool quiet, Index first, Index epochs)
    : quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1), first_(first), epochs_(epochs), start_(Clock::now()) {}

void Progress::update(Index epoch, const std::optional<State>& state) {
  const auto now = Clock::now();
  const auto pause = terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000);
  if (quiet_ || (now - last_ < pause && epoch != epochs_)) return;
  last_ = now;
  const double done = static_cast<double>(epoch - first_), left = static_cast<double>(epochs_ - epoch);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  std::string text = fmt::format("epoch {} of {}", epoch, epochs_);
  if (state)
    text += fmt::format("  loss {:.6g}, {:.3g} above the minimum, accuracy {:.4g}", state->loss, state->gap,
                        state->accuracy);
  if (done > 0) text += fmt::format(", {} left", duration(seconds * left / done));
  if (!terminal_) {
    fmt::print(stderr, "{}\n", text);
    return;
  }
  constexpr int kWidth = 20;
  const auto filled = epochs_ > 0 ? static_cast<std::size_t>(kWidth * epoch / epochs_) : kWidth;
  fmt::print(stderr, "\r[{}{}] {}\033[K", std::string(filled, '#'), std::string(kWidth - filled, '.'), text);
  std::fflush(stderr);
  shown_ = true;
}

void Progress::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace train_mlp
