// Labelled samples in one file or in many shards, as one sequence of rows.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "host/label_survey.hpp"
#include "ncollapse/array_file.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/file_list.hpp"

namespace ncollapse {

/// About 64 MiB of features.
Index default_batch_rows(Index row_bytes);

/// Features in one or more files, and labels in as many files, row for row, or in one file for all of them. Only the
/// shard that is being read is open, so there may be more shards than a process may open files.
class Dataset {
 public:
  /// Looks at every header. `labels` may be empty (out-of-distribution features): then every label is 0. Throws
  /// DataError naming the file: unreadable, no samples, another d or element type than the first shard, labels that do
  /// not fit, rows beyond the end.
  Dataset(const FileList& features, const FileList& labels, RowRange range = {});

  /// Leaves of the rows one of `parts` contiguous parts of nearly the same size, with its rows counted from 0. It may
  /// be empty; name() still is that of the whole.
  void keep_part(Index part, Index parts);

  Index rows() const { return rows_; }              ///< of the range, or of the part
  Index whole_rows() const { return whole_rows_; }  ///< of all parts
  Index dim() const { return dim_; }
  Index row_bytes() const { return row_bytes_; }
  const std::string& name() const { return name_; }                ///< for messages: "a.npy", "a.npy and 4 more"
  const std::string& labels_name() const { return labels_name_; }  ///< the same for the labels
  /// One line for every feature and label file: name, shape, element type and the rows taken.
  std::vector<std::string> inventory() const;

  /// Of the rows taken. Not without labels.
  LabelSurvey survey_labels();

  /// Hands the rows to `add` batch by batch, calling `done(rows so far)` after each, from row `begin` on: 0, or what
  /// `done` was told. Batches end where a shard ends, so they are the same wherever a pass begins. What `add` or
  /// `done` throws of the data gets the name of the shard that it is about.
  void stream(Index begin, Index batch_rows, const std::function<void(const MatrixView&, const LabelView&)>& add,
              const std::function<void(Index)>& done);

  /// The error with the file's name in front, where it is about one row of the stream (DataError::row) and has none
  /// yet.
  DataError named(const DataError& error) const;

  /// `wanted`, or for 0 default_batch_rows.
  Index batch_rows(Index wanted) const;

 private:
  struct Shard {
    std::string spec, name;
    Index rows = 0;              // in the file
    Index first = 0, count = 0;  // those of the range
    Index start = 0;             // number of the first of them in the data set
    std::string label_spec, label_name;
    Index label_first = 0;  // where the labels of its first row in the range lie in their file
  };
  void open_labels(const FileList& labels);
  void clip(Index first, Index end);
  void read_from(const Shard& shard);
  LabelView labels_of(const Shard& shard, Index first, Index count);

  std::vector<Shard> shards_;
  bool common_labels_ = false;  // one file of labels for all shards
  Index rows_ = 0, whole_rows_ = 0, dim_ = 0, row_bytes_ = 0;
  std::string dtype_name_, name_, labels_name_;
  std::vector<std::string> label_inventory_;

  const Shard* open_shard_ = nullptr;
  std::optional<ArrayFile> features_, labels_;
  std::vector<std::int64_t> zeros_;
};

}  // namespace ncollapse
