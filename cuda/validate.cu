#include <cfloat>

#include "cuda/device.hpp"
#include "cuda/validate.hpp"

namespace ncollapse::cuda {
namespace {

constexpr Count kNone = ~Count{0};

template <class L>
__global__ void find_bad_labels(const L* labels, Index count, Index first_row, Index classes, BatchRecord* record,
                                std::uint32_t* keys, std::uint32_t* rows) {
  const bool shut = record->shut != 0;
  if (shut && !keys) return;
  Count found = 0, first = kNone;
  for (Index i = thread_id(); i < count; i += thread_count()) {
    const auto label = static_cast<Index>(labels[i]);
    const bool bad = label < 0 || label >= classes;
    if (bad && found++ == 0) first = static_cast<Count>(first_row + i);
    if (!keys) continue;
    keys[i] = bad || shut ? 0 : static_cast<std::uint32_t>(label);
    if (rows) rows[i] = static_cast<std::uint32_t>(i);
  }
  if (!shut) report(found, first, &record->bad_labels, &record->first_bad_label);
}

/// 2^log2 lanes share a row.
template <class T>
__global__ void find_nonfinite(Rows<T> x, int log2, Index first_row, BatchRecord* record, bool suspects) {
  if (record->shut || (suspects && !record->suspect)) return;
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
  report(found, first, &record->nonfinite, &record->first_nonfinite);
}

template <class L>
__global__ void settle(const L* labels, Index rows, Index first_row, Index batch_rows, bool done, BatchRecord* record) {
  if (thread_id() != 0 || record->shut) return;
  const Index bad = static_cast<Index>(record->first_bad_label) - first_row;
  if (record->bad_labels > 0 && bad >= 0 && bad < rows) record->bad_label = static_cast<Index>(labels[bad]);
  if (batch_rows == 0) return;
  record->rows = batch_rows;
  record->suspect = 0;
  record->shut = record->bad_labels > 0 || record->nonfinite > 0 ? 1 : 0;
  if (done) record->batch += 1 - record->shut;
}

}  // namespace

void launch_find_bad_labels(cudaStream_t stream, const LabelBlock& labels, Index first_row, Index classes,
                            BatchRecord* record, std::uint32_t* keys, std::uint32_t* rows) {
  with_label(labels.type, [&]<class L>(L) {
    launch(stream, {blocks_for(labels.rows)}, find_bad_labels<L>, static_cast<const L*>(labels.data), labels.rows,
           first_row, classes, record, keys, rows);
  });
}

void launch_find_nonfinite(cudaStream_t stream, const FeatureBlock& features, Index first_row, BatchRecord* record,
                           bool suspects) {
  with_element(features.dtype, [&]<class T>(T) {
    const int log2 = lanes_log2<T>(features.cols);
    const Index blocks = blocks_for(features.rows << log2);
    launch(stream, {suspects ? std::min(blocks, kMaxIdleBlocks) : blocks}, find_nonfinite<T>, rows_of<T>(features),
           log2, first_row, record, suspects);
  });
}

void launch_settle(cudaStream_t stream, const LabelBlock& labels, Index first_row, Index batch_rows, bool done,
                   BatchRecord* record) {
  with_label(labels.type, [&]<class L>(L) {
    launch(stream, {1}, settle<L>, static_cast<const L*>(labels.data), labels.rows, first_row, batch_rows, done,
           record);
  });
}

}  // namespace ncollapse::cuda
