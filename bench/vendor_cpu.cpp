#include <cblas.h>
#include <lapacke.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "bench/vendor.hpp"
#include "ncollapse/error.hpp"

extern "C" void openblas_set_num_threads(int threads);
extern "C" int openblas_get_num_threads();

namespace ncollapse::bench {

namespace {

/// OpenBLAS on all threads while this lives.
class BlasThreads {
 public:
  explicit BlasThreads(int threads) : before_(openblas_get_num_threads()) { openblas_set_num_threads(threads); }
  ~BlasThreads() { openblas_set_num_threads(before_); }
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;

 private:
  int before_;
};

float to_float(double x) { return static_cast<float>(x); }
float to_float(_Float16 x) { return static_cast<float>(x); }
struct BFloat16 {
  std::uint16_t bits;
};
float to_float(BFloat16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

class CpuVendor final : public Vendor {
 public:
  explicit CpuVendor(int threads) : threads_(threads) {}

  void wait() override {}
  Index cache_bytes() const override { return std::max<Index>(sysconf(_SC_LEVEL3_CACHE_SIZE), Index{8} << 20); }
  bool has(Gemm type) const override { return type != Gemm::f16; }

  void copy(void* to, const void* from, Index bytes) override {
    constexpr Index kPage = 4096;
    const Index share = (bytes / threads_ / kPage + 1) * kPage;
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (Index part = 0; part < threads_; ++part) {
      const Index first = std::min(part * share, bytes), count = std::min(share, bytes - first);
      std::memcpy(static_cast<std::byte*>(to) + first, static_cast<const std::byte*>(from) + first,
                  static_cast<std::size_t>(count));
    }
  }

  void gemm(Gemm type, bool gram, Index m, Index n, Index k, const void* A, const void* B, void* C) override {
    if (type != Gemm::f64)
      return accumulate(gram, m, n, k, static_cast<const float*>(A), static_cast<const float*>(B), 0,
                        static_cast<float*>(C));
    const BlasThreads guard(threads_);
    const int rows = static_cast<int>(m), cols = static_cast<int>(n), depth = static_cast<int>(k);
    cblas_dgemm(CblasRowMajor, gram ? CblasTrans : CblasNoTrans, gram ? CblasNoTrans : CblasTrans, rows, cols, depth,
                1.0, static_cast<const double*>(A), gram ? rows : depth, static_cast<const double*>(B),
                gram ? cols : depth, 0.0, static_cast<double*>(C), cols);
  }

  void eigh(Index n, double* A) override {
    const BlasThreads guard(threads_);
    std::vector<double> values(static_cast<std::size_t>(n));
    const auto order = static_cast<lapack_int>(n);
    if (LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', order, A, order, values.data()) != 0)
      throw Error(ErrorKind::internal, "dsyevd failed");
  }

  void svd(Index m, Index n, double* A) override {
    const BlasThreads guard(threads_);
    const Index r = std::min(m, n);
    std::vector<double> values(static_cast<std::size_t>(r)), left(static_cast<std::size_t>(n * r)),
        right(static_cast<std::size_t>(r * m));
    const auto rows = static_cast<lapack_int>(n), cols = static_cast<lapack_int>(m), rank = static_cast<lapack_int>(r);
    if (LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', rows, cols, A, rows, values.data(), left.data(), rows, right.data(),
                       rank) != 0)
      throw Error(ErrorKind::internal, "dgesdd failed");
  }

  PlainResult plain(const PlainInput& input) override;

 private:
  /// C [m x n] = beta C + A B^T or A^T B, as gemm().
  void accumulate(bool gram, Index m, Index n, Index k, const float* A, const float* B, float beta, float* C) const {
    const BlasThreads guard(threads_);
    cblas_sgemm(CblasRowMajor, gram ? CblasTrans : CblasNoTrans, gram ? CblasNoTrans : CblasTrans, static_cast<int>(m),
                static_cast<int>(n), static_cast<int>(k), 1.0F, A, static_cast<int>(gram ? m : k), B,
                static_cast<int>(gram ? n : k), beta, C, static_cast<int>(n));
  }

  /// A batch in single precision, [rows x d].
  const float* widen(const MatrixView& view, Index first, Index rows, std::vector<float>& memory) const;

  int threads_;
};

const float* CpuVendor::widen(const MatrixView& view, Index first, Index rows, std::vector<float>& memory) const {
  const Index begin = first * view.cols, count = rows * view.cols;
  if (view.dtype == Dtype::f32) return static_cast<const float*>(view.data) + begin;
  memory.resize(static_cast<std::size_t>(count));
  const auto convert = [&](const auto* from) {
#pragma omp parallel for num_threads(threads_)
    for (Index i = 0; i < count; ++i) memory[i] = to_float(from[begin + i]);
  };
  switch (view.dtype) {
    case Dtype::f64: convert(static_cast<const double*>(view.data)); break;
    case Dtype::f16: convert(static_cast<const _Float16*>(view.data)); break;
    case Dtype::bf16: convert(static_cast<const BFloat16*>(view.data)); break;
    case Dtype::f32: break;
  }
  return memory.data();
}

PlainResult CpuVendor::plain(const PlainInput& input) {
  const Index rows = input.features.rows, dim = input.features.cols, classes = input.classes, batch = input.batch_rows;
  PlainResult result;
  using Clock = std::chrono::steady_clock;
  auto last = Clock::now();
  const auto lap = [&] {
    const auto now = Clock::now();
    return std::chrono::duration<double>(now - std::exchange(last, now)).count();
  };
  std::vector<float> wide, one_hot, sums(static_cast<std::size_t>(classes * dim)), squares(sums.size());
  std::vector<float> counts(static_cast<std::size_t>(classes)), centred;
  const auto each_batch = [&](const auto& body) {
    for (Index first = 0; first < rows; first += batch) {
      const Index count = std::min(batch, rows - first);
      body(widen(input.features, first, count, wide), input.labels + first, count);
    }
  };
  const auto make_one_hot = [&](const std::int64_t* labels, Index count) {
    one_hot.assign(static_cast<std::size_t>(count * classes), 0.0F);
    for (Index i = 0; i < count; ++i) one_hot[i * classes + labels[i]] = 1;
  };
  // z = x - m_y
  const auto centre = [&](const float* x, const std::int64_t* labels, Index count) {
    centred.resize(static_cast<std::size_t>(count * dim));
#pragma omp parallel for num_threads(threads_)
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < dim; ++j) centred[i * dim + j] = x[i * dim + j] - sums[labels[i] * dim + j];
  };

  each_batch([&](const float* x, const std::int64_t* labels, Index count) {
    make_one_hot(labels, count);
    for (Index i = 0; i < count; ++i) counts[labels[i]] += 1;
    accumulate(true, classes, dim, count, one_hot.data(), x, 1, sums.data());
  });
  std::vector<double> centre_of_samples(static_cast<std::size_t>(dim));
  for (Index k = 0; k < classes; ++k)
    for (Index j = 0; j < dim; ++j) {
      centre_of_samples[j] += sums[k * dim + j] / static_cast<double>(rows);
      sums[k * dim + j] /= std::max(counts[k], 1.0F);  // the means, from here on
    }
  each_batch([&](const float* x, const std::int64_t* labels, Index count) {
    make_one_hot(labels, count);
    centre(x, labels, count);
    for (float& z : centred) z *= z;
    accumulate(true, classes, dim, count, one_hot.data(), centred.data(), 1, squares.data());
  });
  std::vector<double> variances(static_cast<std::size_t>(classes));
  double within = 0, between = 0;
  Index present = 0;
  for (Index k = 0; k < classes; ++k) {
    if (counts[k] == 0) continue;
    ++present;
    double trace = 0;
    for (Index j = 0; j < dim; ++j) {
      trace += squares[k * dim + j];
      const double gap = sums[k * dim + j] - centre_of_samples[j];
      between += gap * gap;
    }
    variances[k] = trace / counts[k];
    within += trace / static_cast<double>(rows);
  }
  result.nc1_trace_ratio = within / (between / static_cast<double>(present));
  result.sums = lap();

  std::vector<float> scatter(static_cast<std::size_t>(dim * dim));
  each_batch([&](const float* x, const std::int64_t* labels, Index count) {
    centre(x, labels, count);
    accumulate(true, dim, dim, count, centred.data(), centred.data(), 1, scatter.data());
  });
  result.scatter = lap();

  std::vector<float> logits, products, half_norms(static_cast<std::size_t>(classes));
  for (Index k = 0; k < classes; ++k) {
    const float* mean = sums.data() + k * dim;
    half_norms[k] = cblas_sdot(static_cast<int>(dim), mean, 1, mean, 1) / 2;
  }
  each_batch([&](const float* x, const std::int64_t*, Index count) {
    logits.resize(static_cast<std::size_t>(count * classes));
    products.resize(logits.size());
    accumulate(false, count, classes, dim, x, input.weights, 0, logits.data());
    accumulate(false, count, classes, dim, x, sums.data(), 0, products.data());
    Index agree = 0;
#pragma omp parallel for num_threads(threads_) reduction(+ : agree)
    for (Index i = 0; i < count; ++i) {
      const float *scores = logits.data() + i * classes, *near = products.data() + i * classes;
      Index best = 0, nearest = -1;
      for (Index k = 0; k < classes; ++k) {
        if (scores[k] > scores[best]) best = k;
        if (counts[k] > 0 && (nearest < 0 || near[k] - half_norms[k] > near[nearest] - half_norms[nearest]))
          nearest = k;
      }
      agree += best == nearest ? 1 : 0;
    }
    result.agree += agree;
  });
  result.decisions = lap();

  constexpr Index kBlock = 2048;  // rows of the K x K grid at a time
  double cdnv = 0;
  for (Index first = 0; first < classes; first += kBlock) {
    const Index count = std::min(kBlock, classes - first);
    products.resize(static_cast<std::size_t>(count * classes));
    accumulate(false, count, classes, dim, sums.data() + first * dim, sums.data(), 0, products.data());
#pragma omp parallel for num_threads(threads_) reduction(+ : cdnv)
    for (Index i = 0; i < count; ++i)
      for (Index k = 0; k < classes; ++k) {
        if (k == first + i || counts[k] == 0 || counts[first + i] == 0) continue;
        const double squared = 2.0 * (half_norms[first + i] + half_norms[k] - products[i * classes + k]);
        cdnv += (variances[first + i] + variances[k]) / (2 * squared);
      }
  }
  result.nc1_cdnv = cdnv / (static_cast<double>(present) * static_cast<double>(present - 1));
  result.pairs = lap();
  return result;
}

}  // namespace

std::unique_ptr<Vendor> open_cpu_vendor(int threads) { return std::make_unique<CpuVendor>(threads); }

}  // namespace ncollapse::bench
