// The linear head, read from files.
#pragma once

#include <string>
#include <vector>

#include "host/backend.hpp"
#include "ncollapse/array_file.hpp"
#include "ncollapse/classifier.hpp"

namespace ncollapse {

/// The files are held as long as the classifier's views on them are used.
class ClassifierFiles {
 public:
  /// Throws DataError naming the file; UsageError for a bias without weights.
  ClassifierFiles(const std::vector<std::string>& weights, const std::string& bias);

  /// Null without weights.
  const Classifier* classifier() const { return classifier_.layers.empty() ? nullptr : &classifier_; }
  /// Throws DataError naming the file unless the layers lead from `dim` values, given by `features`, to K classes, and
  /// all values are finite. The library checks this as well, but knows no names.
  void check(Backend& backend, Index dim, const std::string& features, Index classes) const;

 private:
  std::vector<ArrayFile> files_;
  Classifier classifier_;
};

}  // namespace ncollapse
