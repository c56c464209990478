// A CUDA training loop that watches neural collapse: a linear layer H = X A^T and a linear classifier H W^T + b,
// trained by gradient descent on cross-entropy with weight decay. The metrics are taken where the features lie, in
// device memory, and in the order of the loop's own stream: nothing is copied to the host but the results.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <ncollapse/ncollapse.hpp>

#include "softmax.hpp"

namespace {

using Index = std::int64_t;

constexpr Index kInputs = 256, kDim = 16;
constexpr std::array<Index, 4> kCounts{80, 60, 40, 20};
constexpr Index kClasses = kCounts.size();
constexpr float kStep = 0.1f, kDecay = 5e-3f;
constexpr int kEpochs = 1000, kMeasureEvery = 100;
constexpr int kSkipped = 77;  // the exit code by which test drivers know a skipped test

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}
void check(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw std::runtime_error(std::string("cuBLAS: ") + cublasGetStatusString(status));
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&raw_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(raw_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return raw_; }

 private:
  cudaStream_t raw_ = nullptr;
};

/// An array in device memory.
template <class T>
class DeviceArray {
 public:
  DeviceArray(const Stream& stream, Index size) : size_(size) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()));
    check(cudaMemsetAsync(data_, 0, bytes(), stream.get()));
  }
  DeviceArray(const Stream& stream, const std::vector<T>& host) : DeviceArray(stream, std::ssize(host)) {
    check(cudaMemcpyAsync(data_, host.data(), bytes(), cudaMemcpyHostToDevice, stream.get()));
    check(cudaStreamSynchronize(stream.get()));  // before host goes
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* get() const { return data_; }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  T* data_ = nullptr;
  Index size_;
};

class Blas {
 public:
  explicit Blas(const Stream& stream) {
    check(cublasCreate(&raw_));
    check(cublasSetStream(raw_, stream.get()));
  }
  ~Blas() { cublasDestroy(raw_); }
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /// C = alpha op(A) op(B) + beta C, all row-major: op(A) is [rows x inner], op(B) [inner x cols]. cuBLAS counts by
  /// columns and so sees all of them transposed.
  void multiply(bool transpose_a, bool transpose_b, Index rows, Index cols, Index inner, float alpha, const float* a,
                const float* b, float beta, float* c) const {
    const auto op = [](bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const auto size = [](Index length) { return static_cast<int>(length); };
    check(cublasSgemm(raw_, op(transpose_b), op(transpose_a), size(cols), size(rows), size(inner), &alpha, b,
                      size(transpose_b ? inner : cols), a, size(transpose_a ? rows : inner), &beta, c, size(cols)));
  }
  /// Sum of absolute values. Waits for it.
  float absolute_sum(const float* values, Index size) const {
    float sum = 0;
    check(cublasSasum(raw_, static_cast<int>(size), values, 1, &sum));
    return sum;
  }

 private:
  cublasHandle_t raw_ = nullptr;
};

ncollapse::MatrixView on_device(const float* data, Index rows, Index cols) {
  return {data, ncollapse::Dtype::f32, rows, cols, 0, ncollapse::MemorySpace::device};
}

int train() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::int64_t> host_labels;
  std::vector<float> host_inputs;
  for (Index k = 0; k < kClasses; ++k)
    for (Index i = 0; i < kCounts[k]; ++i) {
      host_labels.push_back(k);
      for (Index j = 0; j < kInputs; ++j) host_inputs.push_back(normal(random) + (j == k ? 3.0f : 0.0f));
    }
  const auto random_matrix = [&](Index rows, Index cols) {
    std::vector<float> matrix(static_cast<std::size_t>(rows * cols));
    for (float& entry : matrix) entry = normal(random) / std::sqrt(static_cast<float>(cols));
    return matrix;
  };
  const Index samples = std::ssize(host_labels);

  const Stream stream;
  const Blas blas(stream);
  const DeviceArray<std::int64_t> labels(stream, host_labels);
  const DeviceArray<float> inputs(stream, host_inputs), ones(stream, std::vector<float>(samples, 1.0f)),
      first(stream, random_matrix(kDim, kInputs)), classifier(stream, random_matrix(kClasses, kDim)),
      bias(stream, kClasses), features(stream, samples * kDim), gradient(stream, samples * kDim),
      logits(stream, samples * kClasses), losses(stream, samples);

  // All that the context does is queued on the training loop's stream, so no other synchronisation is needed.
  const ncollapse::Context context(ncollapse::Device::parse("cuda"), {.cuda_stream = stream.get()});
  const auto measure = [&] {
    ncollapse::Accumulator moments(context, {.classes = kClasses, .dim = kDim});
    moments.add(on_device(features.get(), samples, kDim),
                {labels.get(), ncollapse::LabelType::i64, samples, ncollapse::MemorySpace::device});
    const ncollapse::Classifier head{.layers = {on_device(classifier.get(), kClasses, kDim)},
                                     .bias = on_device(bias.get(), 1, kClasses)};
    return ncollapse::measure(moments.finish(), {.classifier = &head});
  };

  std::printf("on %s\n%6s %12s %12s %12s\n", context.info().name.c_str(), "epoch", "loss", "nc1_pinv", "nc3_cos_mean");
  double collapse_before = 0, collapse = 0;
  for (int epoch = 0; epoch <= kEpochs; ++epoch) {
    blas.multiply(false, true, samples, kDim, kInputs, 1, inputs.get(), first.get(), 0, features.get());
    blas.multiply(false, true, samples, kClasses, kDim, 1, features.get(), classifier.get(), 0, logits.get());
    check(softmax_cross_entropy(stream.get(), logits.get(), bias.get(), labels.get(), samples, kClasses, losses.get()));
    if (epoch % kMeasureEvery == 0) {
      const ncollapse::Report report = measure();
      collapse = report.at("nc1_pinv");
      if (epoch == 0) collapse_before = collapse;
      std::printf("%6d %12.5g %12.5g %12.5g\n", epoch, blas.absolute_sum(losses.get(), samples), collapse,
                  report.at("nc3_cos_mean"));
    }
    // logits now hold the gradient G: down by G^T H, G^T 1 and (G W)^T X.
    blas.multiply(false, false, samples, kDim, kClasses, 1, logits.get(), classifier.get(), 0, gradient.get());
    blas.multiply(true, false, kClasses, kDim, samples, -kStep, logits.get(), features.get(), 1 - kStep * kDecay,
                  classifier.get());
    blas.multiply(true, false, kClasses, 1, samples, -kStep, logits.get(), ones.get(), 1, bias.get());
    blas.multiply(true, false, kDim, kInputs, samples, -kStep, gradient.get(), inputs.get(), 1 - kStep * kDecay,
                  first.get());
  }
  return collapse < 0.1 * collapse_before ? 0 : 1;
}

}  // namespace

int main() try {
  if (const std::string reason = ncollapse::cuda_unavailable_reason(); !reason.empty()) {
    std::fprintf(stderr, "link_cuda: skipped, no GPU can be used: %s\n", reason.c_str());
    return kSkipped;
  }
  return train();
} catch (const std::exception& error) {
  std::fprintf(stderr, "link_cuda: %s\n", error.what());
  return 1;
}
