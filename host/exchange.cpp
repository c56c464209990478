#include "host/exchange.hpp"

#include <algorithm>
#include <cstddef>

#include "ncollapse/error.hpp"

namespace ncollapse {

template <class Work>
auto Exchange::or_tell(const Work& work) const {
  try {
    return work();
  } catch (...) {
    if (ranks_.callbacks().on_failure) ranks_.callbacks().on_failure(std::current_exception());
    throw;
  }
}

Exchange::Exchange(Backend& backend, const Communicator& ranks) : backend_(backend), ranks_(ranks) {
  if (ranks.size() == 1) return;
  if (!on_device()) {
    together("preparing to add up", [this] { prepare(); });
    return;
  }
  or_tell([this] { prepare(); });
}

void Exchange::prepare() {
  const bool cuda = backend_.info().device.type == DeviceType::cuda;
  if (on_device() && !cuda)
    throw UsageError("the ranks exchange device memory, but the context is on the CPU",
                     "open the context on the rank's CUDA device, or use a communicator of host memory");
  if (on_device())
    piece_ = backend_.allocate(kPieceBytes);
  else if (cuda)
    piece_ = std::make_shared<std::byte[]>(static_cast<std::size_t>(kPieceBytes));
}

template <class T>
void Exchange::sum(Array<T>& values) const {
  or_tell([&] { sum_array(values); });
}
template <class T>
void Exchange::sum(std::vector<T>& values) const {
  or_tell([&] { sum_vector(values); });
}

template <class T>
void Exchange::sum_array(Array<T>& values) const {
  if (ranks_.size() == 1 || values.size() == 0) return;
  if (on_device() || !piece_) {
    T ignored;
    backend_.download(&ignored, values.data(), sizeof(T));  // waits for what the stream still does to them
    return ranks_.sum(values.data(), values.size());
  }
  constexpr auto kSize = static_cast<Index>(sizeof(T));
  auto* piece = static_cast<T*>(piece_.get());
  for (Index first = 0; first < values.size(); first += kPieceBytes / kSize) {
    const Index count = std::min(kPieceBytes / kSize, values.size() - first);
    backend_.download(piece, values.data() + first, count * kSize);
    ranks_.sum(piece, count);
    backend_.upload(values.data() + first, piece, count * kSize);
  }
}

template <class T>
void Exchange::sum_vector(std::vector<T>& values) const {
  const auto size = static_cast<Index>(values.size());
  if (!on_device()) return ranks_.sum(values.data(), size);
  if (ranks_.size() == 1) return;
  constexpr auto kSize = static_cast<Index>(sizeof(T));
  auto* piece = static_cast<T*>(piece_.get());
  for (Index first = 0; first < size; first += kPieceBytes / kSize) {
    const Index count = std::min(kPieceBytes / kSize, size - first);
    backend_.upload(piece, values.data() + first, count * kSize);
    backend_.download(values.data() + first, piece, kSize);  // waits for the stream
    ranks_.sum(piece, count);
    backend_.download(values.data() + first, piece, count * kSize);
  }
}

template void Exchange::sum(Matrix&) const;
template void Exchange::sum(IndexArray&) const;
template void Exchange::sum(std::vector<double>&) const;
template void Exchange::sum(std::vector<Index>&) const;

std::vector<Index> Exchange::gather(const std::vector<Index>& row) const {
  return or_tell([&] { return table_of(row); });
}

std::vector<Index> Exchange::table_of(const std::vector<Index>& row) const {
  std::vector<Index> table(row.size() * static_cast<std::size_t>(ranks_.size()), 0);
  std::copy(row.begin(), row.end(), table.begin() + ranks_.rank() * static_cast<Index>(row.size()));
  sum_vector(table);
  return table;
}

void Exchange::together(const std::string& doing, const std::function<void()>& work) const {
  if (ranks_.size() == 1) return work();
  std::exception_ptr error;
  Index kind = 0;
  try {
    work();
  } catch (const Error& e) {
    error = std::current_exception();
    kind = static_cast<Index>(e.kind());
  } catch (const std::bad_alloc&) {
    error = std::current_exception();
    kind = static_cast<Index>(ErrorKind::device);
  } catch (...) {
    error = std::current_exception();
    kind = static_cast<Index>(ErrorKind::internal);
  }
  if (error && ranks_.callbacks().on_failure) ranks_.callbacks().on_failure(error);
  if (error) try {
      table_of({kind});
    } catch (...) {  // the first reason is the one to tell, and was told
    }
  if (error) std::rethrow_exception(error);
  const auto kinds = gather({kind});
  const auto failed = std::find_if(kinds.begin(), kinds.end(), [](Index k) { return k != 0; });
  if (failed != kinds.end())
    throw Error(static_cast<ErrorKind>(*failed),
                "rank " + std::to_string(failed - kinds.begin()) + " of " + std::to_string(ranks_.size()) +
                    " failed while " + doing,
                "its own message says why");
}

void Exchange::agree(const std::vector<Index>& values, const std::string& hint,
                     const std::function<std::string(const Index* values)>& describe) const {
  if (ranks_.size() == 1) return;
  const auto table = gather(values);
  const auto width = static_cast<Index>(values.size());
  for (int rank = 1; rank < ranks_.size(); ++rank) {
    const Index* theirs = table.data() + rank * width;
    if (std::equal(theirs, theirs + width, table.begin())) continue;
    throw UsageError("the ranks differ: rank 0 has " + describe(table.data()) + ", rank " + std::to_string(rank) +
                         " has " + describe(theirs),
                     hint);
  }
}

Index fingerprint(const void* data, std::size_t bytes) {
  std::uint64_t hash = 14695981039346656037ULL;  // FNV-1a
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211ULL;
  return static_cast<Index>(hash >> 1);
}

}  // namespace ncollapse
