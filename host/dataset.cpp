#include "host/dataset.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

std::string files_text(const std::string& first, std::size_t count) {
  return count > 1 ? first + " and " + std::to_string(count - 1) + " more" : first;
}

std::string inventory_line(const char* role, const ArrayFile& file) {
  return std::string(role) + " " + file.name() + ", " + std::to_string(file.rows()) + " x " +
         std::to_string(file.cols()) + " " + file.dtype_name();
}

}  // namespace

Index default_batch_rows(Index row_bytes) {
  constexpr Index kBatchBytes = Index{64} << 20, kFewest = 256;
  return std::max(kBatchBytes / row_bytes, kFewest);
}

namespace {

// The file that a link leads to, and the key after it.
std::string identity_of(const std::string& name) {
  std::error_code ignored;
  std::size_t end = name.size();  // of the path, which may hold colons, too
  while (end > 0 && end != name.npos && !std::filesystem::exists(name.substr(0, end), ignored))
    end = name.rfind(':', end - 1);
  if (end == 0 || end == name.npos) return name;
  return std::filesystem::weakly_canonical(name.substr(0, end), ignored).string() + name.substr(end);
}

}  // namespace

Dataset::Dataset(const FileList& features, const FileList& labels, RowRange range) {
  const auto specs = expand(features);
  if (specs.empty()) throw UsageError("no file of features was given");
  std::set<std::string> seen;
  for (const auto& spec : specs) {
    const ArrayFile file = ArrayFile::open(spec, ArrayRole::features);
    if (!seen.insert(identity_of(file.name())).second)
      throw DataError(spec + ": is given twice, its samples would count twice", "do the globs overlap?");
    if (file.rows() == 0) throw DataError(file.name() + ": holds no samples", "leave it out");
    if (shards_.empty()) {
      dim_ = file.cols();
      row_bytes_ = file.row_bytes();
      dtype_name_ = file.dtype_name();
    }
    if (file.cols() != dim_)
      throw DataError(file.name() + " has " + std::to_string(file.cols()) + " columns, but " + shards_.front().name +
                          " has " + std::to_string(dim_),
                      "all files of features have the same d");
    if (file.dtype_name() != dtype_name_)
      throw DataError(
          file.name() + " holds " + file.dtype_name() + ", but " + shards_.front().name + " holds " + dtype_name_,
          "all files of features have the same element type; convert them: features.astype('float32')");
    Shard shard;
    shard.spec = spec;
    shard.name = file.name();
    shard.rows = shard.count = file.rows();
    shard.start = rows_;
    rows_ += shard.rows;
    shards_.push_back(std::move(shard));
  }
  name_ = files_text(shards_.front().name, shards_.size());
  if (!labels.empty()) open_labels(labels);

  const Index end = range.end < 0 ? rows_ : range.end;
  if (range.first < 0 || range.end < -1 || range.first >= end || end > rows_)
    throw DataError("rows " + std::to_string(range.first) + ":" + (range.end == -1 ? "" : std::to_string(range.end)) +
                        " were asked of " + name_ + ", with " + std::to_string(rows_) + " rows",
                    "FIRST:END are the rows FIRST to END - 1, counted over all files from 0");
  clip(range.first, end);
  whole_rows_ = rows_;
  name_ = files_text(shards_.front().name, shards_.size());
  labels_name_ = files_text(shards_.front().label_name, common_labels_ ? 1 : shards_.size());
}

void Dataset::open_labels(const FileList& labels) {
  const auto specs = expand(labels);
  common_labels_ = specs.size() == 1 && shards_.size() > 1;
  if (specs.size() != shards_.size() && !common_labels_)
    throw DataError(std::to_string(shards_.size()) + " file(s) of features (" + shards_.front().name + " to " +
                        shards_.back().name + "), but " + std::to_string(specs.size()) + " of labels (" +
                        specs.front() + " to " + specs.back() + ")",
                    "give as many files of labels, or one for all");
  const auto check = [](const std::string& name, Index rows, const ArrayFile& file) {
    if (file.rows() != rows)
      throw DataError(name + " has " + std::to_string(rows) + " rows, but " + file.name() + " has " +
                          std::to_string(file.rows()) + " labels",
                      "one label for every feature row");
  };
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const ArrayFile file = ArrayFile::open(specs[i], ArrayRole::labels);
    check(common_labels_ ? name_ : shards_[i].name, common_labels_ ? rows_ : shards_[i].rows, file);
    label_inventory_.push_back(inventory_line("labels", file));
    shards_[i].label_spec = specs[i];
    shards_[i].label_name = file.name();
  }
  if (!common_labels_) return;
  for (auto& shard : shards_) {
    shard.label_spec = shards_.front().label_spec;
    shard.label_name = shards_.front().label_name;
    shard.label_first = shard.start;
  }
}

void Dataset::clip(Index first, Index end) {
  std::vector<Shard> taken;
  for (Shard& shard : shards_) {
    const Index begin = std::max(first, shard.start), stop = std::min(end, shard.start + shard.count);
    if (begin >= stop) continue;
    shard.first += begin - shard.start;
    shard.label_first += begin - shard.start;
    shard.count = stop - begin;
    shard.start = begin - first;
    taken.push_back(std::move(shard));
  }
  shards_ = std::move(taken);
  rows_ = end - first;
}

void Dataset::keep_part(Index part, Index parts) {
  const auto begin = [&](Index i) { return i * (rows_ / parts) + std::min(i, rows_ % parts); };
  open_shard_ = nullptr;
  clip(begin(part), begin(part + 1));
}

std::vector<std::string> Dataset::inventory() const {
  std::vector<std::string> lines;
  for (const Shard& shard : shards_)
    lines.push_back("features " + shard.name + ", " + std::to_string(shard.rows) + " x " + std::to_string(dim_) + " " +
                    dtype_name_ + ", rows " + std::to_string(shard.first) + ":" +
                    std::to_string(shard.first + shard.count));
  lines.insert(lines.end(), label_inventory_.begin(), label_inventory_.end());
  return lines;
}

Index Dataset::batch_rows(Index wanted) const { return wanted > 0 ? wanted : default_batch_rows(row_bytes_); }

void Dataset::read_from(const Shard& shard) {
  if (open_shard_ == &shard) return;
  features_.emplace(ArrayFile::open(shard.spec, ArrayRole::features));
  const bool labels_open = open_shard_ != nullptr && open_shard_->label_spec == shard.label_spec;
  if (!shard.label_spec.empty() && !labels_open) labels_.emplace(ArrayFile::open(shard.label_spec, ArrayRole::labels));
  open_shard_ = &shard;
  if (features_->rows() != shard.rows || features_->cols() != dim_ || features_->dtype_name() != dtype_name_)
    throw DataError(shard.name + ": has changed since it was opened first");
}

LabelView Dataset::labels_of(const Shard& shard, Index first, Index count) {
  if (!shard.label_spec.empty()) return labels_->read_labels(shard.label_first + first, count);
  zeros_.resize(static_cast<std::size_t>(count));
  return view(zeros_.data(), count);
}

LabelSurvey Dataset::survey_labels() {
  LabelSurvey result;
  for (const Shard& shard : shards_) {
    read_from(shard);
    result.add(*labels_, shard.label_first, shard.count);
  }
  return result;
}

DataError Dataset::named(const DataError& error) const {
  for (const Shard& shard : shards_) {
    if (error.row() < shard.start || error.row() >= shard.start + shard.count) continue;
    // The library counts rows over the whole stream; say how they lie in this file.
    const std::string shift = shard.first == shard.start ? ""
                                                         : " (its row " + std::to_string(shard.first) +
                                                               " counts as row " + std::to_string(shard.start) + ")";
    return DataError(shard.name + shift + ": " + error.what(), error.hint());
  }
  return error;
}

void Dataset::stream(Index begin, Index batch_rows, const std::function<void(const MatrixView&, const LabelView&)>& add,
                     const std::function<void(Index)>& done) {
  for (const Shard& shard : shards_) {
    for (Index offset = std::max<Index>(begin - shard.start, 0); offset < shard.count; offset += batch_rows) {
      const Index count = std::min(batch_rows, shard.count - offset);
      read_from(shard);
      const LabelView labels = labels_of(shard, offset, count);
      const MatrixView features = features_->read_matrix(shard.first + offset, count);
      try {
        add(features, labels);
        done(shard.start + offset + count);
      } catch (const DataError& error) {
        throw named(error);
      }
    }
  }
}

}  // namespace ncollapse
