// cuBLAS and cuSOLVER alone, and a few plain kernels between their calls. Launches go through cudaLaunchKernelEx, so
// that the host stand-in of the tests can run this file too.
#include <cublas_v2.h>
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bench/vendor.hpp"
#include "cuda/element.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::bench {

namespace {

using cuda::to_double;

constexpr int kBlock = 256, kWarp = 32;
constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr Index kMaxBlocks = 4096;  // kernels stride over their work

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw DeviceError(std::string("benchmark on CUDA: ") + cudaGetErrorString(status));
}
void check(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw DeviceError(std::string("benchmark, cuBLAS: ") + cublasGetStatusString(status));
}
void check(cusolverStatus_t status) {
  if (status != CUSOLVER_STATUS_SUCCESS)
    throw DeviceError("benchmark, cuSOLVER: status " + std::to_string(static_cast<int>(status)));
}

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const {
    destroy(handle);
  }
};
template <class Handle, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<destroy>>;

// ------------------------------------------------------------------------------------------------ kernels

__device__ Index thread_number() { return blockIdx.x * Index{kBlock} + threadIdx.x; }
__device__ Index thread_total() { return gridDim.x * Index{kBlock}; }

template <class T>
__global__ void widen(const T* from, Index count, float* to) {
  for (Index i = thread_number(); i < count; i += thread_total()) to[i] = static_cast<float>(to_double(from[i]));
}

__global__ void mark(const std::int64_t* labels, Index rows, Index classes, float* one_hot,
                     unsigned long long* counts) {
  for (Index i = thread_number(); i < rows; i += thread_total()) {
    one_hot[i * classes + labels[i]] = 1;
    if (counts) atomicAdd(counts + labels[i], 1ULL);
  }
}

/// z = x - m_y, squared where wanted.
__global__ void centre(const float* x, const std::int64_t* labels, const float* means, Index rows, Index dim,
                       bool square, float* z) {
  for (Index i = thread_number(); i < rows * dim; i += thread_total()) {
    const float gap = x[i] - means[labels[i / dim] * dim + i % dim];
    z[i] = square ? gap * gap : gap;
  }
}

__global__ void divide(float* sums, const unsigned long long* counts, Index classes, Index dim) {
  for (Index i = thread_number(); i < classes * dim; i += thread_total())
    sums[i] /= static_cast<float>(max(counts[i / dim], 1ULL));
}

/// The mean of all samples from class means; a thread per column.
__global__ void sample_mean(const float* means, const unsigned long long* counts, Index classes, Index dim, double rows,
                            double* centre_of_samples) {
  for (Index j = thread_number(); j < dim; j += thread_total()) {
    double sum = 0;
    for (Index k = 0; k < classes; ++k) sum += static_cast<double>(counts[k]) * means[k * dim + j];
    centre_of_samples[j] = sum / rows;
  }
}

/// A thread per class: sum of squares, |m - c|^2 and |m|^2 / 2.
__global__ void class_totals(const float* squares, const float* means, const double* centre_of_samples, Index classes,
                             Index dim, double* traces, double* gaps, float* half_norms) {
  for (Index k = thread_number(); k < classes; k += thread_total()) {
    double trace = 0, gap = 0, norm = 0;
    for (Index j = 0; j < dim; ++j) {
      const double mean = means[k * dim + j], off = mean - centre_of_samples[j];
      trace += squares[k * dim + j];
      gap += off * off;
      norm += mean * mean;
    }
    traces[k] = trace;
    gaps[k] = gap;
    half_norms[k] = static_cast<float>(norm / 2);
  }
}

/// A warp per row: argmax of logits and of products - half norms (of classes that came); counts rows where they agree.
__global__ void compare_decisions(const float* logits, const float* products, const float* half_norms,
                                  const unsigned long long* counts, Index rows, Index classes,
                                  unsigned long long* agree) {
  const Index lane = threadIdx.x % kWarp;
  for (Index i = thread_number() / kWarp; i < rows; i += thread_total() / kWarp) {
    float scores[2] = {kLowest, kLowest};
    Index best[2] = {classes, classes};
    for (Index k = lane; k < classes; k += kWarp) {
      const float score[2] = {logits[i * classes + k], counts[k] ? products[i * classes + k] - half_norms[k] : kLowest};
      for (int rule = 0; rule < 2; ++rule)
        if (score[rule] > scores[rule]) {
          scores[rule] = score[rule];
          best[rule] = k;
        }
    }
    for (int rule = 0; rule < 2; ++rule)
      for (int flip = kWarp / 2; flip > 0; flip /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, scores[rule], flip);
        const Index other_best = __shfl_xor_sync(0xffffffffu, best[rule], flip);
        if (other > scores[rule] || (other == scores[rule] && other_best < best[rule])) {
          scores[rule] = other;
          best[rule] = other_best;
        }
      }
    if (lane == 0 && best[0] == best[1]) atomicAdd(agree, 1ULL);
  }
}

/// Sums of CDNV over rows first .. first + rows - 1 of the K x K grid, one partial a thread.
__global__ void cdnv(const float* products, const float* half_norms, const double* traces,
                     const unsigned long long* counts, Index first, Index rows, Index classes, double* partial) {
  double sum = 0;
  for (Index i = thread_number(); i < rows * classes; i += thread_total()) {
    const Index a = first + i / classes, b = i % classes;
    if (a == b || counts[a] == 0 || counts[b] == 0) continue;
    const double squared = 2.0 * (static_cast<double>(half_norms[a]) + half_norms[b] - products[i]);
    sum += (traces[a] / static_cast<double>(counts[a]) + traces[b] / static_cast<double>(counts[b])) / (2 * squared);
  }
  partial[thread_number()] += sum;
}

// ------------------------------------------------------------------------------------------------ the vendor

class CudaVendor final : public Vendor {
 public:
  explicit CudaVendor(int device);
  ~CudaVendor() override {
    cudaStreamSynchronize(stream_.get());
    solver_.reset();
    params_.reset();
    blas_.reset();
    memory_.clear();
    cudaStreamSynchronize(stream_.get());
  }

  void* stream() const override { return stream_.get(); }
  void wait() override { check(cudaStreamSynchronize(stream_.get())); }
  void profile(bool on) override { check(on ? cudaProfilerStart() : cudaProfilerStop()); }
  Index cache_bytes() const override { return cache_bytes_; }
  bool has(Gemm) const override { return true; }
  void copy(void* to, const void* from, Index bytes) override {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream_.get()));
  }
  void gemm(Gemm type, bool gram, Index m, Index n, Index k, const void* A, const void* B, void* C) override {
    product(type, gram, m, n, k, A, B, 0, C);
  }
  void eigh(Index n, double* A) override;
  void svd(Index m, Index n, double* A) override;
  PlainResult plain(const PlainInput& input) override;

 private:
  struct Free {
    cudaStream_t stream;
    void operator()(void* memory) const { cudaFreeAsync(memory, stream); }
  };

  /// Memory of at least that size under a name, kept from call to call; its content is lost when it grows.
  template <class T>
  T* scratch(const char* name, Index count) {
    const auto bytes = static_cast<std::size_t>(std::max<Index>(count, 1)) * sizeof(T);
    for (auto& each : memory_)
      if (each.name == name) {
        if (each.bytes < bytes) {
          each.memory.reset();
          each = {name, bytes, allocate(bytes)};
        }
        return static_cast<T*>(each.memory.get());
      }
    memory_.push_back({name, bytes, allocate(bytes)});
    return static_cast<T*>(memory_.back().memory.get());
  }
  template <class T>
  T* zeroed(const char* name, Index count) {
    T* memory = scratch<T>(name, count);
    check(cudaMemsetAsync(memory, 0, static_cast<std::size_t>(count) * sizeof(T), stream_.get()));
    return memory;
  }
  std::unique_ptr<void, Free> allocate(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMallocFromPoolAsync(&memory, bytes, pool_.get(), stream_.get()));
    return {memory, Free{stream_.get()}};
  }
  template <class T>
  std::vector<T> to_host(const T* from, Index count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    check(cudaMemcpyAsync(values.data(), from, values.size() * sizeof(T), cudaMemcpyDeviceToHost, stream_.get()));
    wait();
    return values;
  }
  template <class... Params, class... Args>
  void launch(Index threads, void (*kernel)(Params...), const Args&... args) {
    if (threads == 0) return;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min((threads + kBlock - 1) / kBlock, kMaxBlocks)));
    config.blockDim = dim3(kBlock);
    config.stream = stream_.get();
    check(cudaLaunchKernelEx(&config, kernel, args...));
    check(cudaGetLastError());
  }
  void product(Gemm type, bool gram, Index m, Index n, Index k, const void* A, const void* B, double beta, void* C);
  void check_info(const int* info, const char* what) {
    if (to_host(info, 1).front() != 0) throw Error(ErrorKind::internal, std::string(what) + " failed");
  }

  struct Scratch {
    std::string name;
    std::size_t bytes = 0;
    std::unique_ptr<void, Free> memory;
  };

  Owned<cudaStream_t, cudaStreamDestroy> stream_;
  Owned<cudaMemPool_t, cudaMemPoolDestroy> pool_;
  std::vector<Scratch> memory_;
  Owned<cublasHandle_t, cublasDestroy> blas_;
  Owned<cusolverDnHandle_t, cusolverDnDestroy> solver_;
  Owned<cusolverDnParams_t, cusolverDnDestroyParams> params_;
  Index cache_bytes_ = 0;
};

CudaVendor::CudaVendor(int device) {
  check(cudaSetDevice(device));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);

  cudaMemPoolProps props{};
  props.allocType = cudaMemAllocationTypePinned;
  props.location.type = cudaMemLocationTypeDevice;
  props.location.id = device;
  cudaMemPool_t pool = nullptr;
  check(cudaMemPoolCreate(&pool, &props));
  pool_.reset(pool);
  std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));

  cublasHandle_t blas = nullptr;
  check(cublasCreate(&blas));
  blas_.reset(blas);
  check(cublasSetStream(blas, stream));
  check(cublasSetMathMode(blas, CUBLAS_DEFAULT_MATH));
  constexpr Index kWorkspaceBytes = Index{32} << 20;
  check(cublasSetWorkspace(blas, scratch<std::byte>("cublas", kWorkspaceBytes),
                           static_cast<std::size_t>(kWorkspaceBytes)));

  cusolverDnHandle_t solver = nullptr;
  check(cusolverDnCreate(&solver));
  solver_.reset(solver);
  check(cusolverDnSetStream(solver, stream));
  check(cusolverDnSetDeterministicMode(solver, CUSOLVER_DETERMINISTIC_RESULTS));
  cusolverDnParams_t params = nullptr;
  check(cusolverDnCreateParams(&params));
  params_.reset(params);

  int l2_bytes = 0;
  check(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device));
  cache_bytes_ = l2_bytes;
}

void CudaVendor::product(Gemm type, bool gram, Index m, Index n, Index k, const void* A, const void* B, double beta,
                         void* C) {
  // Row-major C = A^T B is column-major C^T = B^T A of the transposes that lie in memory; A B^T likewise.
  const auto first = gram ? CUBLAS_OP_N : CUBLAS_OP_T, second = gram ? CUBLAS_OP_T : CUBLAS_OP_N;
  const Index ldb = gram ? n : k, lda = gram ? m : k;
  if (type == Gemm::f64) {
    const double one = 1;
    return check(cublasDgemm_64(blas_.get(), first, second, n, m, k, &one, static_cast<const double*>(B), ldb,
                                static_cast<const double*>(A), lda, &beta, static_cast<double*>(C), n));
  }
  const float one = 1, times = static_cast<float>(beta);
  const auto element = type == Gemm::f32 ? CUDA_R_32F : CUDA_R_16F;
  check(cublasGemmEx_64(blas_.get(), first, second, n, m, k, &one, B, element, ldb, A, element, lda, &times, C,
                        CUDA_R_32F, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void CudaVendor::eigh(Index n, double* A) {
  double* values = scratch<double>("values", n);
  int* info = scratch<int>("info", 1);
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXsyevd_bufferSize(solver_.get(), params_.get(), CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, n,
                                    CUDA_R_64F, A, n, CUDA_R_64F, values, CUDA_R_64F, &device_bytes, &host_bytes));
  std::vector<std::byte> host(host_bytes);
  check(cusolverDnXsyevd(solver_.get(), params_.get(), CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F,
                         A, n, CUDA_R_64F, values, CUDA_R_64F,
                         scratch<std::byte>("solver", static_cast<Index>(device_bytes)), device_bytes, host.data(),
                         host_bytes, info));
  check_info(info, "Xsyevd");
}

void CudaVendor::svd(Index m, Index n, double* A) {
  // As the backend calls it: the column-major matrix is n x m and has to be tall.
  if (m > n) throw UsageError("the bare decomposition takes wide matrices only");
  double *values = scratch<double>("values", m), *left = scratch<double>("left", m * m),
         *right = scratch<double>("right", m * n);
  int* info = scratch<int>("info", 1);
  std::size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXgesvd_bufferSize(solver_.get(), params_.get(), 'S', 'S', n, m, CUDA_R_64F, A, n, CUDA_R_64F, values,
                                    CUDA_R_64F, right, n, CUDA_R_64F, left, m, CUDA_R_64F, &device_bytes, &host_bytes));
  std::vector<std::byte> host(host_bytes);
  check(cusolverDnXgesvd(solver_.get(), params_.get(), 'S', 'S', n, m, CUDA_R_64F, A, n, CUDA_R_64F, values, CUDA_R_64F,
                         right, n, CUDA_R_64F, left, m, CUDA_R_64F,
                         scratch<std::byte>("solver", static_cast<Index>(device_bytes)), device_bytes, host.data(),
                         host_bytes, info));
  check_info(info, "Xgesvd");
}

PlainResult CudaVendor::plain(const PlainInput& input) {
  const Index rows = input.features.rows, dim = input.features.cols, classes = input.classes, batch = input.batch_rows;
  PlainResult result;
  using Clock = std::chrono::steady_clock;
  wait();
  auto last = Clock::now();
  const auto lap = [&] {
    wait();
    const auto now = Clock::now();
    return std::chrono::duration<double>(now - std::exchange(last, now)).count();
  };
  const auto each_batch = [&](const auto& body) {
    for (Index first = 0; first < rows; first += batch) {
      const Index count = std::min(batch, rows - first);
      const float* x = cuda::with_element(input.features.dtype, [&](auto element) -> const float* {
        const auto* from = static_cast<const decltype(element)*>(input.features.data) + first * dim;
        if constexpr (std::is_same_v<decltype(element), float>) {
          return from;
        } else {
          float* wide = scratch<float>("wide", batch * dim);
          launch(count * dim, widen<decltype(element)>, from, count * dim, wide);
          return wide;
        }
      });
      body(x, input.labels + first, count);
    }
  };
  auto* sums = zeroed<float>("sums", classes * dim);  // the means, once they are divided
  auto* squares = zeroed<float>("squares", classes * dim);
  auto* counts = zeroed<unsigned long long>("counts", classes);
  auto* agree = zeroed<unsigned long long>("agree", 1);
  auto* centred = scratch<float>("centred", batch * dim);

  each_batch([&](const float* x, const std::int64_t* labels, Index count) {
    auto* one_hot = zeroed<float>("one_hot", count * classes);
    launch(count, mark, labels, count, classes, one_hot, counts);
    product(Gemm::f32, true, classes, dim, count, one_hot, x, 1, sums);
  });
  launch(classes * dim, divide, sums, counts, classes, dim);
  unsigned long long* no_counts = nullptr;
  each_batch([&](const float* x, const std::int64_t* labels, Index count) {
    auto* one_hot = zeroed<float>("one_hot", count * classes);
    launch(count, mark, labels, count, classes, one_hot, no_counts);
    launch(count * dim, centre, x, labels, sums, count, dim, true, centred);
    product(Gemm::f32, true, classes, dim, count, one_hot, centred, 1, squares);
  });
  auto* mean = scratch<double>("mean", dim);
  auto *traces = scratch<double>("traces", classes), *gaps = scratch<double>("gaps", classes);
  auto* half_norms = scratch<float>("half_norms", classes);
  launch(dim, sample_mean, sums, counts, classes, dim, static_cast<double>(rows), mean);
  launch(classes, class_totals, squares, sums, mean, classes, dim, traces, gaps, half_norms);
  double within = 0, between = 0, present = 0;
  const auto host_counts = to_host(counts, classes);
  const auto host_traces = to_host(traces, classes), host_gaps = to_host(gaps, classes);
  for (Index k = 0; k < classes; ++k) {
    if (host_counts[k] == 0) continue;
    present += 1;
    within += host_traces[k] / static_cast<double>(rows);
    between += host_gaps[k];
  }
  result.nc1_trace_ratio = within / (between / present);
  result.sums = lap();

  auto* scatter = zeroed<float>("scatter", dim * dim);
  each_batch([&](const float* x, const std::int64_t* labels, Index count) {
    launch(count * dim, centre, x, labels, sums, count, dim, false, centred);
    product(Gemm::f32, true, dim, dim, count, centred, centred, 1, scatter);
  });
  result.scatter = lap();

  each_batch([&](const float* x, const std::int64_t*, Index count) {
    auto *logits = scratch<float>("logits", batch * classes), *products = scratch<float>("products", batch * classes);
    product(Gemm::f32, false, count, classes, dim, x, input.weights, 0, logits);
    product(Gemm::f32, false, count, classes, dim, x, sums, 0, products);
    launch(count * kWarp, compare_decisions, logits, products, half_norms, counts, count, classes, agree);
  });
  result.agree = static_cast<Index>(to_host(agree, 1).front());
  result.decisions = lap();

  constexpr Index kRows = 2048;  // of the K x K grid at a time
  const Index summing = std::min((std::min(kRows, classes) * classes + kBlock - 1) / kBlock, kMaxBlocks) * kBlock;
  auto* partial = zeroed<double>("partial", summing);
  for (Index first = 0; first < classes; first += kRows) {
    const Index count = std::min(kRows, classes - first);
    auto* products = scratch<float>("products", std::max(batch, count) * classes);
    product(Gemm::f32, false, count, classes, dim, sums + first * dim, sums, 0, products);
    launch(count * classes, cdnv, products, half_norms, traces, counts, first, count, classes, partial);
  }
  double total = 0;
  for (const double each : to_host(partial, summing)) total += each;
  result.nc1_cdnv = total / (present * (present - 1));
  result.pairs = lap();
  return result;
}

}  // namespace

std::unique_ptr<Vendor> open_cuda_vendor(int device) { return std::make_unique<CudaVendor>(device); }

}  // namespace ncollapse::bench
