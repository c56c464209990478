#include "host/cli/progress.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>

namespace ncollapse::cli {

namespace {

std::string duration(double seconds) {
  const auto total = static_cast<long>(seconds + 0.5);
  if (total < 60) return fmt::format("{} s", total);
  if (total < 3600) return fmt::format("{} min {:02} s", total / 60, total % 60);
  return fmt::format("{} h {:02} min", total / 3600, total % 3600 / 60);
}

}  // namespace

void ProgressBar::update(const Progress& progress) {
  if (!enabled_) return;
  const auto now = Clock::now();
  if (progress.pass != pass_) {
    pass_ = progress.pass;
    pass_start_ = now;
    last_ = now - std::chrono::seconds(1);
  }
  if (now - last_ < std::chrono::milliseconds(100) && progress.rows_done < progress.rows_total) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - pass_start_).count();
  const double share = progress.rows_total > 0 ? static_cast<double>(progress.rows_done) / progress.rows_total : 1.0;
  std::string rate;
  if (seconds > 0.2) {  // before that the rate is noise
    const double bytes_per_second = static_cast<double>(progress.bytes_done) / seconds;
    rate = fmt::format("  {:.2f} GB/s, {} left", bytes_per_second * 1e-9,
                       duration(seconds * (1 - share) / std::max(share, 1e-9)));
  }
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(share * kWidth);
  fmt::print(stderr, "\r{:<20} [{}{}] {:3.0f} %  {} of {} rows{}\033[K", pass_, std::string(filled, '#'),
             std::string(kWidth - filled, '.'), share * 100, progress.rows_done, progress.rows_total, rate);
  std::fflush(stderr);
  shown_ = true;
}

void ProgressBar::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace ncollapse::cli
