// --rows FIRST:END
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <string>
#include <string_view>

#include "ncollapse/error.hpp"
#include "ncollapse/file_list.hpp"

namespace ncollapse::cli {

/// The whole of `text` as a number; else throws UsageError(wrong, right).
template <class Number>
Number parse_number(std::string_view text, const std::string& wrong, const std::string& right) {
  Number value = 0;
  const auto [stop, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{} || stop != text.data() + text.size()) throw UsageError(wrong, right);
  return value;
}

/// "FIRST:END", either of them may be left out; "" is every row.
RowRange parse_rows(const std::string& text);
void add_rows_option(CLI::App& command, std::string& text);

}  // namespace ncollapse::cli
