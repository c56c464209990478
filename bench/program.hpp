// What the benchmark programs beside the suite share: times, memory, and results on a terminal and as JSON.
#pragma once

#include <chrono>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "ncollapse/context.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::bench {

/// One case of a measurement: named numbers, and the threads and the device it had.
struct Result {
  std::string name, device;
  int threads = 1;
  std::vector<std::pair<std::string, double>> numbers;
};

template <class Call>
double seconds(const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// A line of /proc/self/status that is given in kB: "VmRSS", or "VmHWM", the most since reset_peak().
inline double status_mib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key + ":")) return std::stod(line.substr(key.size() + 1)) / 1024;
  return 0;
}
inline void reset_peak() { std::ofstream("/proc/self/clear_refs") << 5; }

inline void print(const Result& result) {
  std::cout << result.name << " on " << result.device << ", " << result.threads << " threads\n";
  for (const auto& [key, number] : result.numbers)
    std::cout << "  " << std::left << std::setw(32) << key << std::setprecision(6) << number << "\n";
}

/// `load`: of the machine, before. Throws DataError when the file cannot be written.
inline void write_json(const std::string& path, const std::string& commit, double load,
                       const std::vector<Result>& results) {
  std::ofstream out(path);
  out << "{\"processor\": \"" << devices().front().name << "\", \"commit\": \"" << commit
      << "\", \"load_before\": " << load << ",\n \"results\": [";
  const char* comma = "";
  for (const Result& result : results) {
    out << comma << "\n  {\"name\": \"" << result.name << "\", \"device\": \"" << result.device
        << "\", \"threads\": " << result.threads;
    for (const auto& [key, value] : result.numbers) out << ", \"" << key << "\": " << std::setprecision(12) << value;
    out << "}";
    comma = ",";
  }
  out << "\n ]}\n";
  if (!out.flush()) throw DataError(path + " cannot be written");
}

}  // namespace ncollapse::bench
