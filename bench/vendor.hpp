// What the vendor's own library reaches on a device, in this run: the floors. And the plain way to the same numbers,
// with that library alone: one-hot products and separate passes, in single precision.
#pragma once

#include <memory>

#include "ncollapse/context.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse::bench {

enum class Gemm { f64, f32, f16 };  ///< f16: 16-bit operands, single-precision sums; GPUs only
constexpr const char* to_string(Gemm type) {
  return type == Gemm::f64 ? "dgemm" : type == Gemm::f32 ? "sgemm" : "hgemm";
}

/// Features and labels (int64) as the plain way takes them, in the device's memory.
struct PlainInput {
  MatrixView features;
  const std::int64_t* labels = nullptr;  ///< [N]
  const float* weights = nullptr;        ///< [K x d]
  Index classes = 0, batch_rows = 0;
};

/// Seconds of its passes, and numbers that show that it did the same work.
struct PlainResult {
  double sums = 0;             ///< class means by one-hot products, traces in a second pass
  double scatter = 0;          ///< centred copy, then a product
  double decisions = 0;        ///< all N x K scores, batch by batch, for both rules
  double pairs = 0;            ///< K x K products, then CDNV
  double nc1_trace_ratio = 0;  ///< tr Sigma_W / tr Sigma_B, Sigma_B with weights 1/K about the sample mean
  double nc1_cdnv = 0;         ///< over pairs of classes
  Index agree = 0;             ///< samples whose two decisions are equal
};

class Vendor {
 public:
  virtual ~Vendor() = default;
  /// The stream in whose order it works; null on the CPU.
  virtual void* stream() const { return nullptr; }
  virtual void wait() = 0;
  /// What a profiler that was told to wait for it (ncu --profile-from-start off) sees begins, or ends.
  virtual void profile(bool /*on*/) {}
  virtual Index cache_bytes() const = 0;  ///< of the last-level cache
  virtual bool has(Gemm type) const = 0;
  virtual void copy(void* to, const void* from, Index bytes) = 0;
  /// C [m x n] of A, B with inner size k, row-major. gram: A [k x m], B [k x n], C = A^T B; else A [m x k], B [n x k],
  /// C = A B^T.
  virtual void gemm(Gemm type, bool gram, Index m, Index n, Index k, const void* A, const void* B, void* C) = 0;
  /// The bare solvers, as the backend calls them: all eigenvectors of A [n x n] over A; thin SVD of A [m x n], used up.
  virtual void eigh(Index n, double* A) = 0;
  virtual void svd(Index m, Index n, double* A) = 0;
  virtual PlainResult plain(const PlainInput& input) = 0;
};

std::unique_ptr<Vendor> open_cpu_vendor(int threads);
/// Defined where CUDA is built.
std::unique_ptr<Vendor> open_cuda_vendor(int device);

}  // namespace ncollapse::bench
