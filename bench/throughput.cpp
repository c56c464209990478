// How fast batches are taken in, and how long the measurement takes: features in the memory of the device under test.
// One iteration is one pass over N samples in batches of 10000. FLOP/s counts what the formulas need: 2 N d for sums,
// 2 N d for squares, N d (d + 1) for the scatter (one triangle), 4 N K d for two decisions per sample.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "host/backend.hpp"
#include "ncollapse/ncollapse.hpp"

namespace {

using namespace ncollapse;

constexpr Index kBatchRows = 10000;

struct Shape {
  Index samples, dim, classes;
  bool operator==(const Shape&) const = default;
};

/// Gaussian class means, noise of 0.3 around them, a head that is the means and noise: nothing is degenerate.
struct Data {
  Shape shape;
  std::vector<float> features, weights;
  std::vector<std::int64_t> labels;

  explicit Data(const Shape& s) : shape(s), features(s.samples * s.dim), weights(s.classes * s.dim), labels(s.samples) {
    std::mt19937 random(20);
    std::normal_distribution<float> normal;
    std::vector<float> means(s.classes * s.dim), noise(1 << 16);
    for (float& x : means) x = normal(random);
    for (float& x : noise) x = 0.3f * normal(random);
    for (std::size_t i = 0; i < weights.size(); ++i)
      weights[i] = (means[i] + normal(random)) / static_cast<float>(s.dim);
    for (Index i = 0; i < s.samples; ++i) {
      const Index label = i < s.classes ? i : static_cast<Index>(random() % s.classes);
      labels[i] = label;
      // Drawing every number anew would take longer than the benchmarks: reread a table from a random place.
      std::size_t at = random();
      for (Index j = 0; j < s.dim; ++j) features[i * s.dim + j] = means[label * s.dim + j] + noise[at++ % noise.size()];
    }
  }
};

/// The data in the memory of a device.
struct Placed {
  Context context;
  const Data& data;
  std::shared_ptr<void> features, labels;
  MemorySpace space = MemorySpace::host;

  Placed(Device device, const Data& host) : context(device), data(host) {
    if (device.type == DeviceType::cpu) return;
    space = MemorySpace::device;
    features = put(host.features.data(), static_cast<Index>(host.features.size() * sizeof(float)));
    labels = put(host.labels.data(), static_cast<Index>(host.labels.size() * sizeof(std::int64_t)));
  }

  template <class Consumer>
  void pass(Consumer& consumer) const {
    const Shape& s = data.shape;
    const auto* x = static_cast<const float*>(features ? features.get() : data.features.data());
    const auto* y = static_cast<const std::int64_t*>(labels ? labels.get() : data.labels.data());
    for (Index first = 0; first < s.samples; first += kBatchRows) {
      MatrixView batch = view(x + first * s.dim, std::min(kBatchRows, s.samples - first), s.dim);
      LabelView batch_labels = view(y + first, batch.rows);
      batch.space = batch_labels.space = space;
      consumer.add(batch, batch_labels);
    }
  }

  /// Returns when the device has done what was asked of it.
  void wait() const {
    if (!features) return;
    float any;
    context.backend()->download(&any, features.get(), sizeof any);
  }

 private:
  std::shared_ptr<void> put(const void* from, Index bytes) const {
    std::shared_ptr<void> to = context.backend()->allocate(bytes);
    context.backend()->upload(to.get(), from, bytes);
    return to;
  }
};

/// The data of the last shape asked for: benchmarks of one shape run one after another.
const Data& data_of(const Shape& shape) {
  static std::unique_ptr<Data> last;
  if (!last || !(last->shape == shape)) {
    last.reset();
    last = std::make_unique<Data>(shape);
  }
  return *last;
}

void count(benchmark::State& state, const Shape& shape, double flop) {
  state.SetItemsProcessed(state.iterations() * shape.samples);
  state.SetBytesProcessed(state.iterations() * shape.samples * shape.dim * static_cast<Index>(sizeof(float)));
  state.counters["FLOP/s"] = benchmark::Counter(flop, benchmark::Counter::kIsIterationInvariantRate);
}

AccumulatorOptions options_for(const Shape& shape, Statistics statistics) {
  return {.classes = shape.classes, .dim = shape.dim, .statistics = statistics, .scatter_weights = {}};
}

void add(benchmark::State& state, Device device, const Shape& shape, Statistics statistics) {
  const Placed placed(device, data_of(shape));
  for (auto _ : state) {
    Accumulator moments(placed.context, options_for(shape, statistics));
    placed.pass(moments);
    placed.wait();
  }
  const double nd = static_cast<double>(shape.samples * shape.dim);
  const bool traces = statistics != Statistics::means, full = statistics == Statistics::full;
  count(state, shape, nd * (2 + 2 * traces + (full ? static_cast<double>(shape.dim) + 1 : 0)));
}

ClassMoments moments_of(const Placed& placed) {
  const Shape& shape = placed.data.shape;
  Accumulator moments(placed.context, options_for(shape, Statistics::full));
  placed.pass(moments);
  return moments.finish();
}

Classifier head_of(const Data& data) {
  return {.layers = {view(data.weights.data(), data.shape.classes, data.shape.dim)}, .bias = {}};
}

void decide(benchmark::State& state, Device device, const Shape& shape) {
  const Placed placed(device, data_of(shape));
  const ClassMoments moments = moments_of(placed);
  const Classifier head = head_of(placed.data);
  for (auto _ : state) {
    DecisionCounter decisions(moments, &head);
    placed.pass(decisions);
    benchmark::DoNotOptimize(decisions.finish());
  }
  count(state, shape, 4.0 * static_cast<double>(shape.samples * shape.classes * shape.dim));
}

void finish_and_measure(benchmark::State& state, Device device, const Shape& shape) {
  const Placed placed(device, data_of(shape));
  const Classifier head = head_of(placed.data);
  Accumulator moments(placed.context, options_for(shape, Statistics::full));
  placed.pass(moments);
  for (auto _ : state) benchmark::DoNotOptimize(measure(moments.finish(), {.classifier = &head}));
}

void register_all(Device device) {
  for (const Shape& shape : {Shape{50000, 512, 10}, {50000, 512, 100}, {50000, 512, 1000}, {20000, 2048, 1000}}) {
    const auto name = [&](const char* what) {
      return std::string(what) + "/" + to_string(device) + "/N=" + std::to_string(shape.samples) +
             ",d=" + std::to_string(shape.dim) + ",K=" + std::to_string(shape.classes);
    };
    const auto enlist = [&](const char* what, auto function, auto... more) {
      benchmark::RegisterBenchmark(name(what).c_str(), function, device, shape, more...)
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
    };
    enlist("add_means", add, Statistics::means);
    enlist("add_traces", add, Statistics::traces);
    enlist("add_full", add, Statistics::full);
    enlist("decide", decide);
    enlist("finish_and_measure", finish_and_measure);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const DeviceInfo& info : devices()) {
    benchmark::AddCustomContext(to_string(info.device), info.name + ", " + std::to_string(info.threads) + " threads");
    register_all(info.device);
  }
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) {
    benchmark::AddCustomContext("cuda", "not measured: " + reason);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const std::size_t run = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return run > 0 ? 0 : 1;  // a filter that nothing matches measured nothing
}
