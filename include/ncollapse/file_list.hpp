// Which files, and which of their rows: a data set may lie in one file or in many shards.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "ncollapse/export.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// One or more files as ArrayFile::open takes them ("path" or "path:key"); a path may be a glob ("shard-*.npy"). A
/// single string is a list of one, the empty string a list of none.
struct FileList {
  std::vector<std::string> specs = {};

  FileList() = default;
  FileList(std::string spec) {
    if (!spec.empty()) specs.push_back(std::move(spec));
  }
  FileList(const char* spec) : FileList(std::string(spec)) {}
  FileList(std::vector<std::string> list) : specs(std::move(list)) {}
  FileList(std::initializer_list<std::string> list) : specs(list) {}

  bool empty() const { return specs.empty(); }
};

/// The list with every glob (*, ?, [...]) replaced by the files that match it, in natural order: shard-2 before
/// shard-10. What names an existing file, or holds no wildcard, is taken as given, in the order given. A key stays:
/// "shard-*.npz:features". Throws DataError for a glob that matches nothing.
NCOLLAPSE_EXPORT std::vector<std::string> expand(const FileList& files);

/// Rows first .. end - 1, counted over all files of a data set.
struct RowRange {
  Index first = 0;
  Index end = -1;  ///< -1: to the last row
};

}  // namespace ncollapse
