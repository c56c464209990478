#include <cfloat>

#include "cuda/device.hpp"
#include "cuda/validate.hpp"

namespace ncollapse::cuda {
namespace {

constexpr Count kNone = ~Count{0};

/// One atomic per warp that found something; on good data there are none.
__device__ void report(Count found, Count first, Count* count, Count* minimum) {
  found = warp_sum(found);
  first = warp_min(first);
  if (lane_id() == 0 && found > 0) {
    atomicAdd(count, found);
    atomicMin(minimum, first);
  }
}

template <class L>
__global__ void find_bad_labels(const L* labels, Index rows, Index first_row, Index classes, FaultWords* faults) {
  Count found = 0, first = kNone;
  for (Index i = thread_id(); i < rows; i += thread_count()) {
    const auto label = static_cast<Index>(labels[i]);
    if (label >= 0 && label < classes) continue;
    if (found++ == 0) first = static_cast<Count>(first_row + i);
  }
  report(found, first, &faults->bad_labels, &faults->first_bad_label);
}

/// 2^log2 lanes share a row.
template <class T>
__global__ void find_nonfinite(Rows<T> x, int log2, Index first_row, FaultWords* faults) {
  const Index lanes = Index{1} << log2, lane = thread_id() & (lanes - 1);
  Count found = 0, first = kNone;
  for (Index i = thread_id() >> log2; i < x.rows; i += thread_count() >> log2) {
    const T* row = x.row(i);
    for (Index col = lane * kPacket<T>; col < x.cols; col += lanes * kPacket<T>) {
      const Packet<T> packet = x.read(row, col);
      for (int v = 0; v < kPacket<T>; ++v) {
        if (fabs(to_double(packet.value[v])) <= DBL_MAX) continue;  // false for NaN
        if (found++ == 0) first = static_cast<Count>((first_row + i) * x.cols + col + v);
      }
    }
  }
  report(found, first, &faults->nonfinite, &faults->first_nonfinite);
}

template <class L>
__global__ void number_labels(const L* labels, Index count, std::uint32_t* keys, std::uint32_t* rows) {
  for (Index i = thread_id(); i < count; i += thread_count()) {
    keys[i] = static_cast<std::uint32_t>(labels[i]);
    rows[i] = static_cast<std::uint32_t>(i);
  }
}

template <class L>
__global__ void read_label(const L* labels, Index row, Index* value) {
  if (thread_id() == 0) *value = static_cast<Index>(labels[row]);
}

}  // namespace

void launch_find_bad_labels(cudaStream_t stream, const LabelBlock& labels, Index first_row, Index classes,
                            FaultWords* faults) {
  with_label(labels.type, [&]<class L>(L) {
    launch(stream, {blocks_for(labels.rows)}, find_bad_labels<L>, static_cast<const L*>(labels.data), labels.rows,
           first_row, classes, faults);
  });
}

void launch_find_nonfinite(cudaStream_t stream, const FeatureBlock& features, Index first_row, FaultWords* faults) {
  with_element(features.dtype, [&]<class T>(T) {
    const int log2 = lanes_log2<T>(features.cols);
    launch(stream, {blocks_for(features.rows << log2)}, find_nonfinite<T>, rows_of<T>(features), log2, first_row,
           faults);
  });
}

void launch_number_labels(cudaStream_t stream, const LabelBlock& labels, std::uint32_t* keys, std::uint32_t* rows) {
  with_label(labels.type, [&]<class L>(L) {
    launch(stream, {blocks_for(labels.rows)}, number_labels<L>, static_cast<const L*>(labels.data), labels.rows, keys,
           rows);
  });
}

void launch_read_label(cudaStream_t stream, const LabelBlock& labels, Index row, Index* value) {
  with_label(labels.type,
             [&]<class L>(L) { launch(stream, {1}, read_label<L>, static_cast<const L*>(labels.data), row, value); });
}

}  // namespace ncollapse::cuda
