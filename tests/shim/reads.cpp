// Which device memory has been written to, so that a read of what nobody wrote ends the process: by a kernel, by a
// copy, by a vendor's call. Poisoned memory shows only where it changes a result.
//
// Kernels are compiled with -fsanitize=thread, which makes a call of every load and store; here are those calls, in
// place of ThreadSanitizer's library. This file and the stand-in itself are compiled without.
#include "tests/shim/cuda_runtime.h"

#ifdef CUDA_SHIM_READS
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace {

[[noreturn]] void fail(const void* at, const void* code) {
  Dl_info program{};
  dladdr(code, &program);
  std::fprintf(stderr,
               "cuda shim: a read of device memory that nobody wrote, %p, at %s +0x%zx (addr2line -fCie says more)\n",
               at, program.dli_fname,
               static_cast<std::size_t>(static_cast<const char*>(code) - static_cast<const char*>(program.dli_fbase)));
  std::abort();
}

void read(const void* at, std::size_t bytes, const void* code) {
  unsigned char* written = cuda_shim::written_flags(at, bytes);
  for (std::size_t i = 0; written != nullptr && i < bytes; ++i)
    if (written[i] == 0) fail(static_cast<const char*>(at) + i, code);
}
void write(const void* at, std::size_t bytes) {
  if (unsigned char* written = cuda_shim::written_flags(at, bytes)) std::memset(written, 1, bytes);
}

}  // namespace

namespace cuda_shim {
void reads(const void* at, std::size_t bytes) { read(at, bytes, __builtin_return_address(0)); }
void writes(void* at, std::size_t bytes) { write(at, bytes); }
}  // namespace cuda_shim

#define CODE __builtin_return_address(0)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read1(void* at) { read(at, 1, CODE); }
void __tsan_read2(void* at) { read(at, 2, CODE); }
void __tsan_read4(void* at) { read(at, 4, CODE); }
void __tsan_read8(void* at) { read(at, 8, CODE); }
void __tsan_read16(void* at) { read(at, 16, CODE); }
void __tsan_read_range(void* at, std::size_t bytes) { read(at, bytes, CODE); }
void __tsan_write1(void* at) { write(at, 1); }
void __tsan_write2(void* at) { write(at, 2); }
void __tsan_write4(void* at) { write(at, 4); }
void __tsan_write8(void* at) { write(at, 8); }
void __tsan_write16(void* at) { write(at, 16); }
void __tsan_write_range(void* at, std::size_t bytes) { write(at, bytes); }
// All atomics that GCC makes of what there is: kernels' and, without effect here, reference counts'.
#define FETCH(bits, type, what)                                                 \
  type __tsan_atomic##bits##_fetch_##what(volatile type* at, type value, int) { \
    read(const_cast<type*>(at), sizeof value, CODE);                            \
    return __atomic_fetch_##what(at, value, __ATOMIC_SEQ_CST);                  \
  }
#define ATOMICS(bits, type)                                                                                    \
  FETCH(bits, type, add)                                                                                       \
  FETCH(bits, type, sub)                                                                                       \
  type __tsan_atomic##bits##_load(const volatile type* at, int) {                                              \
    read(const_cast<const type*>(at), sizeof *at, CODE);                                                       \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                              \
  }                                                                                                            \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* at, type* expected, type value, int, int) { \
    read(const_cast<type*>(at), sizeof value, CODE);                                                           \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
  }
ATOMICS(32, unsigned)
ATOMICS(64, unsigned long)
}
#else
namespace cuda_shim {
void reads(const void*, std::size_t) {}
void writes(void*, std::size_t) {}
}  // namespace cuda_shim
#endif
