#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "cuda/buckets.hpp"
#include "cuda/device.hpp"
#include "cuda/validate.hpp"

namespace ncollapse::cuda {
namespace {

__global__ void mark_classes(const std::uint32_t* keys, Index size, ClassState state, std::uint32_t* begin,
                             std::uint32_t* end, std::uint32_t* marks) {
  for (Index p = thread_id(); p < size; p += thread_count()) {
    const std::uint32_t key = keys[p];
    if (p + 1 == size || keys[p + 1] != key) end[key] = static_cast<std::uint32_t>(p + 1);
    if (p > 0 && keys[p - 1] == key) continue;
    begin[key] = static_cast<std::uint32_t>(p);
    const Index count = state.counts[key];
    const bool from_second = state.places[key] != 0;
    const bool first_time = state.saved_counts && state.saved_counts[key] == count;
    marks[key] =
        (from_second ? kFromSecond : 0) | (from_second != first_time ? kToSecond : 0) | (count > 0 ? kSeen : 0);
  }
}

/// Size query (space null) or sort.
std::size_t sort_pairs(Queue& queue, void* space, std::size_t space_bytes, const std::uint32_t* keys_in,
                       std::uint32_t* keys, const std::uint32_t* rows_in, std::uint32_t* rows, Index size,
                       int key_bits) {
  check(cub::DeviceRadixSort::SortPairs(space, space_bytes, keys_in, keys, rows_in, rows, size, 0, key_bits,
                                        queue.stream()));
  return space_bytes;
}

}  // namespace

BucketSorter::BucketSorter(Queue& queue, Index max_rows, Index classes)
    : queue_(queue),
      key_bits_(std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(classes - 1))))),
      keys_in_(queue, max_rows),
      rows_in_(queue, max_rows),
      keys_(queue, max_rows),
      rows_(queue, max_rows),
      begin_(queue, classes),
      end_(queue, classes),
      marks_(queue, classes) {
  if (max_rows > std::numeric_limits<std::uint32_t>::max() || key_bits_ > 32)
    throw UsageError("blocks of rows and numbers of classes are limited to 2^32");
  const std::size_t bytes =
      sort_pairs(queue, nullptr, 0, keys_in_.get(), keys_.get(), rows_in_.get(), rows_.get(), max_rows, key_bits_);
  sort_space_ = Buffer<unsigned char>(queue, static_cast<Index>(bytes));
}

Buckets BucketSorter::sort(Index size, const ClassState& state) {
  sort_pairs(queue_, sort_space_.get(), static_cast<std::size_t>(sort_space_.size()), keys_in_.get(), keys_.get(),
             rows_in_.get(), rows_.get(), size, key_bits_);
  launch(queue_.stream(), {blocks_for(size)}, mark_classes, keys_.get(), size, state, begin_.get(), end_.get(),
         marks_.get());
  return {keys_.get(), rows_.get(), begin_.get(), end_.get(), marks_.get(), size};
}

}  // namespace ncollapse::cuda
