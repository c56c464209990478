// A progress bar on stderr, for terminals only. At most ten updates a second.
#pragma once

#include <chrono>
#include <string>

#include "ncollapse/analysis.hpp"
#include "ncollapse/ufm.hpp"

namespace ncollapse::cli {

class ProgressBar {
 public:
  explicit ProgressBar(bool enabled) : enabled_(enabled) {}
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

  bool enabled_;
  bool shown_ = false;
  std::string pass_;
  Clock::time_point pass_start_, last_;
};

}  // namespace ncollapse::cli
