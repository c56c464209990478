// The subcommands. Each one adds itself to the parser; its callback runs when the user chose it.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

#include "ncollapse/error.hpp"

namespace ncollapse::cli {

class Ranks;

/// What every subcommand shares.
struct Common {
  std::string json;  ///< where JSON goes: empty: nowhere, "-": stdout
  bool quiet = false;
  Ranks* ranks = nullptr;  ///< never null in a subcommand
};

/// Why `text` is no whole number from `least` up that Number can hold; empty when it is. Leading zeros are taken away,
/// as CLI11 would take the number for an octal one.
template <class Number>
std::string whole_number(std::string& text, Number least) {
  Number value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, status] = std::from_chars(text.data(), end, value);
  if (status == std::errc::result_out_of_range && stop == end) return "'" + text + "' is out of range";
  if (status == std::errc{} && stop == end && value >= least) {
    text = std::to_string(value);
    return {};
  }
  return "'" + text + "' must be a whole number of at least " + std::to_string(least);
}

/// The whole of `text` as a number; else throws UsageError(wrong, right).
template <class Number>
Number parse_number(std::string_view text, const std::string& wrong, const std::string& right) {
  Number value = 0;
  const auto [stop, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || stop != text.data() + text.size()) throw UsageError(wrong, right);
  return value;
}

/// For options that count something; given to transform(), for what is left of the text.
inline const CLI::Validator kAtLeastOne([](std::string& text) { return whole_number<std::int64_t>(text, 1); }, "");
inline const CLI::Validator kFromZero([](std::string& text) { return whole_number<std::int64_t>(text, 0); }, "");

void add_accumulate(CLI::App& app, Common& common);
void add_analyze(CLI::App& app, Common& common);
void add_bench(CLI::App& app, Common& common);
void add_devices(CLI::App& app, Common& common);
void add_finalize(CLI::App& app, Common& common);
void add_merge(CLI::App& app, Common& common);
void add_plan(CLI::App& app, Common& common);
void add_plot(CLI::App& app, Common& common);
void add_predict(CLI::App& app, Common& common);
void add_report(CLI::App& app, Common& common);
void add_simulate(CLI::App& app, Common& common);
void add_metrics(CLI::App& app, Common& common);

}  // namespace ncollapse::cli
