// What labels say before any feature is read: it finds bad ones early, gives K and n_k, and costs little.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "ncollapse/array_file.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

constexpr Index kMaxClasses = Index{1} << 28;  // a label above is a mistake, not a class

struct LabelSurvey {
  Index largest = -1;
  std::string largest_file;  ///< where that label stands first
  Index largest_row = -1;
  std::vector<Index> counts;  ///< up to the largest label

  /// Takes `count` labels of the file, from row `first` on. Throws DataError naming file and row of one that is none.
  void add(ArrayFile& file, Index first, Index count) {
    constexpr Index kBlock = Index{1} << 20;
    for (Index end = first + count; first < end; first += kBlock) {
      const LabelView block = file.read_labels(first, std::min(kBlock, end - first));
      for (Index i = 0; i < block.size; ++i) {
        const Index label = label_at(block, i);
        if (label < 0 || label >= kMaxClasses)
          throw DataError(
              file.name() + ": the label at row " + std::to_string(first + i) + " is " + std::to_string(label),
              "labels are class numbers from 0 to K-1; leave out rows that have none (-100, padding)");
        if (label >= static_cast<Index>(counts.size())) counts.resize(static_cast<std::size_t>(label) + 1);
        ++counts[static_cast<std::size_t>(label)];
        if (label <= largest) continue;
        largest = label;
        largest_file = file.name();
        largest_row = first + i;
      }
    }
  }

  /// Throws DataError naming file and row when a label is not below `classes`.
  void check(Index classes) const {
    if (largest < classes) return;
    throw DataError(largest_file + ": the label at row " + std::to_string(largest_row) + " is " +
                        std::to_string(largest) + ", but there are " + std::to_string(classes) + " classes",
                    "labels are class numbers from 0 to K-1; are there " + std::to_string(largest + 1) +
                        "? then --classes, or the classifier's rows, are to say so");
  }
};

}  // namespace ncollapse
