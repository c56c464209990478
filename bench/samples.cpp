#include "bench/samples.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>

#include "host/backend.hpp"

namespace ncollapse::bench {

namespace {

constexpr std::uint64_t kMeanStream = 1, kNoiseStream = 2, kHeadStream = 3, kLabelStream = 4;
constexpr Index kKeptMeans = Index{1} << 26;

/// Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

std::uint64_t bits_at(std::uint64_t stream, Index row, Index col) {
  return mix(mix(stream << 56 ^ static_cast<std::uint64_t>(row)) + static_cast<std::uint64_t>(col));
}

struct NormalPair {
  float first, second;
};
NormalPair normal_pair(std::uint64_t stream, Index row, Index pair) {
  const std::uint64_t bits = bits_at(stream, row, pair);
  const float u = (static_cast<float>(bits >> 40) + 0.5F) * 0x1p-24F,
              v = static_cast<float>(bits & 0xffffff) * 0x1p-24F;
  const float radius = std::sqrt(-2 * std::log(u)), angle = 2 * std::numbers::pi_v<float> * v;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

void normal_row(std::uint64_t stream, Index row, float* to, Index dim) {
  for (Index j = 0; j < dim; j += 2) {
    const auto [first, second] = normal_pair(stream, row, j / 2);
    to[j] = first;
    if (j + 1 < dim) to[j + 1] = second;
  }
}

double unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

/// Relative size of class k.
double weight(Sizes sizes, Index k, Index classes) {
  switch (sizes) {
    case Sizes::zipf: return 1 / static_cast<double>(k + 1);
    case Sizes::power_law: return std::pow(500.0, -static_cast<double>(k) / static_cast<double>(classes));
    case Sizes::one_dominant: return k == 0 ? 99 * static_cast<double>(classes - 1) : 1;
    case Sizes::one_to_999: return k == 0 ? 1 : 999 / static_cast<double>(classes - 1);
    case Sizes::equal:
    case Sizes::singletons: return 1;
  }
  return 1;
}

std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

}  // namespace

float normal(std::uint64_t stream, Index row, Index col) {
  const auto [first, second] = normal_pair(stream, row, col / 2);
  return col % 2 == 0 ? first : second;
}

Samples::Samples(const Shape& shape, int threads) : shape_(shape), threads_(threads) {
  const Index classes = shape.classes;
  std::vector<double> below;  // share of the classes up to k
  double total = 0;
  for (Index k = 0; k < classes; ++k) below.push_back(total += weight(shape.sizes, k, classes));
  labels_.resize(static_cast<std::size_t>(shape.samples));
#pragma omp parallel for num_threads(threads_)
  for (Index i = 0; i < shape.samples; ++i) {
    const double u = unit(bits_at(kLabelStream, i, 0)) * total;
    labels_[i] = std::min<Index>(std::upper_bound(below.begin(), below.end(), u) - below.begin(), classes - 1);
  }
  if (shape.sizes == Sizes::singletons) {
    for (Index i = 0; i < shape.samples; ++i) labels_[i] = i % classes;
    for (Index i = shape.samples - 1; i > 0; --i)
      std::swap(labels_[i],
                labels_[static_cast<Index>(bits_at(kLabelStream, i, 1) % static_cast<std::uint64_t>(i + 1))]);
  }
  if (shape.sorted) std::sort(labels_.begin(), labels_.end());
  if (classes > kKeptMeans / shape.dim || classes > shape.samples) return;
  means_.resize(static_cast<std::size_t>(classes * shape.dim));
#pragma omp parallel for num_threads(threads_)
  for (Index k = 0; k < classes; ++k) normal_row(kMeanStream, k, means_.data() + k * shape.dim, shape.dim);
}

double Samples::value(Index i, Index j) const {
  const float x = normal(kMeanStream, labels_[i], j) + static_cast<float>(shape_.sigma) * normal(kNoiseStream, i, j);
  switch (shape_.dtype) {
    case Dtype::bf16: return from_bf16(to_bf16(x));
    case Dtype::f16: return static_cast<double>(static_cast<_Float16>(x));
    case Dtype::f32:
    case Dtype::f64: break;
  }
  return x;
}

void Samples::fill_row(float* row, Index i) const {
  const Index dim = shape_.dim;
  const auto sigma = static_cast<float>(shape_.sigma);
  const float* kept = means_.empty() ? nullptr : means_.data() + labels_[i] * dim;
  for (Index j = 0; j < dim; j += 2) {
    const NormalPair noise = normal_pair(kNoiseStream, i, j / 2);
    const NormalPair mean = kept == nullptr ? normal_pair(kMeanStream, labels_[i], j / 2)
                                            : NormalPair{kept[j], kept[std::min(j + 1, dim - 1)]};
    row[j] = mean.first + sigma * noise.first;
    if (j + 1 < dim) row[j + 1] = mean.second + sigma * noise.second;
  }
}

void Samples::fill(void* to, Index first, Index count) const {
  const Index dim = shape_.dim;
#pragma omp parallel num_threads(threads_)
  {
    std::vector<float> row(static_cast<std::size_t>(dim));
#pragma omp for
    for (Index i = 0; i < count; ++i) {
      fill_row(row.data(), first + i);
      const Index at = i * dim;
      switch (shape_.dtype) {
        case Dtype::f64: std::copy(row.begin(), row.end(), static_cast<double*>(to) + at); break;
        case Dtype::f32: std::copy(row.begin(), row.end(), static_cast<float*>(to) + at); break;
        case Dtype::f16:
          std::transform(row.begin(), row.end(), static_cast<_Float16*>(to) + at,
                         [](float x) { return static_cast<_Float16>(x); });
          break;
        case Dtype::bf16: std::transform(row.begin(), row.end(), static_cast<std::uint16_t*>(to) + at, to_bf16); break;
      }
    }
  }
}

std::vector<float> Samples::weights() const {
  const Index dim = shape_.dim;
  std::vector<float> weights(static_cast<std::size_t>(shape_.classes * dim));
#pragma omp parallel num_threads(threads_)
  {
    std::vector<float> noise(static_cast<std::size_t>(dim));
#pragma omp for
    for (Index k = 0; k < shape_.classes; ++k) {
      float* row = weights.data() + k * dim;
      normal_row(kMeanStream, k, row, dim);
      normal_row(kHeadStream, k, noise.data(), dim);
      for (Index j = 0; j < dim; ++j) row[j] = (row[j] + noise[j]) / static_cast<float>(dim);
    }
  }
  return weights;
}

Placed::Placed(const Context& context, const Samples& samples, MemorySpace where)
    : shape(samples.shape()), space(where) {
  Backend& backend = *context.backend();
  const Index label_bytes = shape.samples * static_cast<Index>(sizeof(std::int64_t)), bytes = shape.row_bytes();
  const auto host_memory = [](Index size) {
    return std::shared_ptr<void>(std::shared_ptr<std::byte[]>(new std::byte[size]));
  };
  if (where == MemorySpace::host) {
    features = host_memory(shape.samples * bytes);
    samples.fill(features.get(), 0, shape.samples);
    labels = host_memory(label_bytes);
    std::memcpy(labels.get(), samples.labels().data(), static_cast<std::size_t>(label_bytes));
    return;
  }
  features = backend.allocate(shape.samples * bytes);
  const Index block = std::clamp<Index>((Index{256} << 20) / bytes, 1, shape.samples);
  const std::shared_ptr<void> staging = host_memory(block * bytes);
  for (Index first = 0; first < shape.samples; first += block) {
    const Index rows = std::min(block, shape.samples - first);
    samples.fill(staging.get(), first, rows);
    backend.upload(static_cast<std::byte*>(features.get()) + first * bytes, staging.get(), rows * bytes);
  }
  labels = backend.allocate(label_bytes);
  backend.upload(labels.get(), samples.labels().data(), label_bytes);
}

MatrixView Placed::features_at(Index first, Index rows) const {
  return {static_cast<const std::byte*>(features.get()) + first * shape.row_bytes(),
          shape.dtype,
          rows,
          shape.dim,
          0,
          space};
}

LabelView Placed::labels_at(Index first, Index rows) const {
  return {static_cast<const std::int64_t*>(labels.get()) + first, LabelType::i64, rows, space};
}

}  // namespace ncollapse::bench
