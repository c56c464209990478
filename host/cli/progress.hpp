// A progress bar on stderr, for terminals only: rows, rate, time left. At most ten updates a second.
#pragma once

#include <chrono>
#include <string>

#include "ncollapse/analysis.hpp"

namespace ncollapse::cli {

class ProgressBar {
 public:
  explicit ProgressBar(bool enabled) : enabled_(enabled) {}
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(const Progress& progress);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  bool enabled_;
  bool shown_ = false;
  std::string pass_;
  Clock::time_point pass_start_, last_;
};

}  // namespace ncollapse::cli
