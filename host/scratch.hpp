// Memory of the host for what is needed again and again.
#pragma once

#include <cstddef>
#include <memory>

#include "ncollapse/types.hpp"

namespace ncollapse {

/// Uninitialised memory that is kept from call to call and grows to the largest request, so that a batch allocates
/// nothing once sizes have settled.
template <class T>
class Scratch {
 public:
  T* reserve(Index size) {
    if (size > size_) {
      memory_.reset();  // before the new one, or both would be held
      size_ = 0;
      memory_ = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(size));
      size_ = size;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<T[]> memory_;
  Index size_ = 0;
};

}  // namespace ncollapse
