#include "host/cli/row_range.hpp"

#include <fmt/core.h>

namespace ncollapse::cli {

RowRange parse_rows(const std::string& text) {
  if (text.empty()) return {};
  const std::string wrong = fmt::format("--rows: '{}' is not a range of rows", text),
                    right = "write --rows FIRST:END for the rows FIRST to END - 1, counted from 0";
  const auto colon = text.find(':');
  if (colon == std::string::npos) throw UsageError(wrong, right);
  RowRange range;
  const std::string_view first = std::string_view(text).substr(0, colon),
                         end = std::string_view(text).substr(colon + 1);
  if (!first.empty()) range.first = parse_number<Index>(first, wrong, right);
  if (!end.empty()) range.end = parse_number<Index>(end, wrong, right);
  if (range.first < 0 || (!end.empty() && range.end <= range.first)) throw UsageError(wrong, right);
  return range;
}

void add_rows_option(CLI::App& command, std::string& text) {
  command
      .add_option("--rows", text,
                  "Only the rows FIRST to END - 1 of all files together, counted from 0; either may be left out")
      ->type_name("FIRST:END");
}

}  // namespace ncollapse::cli
