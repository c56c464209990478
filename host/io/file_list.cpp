#include "ncollapse/file_list.hpp"

#include <glob.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; }

/// Takes a run of digits off the front; without its leading zeros, so that a longer one is a larger number.
std::string_view take_number(std::string_view& text) {
  const auto begin = std::min(text.find_first_not_of('0'), text.size());
  std::size_t end = begin;
  while (end < text.size() && is_digit(text[end])) ++end;
  const auto number = text.substr(begin, end - begin);
  text.remove_prefix(end);
  return number;
}

/// Numbers inside names by their value. (strverscmp takes digits behind a zero as a fraction: 010 before 09.)
bool natural_less(const std::string& left, const std::string& right) {
  std::string_view a = left, b = right;
  while (!a.empty() && !b.empty()) {
    if (is_digit(a.front()) && is_digit(b.front())) {
      const auto x = take_number(a), y = take_number(b);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
    } else {
      if (a.front() != b.front()) return a.front() < b.front();
      a.remove_prefix(1);
      b.remove_prefix(1);
    }
  }
  if (a.empty() != b.empty()) return a.empty();
  return left < right;  // they differ in leading zeros at most
}

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found = {};
  std::vector<std::string> paths;
  if (::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0)
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  std::sort(paths.begin(), paths.end(), natural_less);
  return paths;
}

std::vector<std::string> expand_one(const std::string& spec) {
  if (spec.find_first_of("*?[") == std::string::npos) return {spec};
  std::error_code ignored;
  // A key may hold ':' too; the shortest one wins whose left side names files, as in ArrayFile::open.
  for (auto end = spec.size(); end != std::string::npos && end > 0; end = spec.rfind(':', end - 1)) {
    const std::string path = spec.substr(0, end);
    if (std::filesystem::exists(path, ignored)) return {spec};
    std::vector<std::string> found = matches(path);
    for (auto& file : found) file += spec.substr(end);
    if (!found.empty()) return found;
  }
  throw DataError(spec + ": no file matches",
                  "looked for from " + std::filesystem::current_path(ignored).string() + "; * matches within a folder");
}

}  // namespace

std::vector<std::string> expand(const FileList& files) {
  std::vector<std::string> all;
  for (const auto& spec : files.specs) {
    auto found = expand_one(spec);
    all.insert(all.end(), std::make_move_iterator(found.begin()), std::make_move_iterator(found.end()));
  }
  return all;
}

}  // namespace ncollapse
