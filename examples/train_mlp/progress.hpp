// How far a run has come, on stderr: a bar on a terminal, else a line now and then.
#pragma once

#include <chrono>
#include <optional>

#include "options.hpp"

namespace train_mlp {

class Progress {
 public:
  /// `first` is the epoch at which this process begins.
  Progress(bool quiet, Index first, Index epochs);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  struct State {
    double loss, gap, accuracy;  ///< at the last measured epoch, once there is one
  };
  void update(Index epoch, const std::optional<State>& state);
  void clear();  ///< takes the bar away

 private:
  using Clock = std::chrono::steady_clock;
  bool quiet_, terminal_, shown_ = false;
  Index first_, epochs_;
  Clock::time_point start_, last_;
};

}  // namespace train_mlp
