// Progress on stderr: a bar on a terminal, at most ten updates a second; or lines, at most one in ten seconds.
#pragma once

#include <chrono>
#include <string>

#include "ncollapse/analysis.hpp"
#include "ncollapse/ufm.hpp"

namespace ncollapse::cli {

class ProgressBar {
 public:
  enum class Style { none, bar, lines };

  explicit ProgressBar(bool bar) : ProgressBar(bar ? Style::bar : Style::none) {}
  explicit ProgressBar(Style style) : style_(style) {}
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(const Progress& progress);                      ///< rows, rate, time left
  void update(const SimulationStep& step, Index iterations);  ///< iteration, loss, gap
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool due(bool last);
  void draw(const std::string& title, double share, const std::string& rest);

  Style style_;
  bool shown_ = false;
  std::string pass_;
  Clock::time_point pass_start_, last_ = Clock::now();
};

}  // namespace ncollapse::cli
