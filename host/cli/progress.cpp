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

bool ProgressBar::due(bool last) {
  const auto now = Clock::now();
  const bool bar = style_ == Style::bar;
  if (now - last_ < std::chrono::milliseconds(bar ? 100 : 10000) && !(bar && last)) return false;
  last_ = now;
  return true;
}

void ProgressBar::draw(const std::string& title, double share, const std::string& rest) {
  if (style_ == Style::lines) {
    fmt::print(stderr, "{}: {:.0f} %  {}\n", title, share * 100, rest);
    std::fflush(stderr);
    return;
  }
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(std::min(share, 1.0) * kWidth);
  fmt::print(stderr, "\r{:<20} [{}{}] {:3.0f} %  {}\033[K", title, std::string(filled, '#'),
             std::string(kWidth - filled, '.'), share * 100, rest);
  std::fflush(stderr);
  shown_ = true;
}

void ProgressBar::update(const Progress& progress) {
  if (style_ == Style::none) return;
  if (progress.pass != pass_) {
    pass_ = progress.pass;
    pass_start_ = Clock::now();
    if (style_ == Style::bar) last_ = {};  // a new bar at once
  }
  if (!due(progress.rows_done >= progress.rows_total)) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - pass_start_).count();
  const double share = progress.rows_total > 0 ? static_cast<double>(progress.rows_done) / progress.rows_total : 1.0;
  std::string rate;
  if (seconds > 0.2) {  // before that the rate is noise
    const double bytes_per_second = static_cast<double>(progress.bytes_done) / seconds;
    rate = fmt::format("  {:.2f} GB/s, {} left", bytes_per_second * 1e-9,
                       duration(seconds * (1 - share) / std::max(share, 1e-9)));
  }
  draw(pass_, share, fmt::format("{} of {} rows{}", progress.rows_done, progress.rows_total, rate));
}

void ProgressBar::update(const SimulationStep& step, Index iterations) {
  if (style_ == Style::none || !due(step.iteration == iterations)) return;
  draw(fmt::format("iteration {}", step.iteration),
       static_cast<double>(step.iteration) / static_cast<double>(iterations),
       fmt::format("loss {:.10g}, {:.3g} above the minimum", step.loss, step.gap));
}

void ProgressBar::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace ncollapse::cli
