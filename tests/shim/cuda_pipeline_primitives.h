// Asynchronous copies to shared memory. What is copied is destroyed when the copy is asked for and there when it is
// waited for, not before: a GPU may do it at any time between.
#pragma once

#include <cstdlib>

#include "tests/shim/cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) std::abort();
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 || reinterpret_cast<std::uintptr_t>(from) % bytes != 0)
    std::abort();
  auto& [copies, group] = cuda_shim::async_copies();
  copies.push_back({static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, group});
  for (std::size_t i = 0; i < bytes; ++i) copies.back().to[i] = 0xff;
}
inline void __pipeline_commit() { ++cuda_shim::async_copies().group; }
/// But for the last `prior` groups all copies are there.
inline void __pipeline_wait_prior(std::size_t prior) {
  auto& [copies, group] = cuda_shim::async_copies();
  std::size_t done = 0;
  for (; done < copies.size() && copies[done].group + prior < group; ++done) {
    cuda_shim::reads(copies[done].from, copies[done].bytes);
    for (std::size_t i = 0; i < copies[done].bytes; ++i) copies[done].to[i] = copies[done].from[i];
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}
