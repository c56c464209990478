// limits [NAME...] [--seconds S] [--small]
// Which sizes of cuda::Limits are fastest on the GPU at hand, and what its products do: a table for a page.
//   products   Z^T Z as scatters take it: one DSYRK, slices of doubles, slices of halves
//   bias       what sums of halves' products lose in one slice, beside double: it grows with the rows of the slice
//   sums       bytes and rows of a block, warps that share it, runs of a group
//   few        blocks of batches of few classes beside the general way, and the host's time for one of few rows
//   decisions  rows and candidates of a tile of scores
//   pairs      products of tiles by themselves; rows and columns of a tile, rows of a warp, one stream or two
// --seconds: of a setting, 0.2 by default. --small: shapes for a trial where time does not matter.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/backend.hpp"
#include "cuda/dense.hpp"

namespace {

using namespace ncollapse;
using cuda::Half;
using cuda::Limits;

struct Options {
  double seconds = 0.2;
  bool small = false;
};

/// Numbers in [-1, 1), the same in every run.
class Noise {
 public:
  double next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(static_cast<std::int64_t>(state_)) * 0x1p-63;
  }

 private:
  std::uint64_t state_ = 1;
};

double median_seconds(const Options& options, const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  call();  // warm
  std::vector<double> times;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    call();
    times.push_back(since(start));
  } while (times.size() < 3 || since(begin) < options.seconds);
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

void line(const char* what, const std::string& shape, const std::string& setting, double seconds, double amount,
          const char* unit) {
  std::printf("| %s | %s | %s | %.4g ms | %.4g %s |\n", what, shape.c_str(), setting.c_str(), seconds * 1e3,
              amount / seconds, unit);
  std::fflush(stdout);
}
std::string by(Index a, Index b) { return std::to_string(a) + " x " + std::to_string(b); }

/// to := the block again and again.
template <class T>
void repeat(cuda::Queue& queue, const std::vector<T>& block, const cuda::Buffer<T>& to) {
  const Index bytes = static_cast<Index>(block.size() * sizeof(T));
  queue.upload(to.get(), block.data(), std::min(bytes, to.bytes()));
  auto* memory = reinterpret_cast<char*>(to.get());
  for (Index filled = bytes; filled < to.bytes(); filled *= 2)
    queue.copy(memory + filled, memory, std::min(filled, to.bytes() - filled));
  queue.wait();
}

void measure_products(const Options& options) {
  cuda::Queue queue(0, nullptr);
  for (const Index d : options.small ? std::vector<Index>{16} : std::vector<Index>{512, 768, 1024, 2048, 4096}) {
    const Index rows = options.small ? 500 : d == 512 ? 50000 : 65536;
    const cuda::Buffer<double> T(queue, d * d), z(queue, rows * d);
    const cuda::Buffer<Half> half(queue, rows * d);
    Noise noise;
    std::vector<double> block(static_cast<std::size_t>(std::min<Index>(rows, 2048) * d));
    std::vector<Half> narrow;
    for (double& value : block) {
      value = noise.next();
      narrow.push_back(cuda::to_half(static_cast<float>(value)));
    }
    repeat(queue, block, z);
    repeat(queue, narrow, half);
    const double flop = 2.0 * static_cast<double>(rows * d) * static_cast<double>(d) * 1e-12;
    const auto time = [&](const char* what, const std::string& setting, const auto& call) {
      const double seconds = median_seconds(options, [&] {
        call();
        queue.wait();
      });
      line(what, by(rows, d), setting, seconds, flop, "TFLOP/s as 2 N d^2");
    };
    cuda::check(cudaMemsetAsync(T.get(), 0, static_cast<std::size_t>(T.bytes()), queue.stream()));
    time("double", "one DSYRK", [&] { cuda::add_gram(queue, 1.0, z.get(), d, rows, d, T.get()); });
    for (const Index slice :
         options.small ? std::vector<Index>{100} : std::vector<Index>{1024, 1280, 1536, 2048, 4096}) {
      const Index slices = (rows + slice - 1) / slice;
      if (slices * d * d > Index{1} << 30) continue;
      const cuda::Buffer<double> partial(queue, slices * d * d);
      time("double", "slices of " + std::to_string(slice),
           [&] { cuda::gram_slices(queue, z.get(), rows, d, slice, partial.get()); });
      time("half", "slices of " + std::to_string(slice),
           [&] { cuda::gram_slices(queue, half.get(), rows, d, slice, reinterpret_cast<float*>(partial.get())); });
    }
  }
}

void measure_bias(const Options& options) {
  cuda::Queue queue(0, nullptr);
  const Index d = 64;
  for (const Index rows :
       options.small ? std::vector<Index>{64} : std::vector<Index>{1024, 4096, 16384, 65536, 262144}) {
    Noise noise;
    std::vector<Half> z;
    std::vector<double> exact(static_cast<std::size_t>(d), 0.0);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < d; ++j) {
        z.push_back(cuda::to_half(static_cast<float>(noise.next())));
        exact[static_cast<std::size_t>(j)] += cuda::to_double(z.back()) * cuda::to_double(z.back());
      }
    const cuda::Buffer<Half> half(queue, z);
    const cuda::Buffer<float> T(queue, d * d);
    cuda::check(cudaMemsetAsync(T.get(), 0, static_cast<std::size_t>(T.bytes()), queue.stream()));
    cuda::gram_slices(queue, half.get(), rows, d, rows, T.get());
    const auto products = T.to_host();
    double bias = 0;
    for (Index j = 0; j < d; ++j)
      bias += (products[static_cast<std::size_t>(j * d + j)] / exact[static_cast<std::size_t>(j)] - 1) /
              static_cast<double>(d);
    std::printf("| bias | %s | one slice of halves | | %.3g of a sum of squares |\n", by(rows, d).c_str(), bias);
  }
}

/// Rows of bf16 about their class's mean, at most `noise` of one of its numbers away in each; class i mod K; on the
/// device.
struct Samples {
  Samples(Index count, Index classes, Index dim, double noise_size = 0.01)
      : rows(count), d(dim), K(classes), means(static_cast<std::size_t>(K * d)) {
    Noise noise;
    for (double& value : means) value = noise.next();
    const Index block = (std::min(rows, std::max<Index>(8192, K)) + K - 1) / K * K;
    std::vector<std::uint16_t> bits;
    std::vector<Index> numbers;
    for (Index i = 0; i < block; ++i) {
      numbers.push_back(i % K);
      for (Index j = 0; j < d; ++j)
        bits.push_back(cuda::to_bfloat16(static_cast<float>(means[static_cast<std::size_t>(i % K * d + j)] +
                                                            noise_size * noise.next()))
                           .bits);
    }
    features = cuda::Buffer<std::uint16_t>(queue, rows * d);
    labels = cuda::Buffer<Index>(queue, rows);
    repeat(queue, bits, features);
    repeat(queue, numbers, labels);
  }
  MatrixView x() const { return {features.get(), Dtype::bf16, rows, d, 0, MemorySpace::device}; }
  LabelView y() const { return {labels.get(), LabelType::i64, rows, MemorySpace::device}; }

  Index rows, d, K;
  std::vector<double> means;
  cuda::Queue queue{0, nullptr};
  cuda::Buffer<std::uint16_t> features;
  cuda::Buffer<Index> labels;
};

MomentState new_state(Backend& backend, Index K, Index d, Statistics statistics) {
  MomentState state;
  state.classes = K;
  state.dim = d;
  state.statistics = statistics;
  state.counts = backend.index_array(K, 1);
  state.shifts = backend.matrix(K, d);
  state.sums = backend.matrix(K, d);
  state.square_sums = backend.matrix(K, 1);
  if (statistics == Statistics::full) state.scatter = backend.matrix(d, d);
  return state;
}

void measure_sums(const Options& options) {
  struct Case {
    Index rows, K, d;
  };
  const std::vector<Case> cases =
      options.small
          ? std::vector<Case>{{300, 5, 16}}
          : std::vector<Case>{{1 << 20, 1000, 2048}, {1 << 20, 50257, 768}, {1 << 17, 2, 8192}, {1 << 23, 262144, 128}};
  struct Setting {
    Index bytes, block_rows, warps, group;
    bool twice = false;  // features are looked through for faults before
  };
  const Limits start;
  const Index bytes = start.block_bytes, block_rows = start.block_rows, warps = start.sum_warps,
              group = start.group_runs;
  const std::vector<Setting> settings{{bytes, block_rows, warps, group},     {bytes, block_rows, warps, group, true},
                                      {bytes, block_rows, warps / 2, group}, {bytes, block_rows, warps * 2, group},
                                      {bytes, block_rows, warps, group * 4}, {bytes * 2, 2 * block_rows, warps, group},
                                      {bytes / 2, block_rows, warps, group}};
  for (const auto& [rows, K, d] : cases) {
    const Samples samples(rows, K, d);
    for (const auto& setting : settings) {
      Limits limits;
      limits.block_bytes = setting.bytes;
      limits.block_rows = setting.block_rows;
      limits.sum_warps = setting.warps;
      limits.group_runs = setting.group;
      if (setting.twice) limits.second_sums_bytes = 0;
      cuda::CudaBackend backend(0, {}, limits);
      MomentState state = new_state(backend, K, d, Statistics::traces);
      Index count = 0;
      const double seconds = median_seconds(options, [&] {
        backend.add_batch(state, samples.x(), samples.y());
        backend.download(&count, state.counts.data(), sizeof count);  // waits, and does no more
      });
      if (backend.pending_faults(state).any()) throw Error(ErrorKind::internal, "the samples have faults");
      line("sums", by(rows, d) + ", " + std::to_string(K) + " classes",
           "blocks of " + std::to_string(setting.bytes >> 20) + " MiB, " + std::to_string(setting.block_rows) +
               " rows, " + std::to_string(setting.warps) + " warps, groups of " + std::to_string(setting.group) +
               (setting.twice ? ", read twice" : ""),
           seconds, static_cast<double>(rows) * static_cast<double>(2 * d + 8) * 1e-9, "GB/s");
    }
  }
}

void measure_few(const Options& options) {
  struct Case {
    Index rows, K, d;
    Dtype dtype;
  };
  const std::vector<Case> cases =
      options.small ? std::vector<Case>{{300, 3, 16, Dtype::bf16}, {300, 3, 16, Dtype::f32}}
                    : std::vector<Case>{
                          {50000, 10, 512, Dtype::bf16}, {50000, 10, 512, Dtype::f32}, {131072, 2, 8192, Dtype::bf16}};
  for (const auto& [rows, K, d, dtype] : cases) {
    const Samples samples(rows, K, d);
    cuda::Queue queue(0, nullptr);
    const cuda::Buffer<float> wide(queue, dtype == Dtype::f32 ? rows * d : 0);
    MatrixView x = samples.x();
    if (dtype == Dtype::f32) {
      std::vector<float> block;
      Noise noise;
      for (Index i = 0; i < std::min<Index>(rows, 8192) * d; ++i) block.push_back(static_cast<float>(noise.next()));
      repeat(queue, block, wide);
      x.data = wide.get();
      x.dtype = dtype;
    }
    const std::string shape = by(rows, d) + ", " + std::to_string(K) + " classes, " + std::string(to_string(dtype));
    for (const Index blocks : {0, 132, 264, 396, 528, 1056, 2112}) {
      Limits limits;
      limits.few_rows = 64;
      limits.few_bytes = limits.block_bytes;  // as many as that way can take
      if (blocks > 0)
        limits.few_blocks = blocks;
      else
        limits.few_classes = 0;
      cuda::CudaBackend backend(0, {}, limits);
      MomentState state = new_state(backend, K, d, Statistics::traces);
      constexpr Index kTogether = 10;  // one wait for all
      Index count = 0;
      const double seconds = median_seconds(options, [&] {
        for (Index i = 0; i < kTogether; ++i) backend.add_batch(state, x, samples.y());
        backend.download(&count, state.counts.data(), sizeof count);
      });
      if (backend.pending_faults(state).any()) throw Error(ErrorKind::internal, "the samples have faults");
      line("few", shape, blocks > 0 ? std::to_string(blocks) + " blocks" : "the general way", seconds / kTogether,
           static_cast<double>(rows * (d * size_of(dtype) + 8)) * 1e-9, "GB/s");
    }
  }
  const Index rows = options.small ? 20 : 64, d = options.small ? 16 : 512, K = options.small ? 3 : 10;
  const Samples samples(rows, K, d);
  for (const bool few : {false, true}) {
    Limits limits;
    if (!few) limits.few_classes = 0;
    cuda::CudaBackend backend(0, {}, limits);
    for (const auto statistics : {Statistics::traces, Statistics::full}) {
      MomentState state = new_state(backend, K, d, statistics);
      constexpr Index kTogether = 10;  // more would wait for the device
      const double seconds = median_seconds(options, [&] {
        for (Index i = 0; i < kTogether; ++i) backend.add_batch(state, samples.x(), samples.y());
      });
      const double waiting = median_seconds(options, [&] {
        for (Index i = 0; i < kTogether; ++i) backend.add_batch(state, samples.x(), samples.y());
        if (backend.pending_faults(state).any()) throw Error(ErrorKind::internal, "the samples have faults");
      });
      const std::string shape = by(rows, d) + (statistics == Statistics::full ? " and scatter" : "");
      line("few, host, back to back", shape, few ? "few" : "the general way", seconds / kTogether, 1e-6, "M adds/s");
      line("few, with the wait", shape, few ? "few" : "the general way", waiting / kTogether, 1e-6, "M adds/s");
    }
  }
}

void measure_decisions(const Options& options) {
  struct Case {
    Index rows, K, d;
    double noise;  // 0.75: too far from the means for any row to be decided without scores
  };
  struct Setting {
    Index row_tile, candidate_tile;
    bool narrow;
    int buffers;
  };
  const std::vector<Case> cases = options.small ? std::vector<Case>{{100, 7, 16, 0.75}}
                                                : std::vector<Case>{{1 << 18, 1000, 2048, 0.75},
                                                                    {1 << 16, 8142, 2048, 0.75},
                                                                    {1 << 15, 50257, 768, 0.75},
                                                                    {1 << 18, 1000, 2048, 0.01},
                                                                    {50000, 10, 512, 0.01}};
  const std::vector<Setting> all{{2048, 2048, false, 2}, {2048, 2048, false, 1}, {4096, 2048, false, 1},
                                 {1024, 2048, true, 2},  {2048, 2048, true, 2},  {2048, 2048, true, 1},
                                 {4096, 2048, true, 2},  {4096, 2048, true, 1},  {2048, 4096, true, 1}};
  for (const auto& [rows, K, d, noise] : cases) {
    const Samples samples(rows, K, d, noise);
    const bool far = noise > 0.1;
    const std::vector<Setting> settings(all.begin(), far ? all.end() : all.begin() + 1);
    for (const auto& [row_tile, candidate_tile, narrow, buffers] : settings) {
      Limits limits;
      limits.row_tile = row_tile;
      limits.candidate_tile = candidate_tile;
      limits.narrow_scores = narrow;
      limits.score_buffers = buffers;
      cuda::CudaBackend backend(0, {}, limits);
      DecisionState state;
      state.classes = K;
      state.dim = d;
      state.centres = backend.from_host(samples.means, K, d);
      std::vector<Index> classes;
      for (Index k = 0; k < K; ++k) classes.push_back(k);
      state.centre_class = backend.from_host(classes, K, 1);
      state.weights = backend.from_host(samples.means, K, d);
      state.bias = backend.matrix(1, K);
      state.counters = backend.index_array(4, K);
      const double seconds = median_seconds(options, [&] {
        if (backend.decide_batch(state, samples.x(), samples.y()).any())
          throw Error(ErrorKind::internal, "the samples have faults");
      });
      const double amount = static_cast<double>(rows * d);
      line(far ? "decisions" : "decisions, collapsed", by(rows, d) + ", " + std::to_string(K) + " classes",
           "tiles of " + by(row_tile, candidate_tile) + (narrow ? " in 16 bits, " : " in floats, ") +
               std::to_string(buffers) + " of them",
           seconds, amount * (far ? 4e-12 * static_cast<double>(K) : 2e-9), far ? "TFLOP/s" : "GB/s");
    }
  }
}

/// The product of a tile of pairs by itself.
void measure_pair_products(const Options& options) {
  struct Case {
    Index height, width, d;
    bool fast;
  };
  const std::vector<Case> cases =
      options.small ? std::vector<Case>{{20, 30, 16, false}, {20, 30, 64, true}}
                    : std::vector<Case>{{1000, 1000, 2048, false}, {512, 1000, 2048, false},  {512, 4096, 2048, false},
                                        {512, 8192, 2048, false},  {1024, 4096, 2048, false}, {512, 8192, 2048, true},
                                        {1024, 8192, 2048, true},  {1024, 4096, 768, true},   {1024, 8192, 768, true},
                                        {2048, 8192, 768, true},   {2048, 8192, 4096, true},  {4096, 8192, 4096, true},
                                        {8192, 8192, 4096, true}};
  cuda::Queue queue(0, nullptr);
  for (const auto& [height, width, d, fast] : cases) {
    const cuda::Buffer<double> rows(queue, (height + width) * d), products(queue, height * width);
    Noise noise;
    std::vector<double> block(static_cast<std::size_t>(std::min<Index>(height, 256) * d));
    std::vector<Half> narrow;
    for (double& value : block) {
      value = noise.next();
      narrow.push_back(cuda::to_half(static_cast<float>(value)));
    }
    const cuda::Buffer<Half> halves(queue, (height + width) * d);
    repeat(queue, block, rows);
    repeat(queue, narrow, halves);
    const double seconds = median_seconds(options, [&, height = height, width = width, d = d, fast = fast] {
      if (fast)
        cuda::multiply_narrow(queue, Dtype::f16, halves.get(), d, height, halves.get() + height * d, d, width, d,
                              reinterpret_cast<float*>(products.get()), width);
      else
        cuda::gemm(queue, Transpose::no, Transpose::yes, height, width, d, rows.get(), d, rows.get() + height * d, d,
                   products.get(), width);
      queue.wait();
    });
    line(fast ? "product of halves" : "product", by(height, width) + " x " + std::to_string(d), "and a wait", seconds,
         2.0 * static_cast<double>(height * width) * static_cast<double>(d) * 1e-12, "TFLOP/s");
  }
}

void measure_pairs(const Options& options) {
  measure_pair_products(options);
  struct Setting {
    Index height, width, warp_rows;
    bool beside = true;
  };
  struct Case {
    Index count, d;
    bool fast;
    std::vector<Setting> settings;
  };
  const std::vector<Setting> halves{{1024, 4096, 8},         {1408, 3072, 16},       {1408, 6144, 32},
                                    {1024, 8192, 32},        {1024, 8192, 16},       {1024, 8192, 8},
                                    {512, 8192, 32},         {512, 8192, 16},        {1024, 4096, 16},
                                    {2048, 4096, 32},        {2048, 8192, 32},       {2048, 8192, 16},
                                    {1024, 4096, 16, false}, {512, 8192, 16, false}, {1024, 8192, 32, false},
                                    {1024, 8192, 16, false}, {2048, 8192, 32, false}};
  const std::vector<Case> cases =
      options.small ? std::vector<Case>{{20, 16, false, {{8, 12, 8}, {8, 12, 8, false}}}, {20, 16, true, {{8, 12, 8}}}}
                    : std::vector<Case>{{1000,
                                         2048,
                                         false,
                                         {{1024, 1024, 8},
                                          {1024, 1024, 16},
                                          {512, 1024, 8},
                                          {512, 1024, 8, false},
                                          {256, 1024, 8},
                                          {512, 512, 8}}},
                                        {8142,
                                         2048,
                                         false,
                                         {{512, 4096, 16},
                                          {512, 4096, 8},
                                          {512, 4096, 32},
                                          {512, 8192, 16},
                                          {512, 2048, 16},
                                          {256, 8192, 16},
                                          {1024, 1024, 8},
                                          {1024, 2048, 16},
                                          {1024, 4096, 16},
                                          {2048, 2048, 16},
                                          {512, 4096, 16, false},
                                          {512, 8192, 16, false}}},
                                        {8142, 2048, true, halves},
                                        {50000, 768, true, halves},
                                        {24576,
                                         4096,
                                         true,
                                         {{2048, 8192, 16},
                                          {4096, 4096, 16},
                                          {4096, 8192, 16},
                                          {8192, 8192, 16},
                                          {4096, 8192, 32},
                                          {4096, 8192, 16, false}}}};
  for (const auto& [count, d, fast, settings] : cases) {
    PairQuery query;
    query.gram_norm = query.frame_norm = 1;
    query.fast = fast;
    Noise noise;
    std::vector<double> rows(static_cast<std::size_t>(count * d));
    for (double& value : rows) value = noise.next();
    cuda::CudaBackend owner(0, {});
    const Matrix A = owner.from_host(rows, count, d);
    for (const double squared : owner.row_dots(A, A)) query.norms.push_back(std::sqrt(squared));
    query.variances.assign(static_cast<std::size_t>(count), 1e-4);
    for (const Setting& at : settings) {
      Limits limits;
      limits.pair_rows = limits.half_pair_rows = at.height;
      limits.pair_columns = limits.half_pair_columns = at.width;
      limits.pair_warp_rows = limits.half_pair_warp_rows = at.warp_rows;
      limits.pairs_beside = limits.half_pairs_beside = at.beside;
      limits.pair_blocks = 1;
      cuda::CudaBackend backend(0, {}, limits);
      const double seconds = median_seconds(options, [&, &A = A, &query = query] { backend.pair_sums(A, query); });
      line(fast ? "pairs of halves" : "pairs", by(count, d),
           "tiles of " + by(at.height, at.width) + ", warps of " + std::to_string(at.warp_rows) + " rows" +
               (at.beside ? "" : ", one stream"),
           seconds, static_cast<double>(count * d) * static_cast<double>(count) * 1e-12, "TFLOP/s as K^2 d");
    }
  }
}

int run(int argc, char** argv) {
  const std::vector<std::pair<std::string, void (*)(const Options&)>> parts{
      {"products", measure_products}, {"bias", measure_bias},           {"sums", measure_sums},
      {"few", measure_few},           {"decisions", measure_decisions}, {"pairs", measure_pairs}};
  Options options;
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool known =
        std::any_of(parts.begin(), parts.end(), [&](const auto& part) { return part.first == argument; });
    if (argument == "--small") {
      options.small = true;
    } else if (argument == "--seconds" && i + 1 < argc && std::atof(argv[i + 1]) > 0) {
      options.seconds = std::atof(argv[++i]);
    } else if (known) {
      wanted.push_back(argument);
    } else {
      std::fprintf(stderr, "limits [products] [bias] [sums] [few] [decisions] [pairs] [--seconds S] [--small]\n");
      return 2;
    }
  }
  const cuda::DeviceGuard on(0);
  const cuda::CudaBackend backend(0, {});
  std::printf("%s (%s)\n\n| what | shape | setting | time | rate |\n|---|---|---|---|---|\n",
              backend.info().name.c_str(), backend.info().capability.c_str());
  for (const auto& [name, measure] : parts)
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end()) measure(options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "limits: %s\n", error.what());
    return 1;
  }
}
