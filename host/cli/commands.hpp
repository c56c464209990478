// The subcommands. Each one adds itself to the parser; its callback runs when the user chose it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace ncollapse::cli {

/// What every subcommand shares.
struct Common {
  std::string json;  ///< where JSON goes: empty: nowhere, "-": stdout
  bool quiet = false;
};

/// For options that count something.
inline const CLI::Validator kAtLeastOne(
    [](std::string& text) {
      long long value = 0;
      return CLI::detail::lexical_cast(text, value) && value >= 1
                 ? std::string()
                 : "'" + text + "' must be a whole number of at least 1";
    },
    "");

void add_analyze(CLI::App& app, Common& common);
void add_devices(CLI::App& app, Common& common);
void add_predict(CLI::App& app, Common& common);
void add_simulate(CLI::App& app, Common& common);
void add_metrics(CLI::App& app, Common& common);

}  // namespace ncollapse::cli
