// Sums over numbers on the host, in their order, and numbers in messages.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <span>
#include <string>

namespace ncollapse {

inline double sum(std::span<const double> values) { return std::accumulate(values.begin(), values.end(), 0.0); }

inline double norm(std::span<const double> values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

/// 0 for what rounding has carried below it; a NaN stays one.
inline double at_least_zero(double value) { return value < 0 ? 0 : value; }

inline std::string text_of(double value, int digits = 6) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", digits, value);
  return text;
}

/// "512 B", "1.5 GiB".
inline std::string size_text(std::int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024; ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

}  // namespace ncollapse
