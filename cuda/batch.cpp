#include "cuda/batch.hpp"

#include <algorithm>
#include <string>

#include "cuda/validate.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {
namespace {

const char* at_row(const void* data, Index row, Index row_bytes) {
  return static_cast<const char*>(data) + row * row_bytes;
}

}  // namespace

Index Limits::rows_per_block(Index row_bytes, Index rows) const {
  const Index bound = std::clamp<Index>(block_bytes / std::max<Index>(row_bytes, 1), 1, block_rows);
  return std::max<Index>(std::min(bound, rows), 1);
}

void require_device_memory(const void* pointer, const char* what) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, pointer));
  if (attributes.type == cudaMemoryTypeUnregistered)
    throw UsageError(std::string(what) + " were said to lie in device memory, but CUDA does not know their address",
                     "pass MemorySpace::host for ordinary host memory");
  int device = 0;
  check(cudaGetDevice(&device));  // the context's: every verb makes it current
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device)
    throw UsageError(std::string(what) + " lie on CUDA device " + std::to_string(attributes.device) +
                         ", but the context is on device " + std::to_string(device),
                     "open the context on the device that holds them");
}

void upload_rows(Queue& queue, void* to, const MatrixView& from, Index first, Index rows) {
  const Index size = size_of(from.dtype), width = from.cols * size, pitch = from.row_stride() * size;
  const char* source = at_row(from.data, first, pitch);
  if (width == 0 || rows == 0) return;
  if (width == pitch || rows == 1) return queue.upload(to, source, width * rows);
  check(cudaMemcpy2DAsync(to, static_cast<std::size_t>(width), source, static_cast<std::size_t>(pitch),
                          static_cast<std::size_t>(width), static_cast<std::size_t>(rows), cudaMemcpyHostToDevice,
                          queue.stream()));
  queue.wait();  // as Queue::upload: the rows may be reused
}

Batch::Batch(Queue& queue, Staging& staging, const Limits& limits, const MatrixView& features, const LabelView& labels)
    : queue_(queue),
      staging_(staging),
      features_(features),
      labels_(labels),
      block_rows_(limits.rows_per_block(features.cols * size_of(features.dtype), features.rows)) {
  if (features.rows == 0) return;
  if (features.space == MemorySpace::device) require_device_memory(features.data, "the features");
  if (labels.space == MemorySpace::device) require_device_memory(labels.data, "the labels");
  const bool from_host = features.space == MemorySpace::host || labels.space == MemorySpace::host;
  if (from_host && queue.capturing())
    throw UsageError("a batch in host memory cannot be captured in a CUDA graph: it would be read now, not at replay",
                     "copy it to the device within the graph and pass MemorySpace::device");
  // Of several blocks the later ones are loaded when the first has changed the state, or the record of what is wrong:
  // no room must show before.
  if (from_host && blocks() > 1)
    staging.reserve(features.space == MemorySpace::host
                        ? (block_rows_ * features.cols * size_of(features.dtype) + 255) / 256 * 256 +
                              block_rows_ * size_of(labels.type)
                        : block_rows_ * size_of(labels.type));
}

void Batch::load(Index number, bool with_features) {
  if (number == loaded_ && (features_loaded_ || !with_features)) return;
  const Index first = first_row(number), rows = std::min(block_rows_, features_.rows - first);
  const Index size = size_of(features_.dtype), pitch = features_.row_stride() * size, width = features_.cols * size;
  const Index label_size = size_of(labels_.type);
  const char *features = at_row(features_.data, first, pitch), *labels = at_row(labels_.data, first, label_size);
  feature_block_ = {features, features_.dtype, rows, features_.cols, features_.row_stride()};
  label_block_ = {labels, labels_.type, rows};
  loaded_ = number;
  features_loaded_ = with_features;
  const bool stage_features = with_features && features_.space == MemorySpace::host;
  if (!stage_features && labels_.space == MemorySpace::device) return;

  const Index labels_at = stage_features ? (rows * width + 255) / 256 * 256 : 0;
  unsigned char* stage = staging_.begin(labels_at + rows * label_size);
  if (stage_features) {
    staging_.copy(stage, features, width, pitch, rows);
    feature_block_.data = stage;
    feature_block_.stride = features_.cols;
  }
  if (labels_.space == MemorySpace::host) {
    staging_.copy(stage + labels_at, labels, label_size, label_size, rows);
    label_block_.data = stage + labels_at;
  }
  staging_.end();
}

void Batch::check(Index classes, bool features_too, BatchRecord* record, std::uint32_t* keys, std::uint32_t* rows) {
  for (Index b = 0; b < blocks(); ++b) {
    load(b, features_too || blocks() == 1);
    launch_find_bad_labels(queue_.stream(), label_block_, first_row(b), classes, record, keys, rows);
    if (features_too) launch_find_nonfinite(queue_.stream(), feature_block_, first_row(b), record);
    launch_settle(queue_.stream(), label_block_, first_row(b), b + 1 == blocks() ? features_.rows : 0, features_too,
                  record);
  }
}

BatchFaults faults_of(const BatchRecord& record, Index cols) {
  BatchFaults faults;
  faults.bad_labels = static_cast<Index>(record.bad_labels);
  faults.nonfinite = static_cast<Index>(record.nonfinite);
  if (!faults.any()) return faults;
  faults.rows = record.rows;
  faults.batch = record.batch;
  if (faults.nonfinite > 0) {
    faults.nonfinite_row = static_cast<Index>(record.first_nonfinite) / cols;
    faults.nonfinite_col = static_cast<Index>(record.first_nonfinite) % cols;
  }
  if (faults.bad_labels > 0) {
    faults.bad_label_row = static_cast<Index>(record.first_bad_label);
    faults.bad_label = record.bad_label;
  }
  return faults;
}

}  // namespace ncollapse::cuda
