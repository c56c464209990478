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
}

Batch::Batch(Queue& queue, const Limits& limits, const MatrixView& features, const LabelView& labels)
    : queue_(queue),
      features_(features),
      labels_(labels),
      block_rows_(limits.rows_per_block(features.cols * size_of(features.dtype), features.rows)) {
  if (features.rows == 0) return;
  if (features.space == MemorySpace::host)
    feature_stage_ = Buffer<unsigned char>(queue, block_rows_ * features.cols * size_of(features.dtype));
  else
    require_device_memory(features.data, "the features");
  if (labels.space == MemorySpace::host)
    label_stage_ = Buffer<unsigned char>(queue, block_rows_ * size_of(labels.type));
  else
    require_device_memory(labels.data, "the labels");
}

Index Batch::blocks() const { return (features_.rows + block_rows_ - 1) / block_rows_; }

void Batch::load(Index number) {
  if (number == loaded_) return;
  const Index first = first_row(number), rows = std::min(block_rows_, features_.rows - first);
  const Index pitch = features_.row_stride() * size_of(features_.dtype), label_bytes = size_of(labels_.type);
  if (features_.space == MemorySpace::host) {
    upload_rows(queue_, feature_stage_.get(), features_, first, rows);
    feature_block_ = {feature_stage_.get(), features_.dtype, rows, features_.cols, features_.cols};
  } else {
    feature_block_ = {at_row(features_.data, first, pitch), features_.dtype, rows, features_.cols,
                      features_.row_stride()};
  }
  const char* labels = at_row(labels_.data, first, label_bytes);
  if (labels_.space == MemorySpace::host) {
    queue_.upload(label_stage_.get(), labels, rows * label_bytes);
    label_block_ = {label_stage_.get(), labels_.type, rows};
  } else {
    label_block_ = {labels, labels_.type, rows};
  }
  loaded_ = number;
}

BatchFaults Batch::find_faults(Index classes) {
  constexpr auto kNone = ~0ULL;
  const Buffer<FaultWords> words(queue_, std::vector<FaultWords>{{0, 0, kNone, kNone}});
  for (Index b = 0; b < blocks(); ++b) {
    load(b);
    launch_find_bad_labels(queue_.stream(), label_block_, first_row(b), classes, words.get());
    launch_find_nonfinite(queue_.stream(), feature_block_, first_row(b), words.get());
  }
  const FaultWords found = words.to_host().front();

  BatchFaults faults;
  faults.bad_labels = static_cast<Index>(found.bad_labels);
  faults.nonfinite = static_cast<Index>(found.nonfinite);
  if (faults.nonfinite > 0) {
    faults.nonfinite_row = static_cast<Index>(found.first_nonfinite) / features_.cols;
    faults.nonfinite_col = static_cast<Index>(found.first_nonfinite) % features_.cols;
  }
  if (faults.bad_labels > 0) {
    const auto row = faults.bad_label_row = static_cast<Index>(found.first_bad_label);
    load(row / block_rows_);
    const Buffer<Index> value(queue_, 1);
    launch_read_label(queue_.stream(), label_block_, row % block_rows_, value.get());
    faults.bad_label = value.to_host().front();
  }
  return faults;
}

}  // namespace ncollapse::cuda
