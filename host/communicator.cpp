#include "ncollapse/communicator.hpp"

#include <algorithm>

#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

template <class T>
void in_pieces(T* values, Index count, const std::function<void(T*, Index)>& sum) {
  for (Index first = 0; first < count; first += Communicator::kMostValues)
    sum(values + first, std::min(Communicator::kMostValues, count - first));
}

}  // namespace

Communicator::Communicator(int rank, int size, CommunicatorCallbacks callbacks)
    : rank_(rank), size_(size), callbacks_(std::move(callbacks)) {
  if (size < 1 || rank < 0 || rank >= size)
    throw UsageError("rank " + std::to_string(rank) + " of " + std::to_string(size) + " ranks",
                     "ranks are numbered from 0 to size - 1");
  if (size > 1 && (!callbacks_.sum_doubles || !callbacks_.sum_integers))
    throw UsageError("a communicator of " + std::to_string(size) + " ranks without both sums");
}

void Communicator::sum(double* values, Index count) const {
  if (size_ > 1) in_pieces(values, count, callbacks_.sum_doubles);
}

void Communicator::sum(std::int64_t* values, Index count) const {
  if (size_ > 1) in_pieces(values, count, callbacks_.sum_integers);
}

}  // namespace ncollapse
