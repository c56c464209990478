// large_classes [stream] [pairs] [pairs_fast] [--classes K] [--threads T] [--batch-rows R] [--commit HASH]
//   [--json FILE]
// What vocabularies of many classes cost on the CPU, and in how much memory (the whole process, this program included):
//   stream   1e6 generated rows, K = 50257 (Zipf), d = 768, f32, statistics traces: seconds in Accumulator::add beside
//            plain copies of the same batches by the same threads, taken in turn; before them one row of every class
//   pairs    K = 131072, d = 1024, two samples a class: CDNV, cosine and distance statistics by measure(), in tiles,
//            beside the rate of one sgemm call on the same threads; K^2 d operations (the upper triangle) and as many
//            for nothing else
//   pairs_fast   the same in Precision::fast
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "bench/program.hpp"
#include "bench/vendor.hpp"
#include "ncollapse/ncollapse.hpp"

namespace {

using namespace ncollapse;
using bench::Result, bench::seconds;

struct Options {
  Index classes = 0, batch_rows = 0;  // 0: as above; about 64 MiB
  int threads = 0;                    // 0: all
};

/// Of the clock, and of the processor over all threads: on a busy machine the second tells more.
struct Times {
  double wall = 0, cpu = 0;

  template <class Call>
  void add(const Call& call) {
    const std::clock_t before = std::clock();
    wall += seconds(call);
    cpu += static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  }
};

/// Numbers spread like noise, cheap enough to make a gigabyte of: a multiplicative congruential sequence.
void fill(std::vector<float>& values, std::uint64_t seed) {
  std::uint64_t state = 2 * seed + 1;
  for (float& value : values) {
    state *= 6364136223846793005ULL;
    value = static_cast<float>(static_cast<std::int64_t>(state) >> 40) * 0x1p-23f;
  }
}

/// Class k with a probability like 1/(k + 1).
class Zipf {
 public:
  explicit Zipf(Index classes) {
    double sum = 0;
    for (Index k = 0; k < classes; ++k) cumulative_.push_back(sum += 1 / static_cast<double>(k + 1));
  }
  std::int64_t draw(std::mt19937_64& random) const {
    const double at = std::uniform_real_distribution<double>(0, cumulative_.back())(random);
    return std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, at) - cumulative_.begin();
  }

 private:
  std::vector<double> cumulative_;
};

void copy_by_threads(const float* from, float* to, Index size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int part = 0; part < threads; ++part) {
    const Index begin = size * part / threads, end = size * (part + 1) / threads;
    std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
  }
}

Result measure_stream(const Context& context, const Options& options) {
  const Index classes = options.classes > 0 ? options.classes : 50257, dim = 768, rows = 1'000'000;
  const Index batch = options.batch_rows > 0 ? options.batch_rows : (Index{64} << 20) / (dim * 4);
  const int threads = context.info().threads;
  std::mt19937_64 random(1);
  const Zipf zipf(classes);
  std::vector<float> features(static_cast<std::size_t>(batch * dim)), copy(features.size());
  std::vector<std::int64_t> labels(static_cast<std::size_t>(batch));
  Accumulator accumulator(context, {classes, dim, Statistics::traces, {}});
  Times first, add, copying;
  // One row of every class first: the state's memory is there from then on, as the copy's is.
  for (Index k = 0; k < classes; k += batch) {
    const Index count = std::min(batch, classes - k);
    fill(features, static_cast<std::uint64_t>(rows + k));
    for (Index i = 0; i < count; ++i) labels[static_cast<std::size_t>(i)] = k + i;
    first.add([&] { accumulator.add(view(features.data(), count, dim), view(labels.data(), count)); });
  }
  for (Index done = 0; done < rows; done += batch) {
    const Index count = std::min(batch, rows - done);
    fill(features, static_cast<std::uint64_t>(done));
    for (auto& label : labels) label = zipf.draw(random);
    add.add([&] { accumulator.add(view(features.data(), count, dim), view(labels.data(), count)); });
    copying.add([&] { copy_by_threads(features.data(), copy.data(), count * dim, threads); });
  }
  const double bytes = static_cast<double>(rows * dim) * sizeof(float);
  return {"stream",
          "cpu",
          threads,
          {{"classes", static_cast<double>(classes)},
           {"dim", static_cast<double>(dim)},
           {"rows", static_cast<double>(rows)},
           {"batch_rows", static_cast<double>(batch)},
           {"first_rows_seconds", first.wall},
           {"add_seconds", add.wall},
           {"add_gb_per_s", bytes / add.wall * 1e-9},
           {"copy_gb_per_s", bytes / copying.wall * 1e-9},
           {"fraction_of_copy", copying.wall / add.wall},
           {"add_cpu_seconds", add.cpu},
           {"copy_cpu_seconds", copying.cpu},
           {"peak_mib", bench::status_mib("VmHWM")}}};
}

/// Operations a second of one call on all threads, the best of five.
double sgemm_rate(int threads) {
  constexpr int n = 2048, k = 1024;
  std::vector<float> a(n * k), b(n * k), c(n * n);
  fill(a, 1);
  fill(b, 2);
  const auto vendor = bench::open_cpu_vendor(threads);
  double best = 1e300;
  for (int i = 0; i < 5; ++i)
    best =
        std::min(best, seconds([&] { vendor->gemm(bench::Gemm::f32, false, n, n, k, a.data(), b.data(), c.data()); }));
  return 2.0 * n * n * k / best;
}

Result measure_pairs(const Context& context, const Options& options, Precision precision) {
  const Index classes = options.classes > 0 ? options.classes : 131072, dim = 1024, batch = 4096;
  const int threads = context.info().threads;
  const double bare = sgemm_rate(threads);
  std::optional<ClassMoments> moments;
  {
    Accumulator accumulator(context, {classes, dim, Statistics::traces, {}, precision});
    std::vector<float> features(static_cast<std::size_t>(batch * dim));
    std::vector<std::int64_t> labels(static_cast<std::size_t>(batch));
    for (Index first = 0; first < 2 * classes; first += batch) {
      const Index count = std::min(batch, 2 * classes - first);
      fill(features, static_cast<std::uint64_t>(first));
      for (Index i = 0; i < batch; ++i) labels[static_cast<std::size_t>(i)] = (first + i) % classes;
      accumulator.add(view(features.data(), count, dim), view(labels.data(), count));
    }
    moments.emplace(accumulator.finish());
  }
  std::optional<Report> report;
  const double time = seconds([&] { report.emplace(measure(*moments)); });
  Result result{precision == Precision::fast ? "pairs_fast" : "pairs",
                "cpu",
                threads,
                {{"classes", static_cast<double>(classes)}, {"dim", static_cast<double>(dim)}}};
  const double k = static_cast<double>(classes), flop = k * k * static_cast<double>(dim);
  for (const char* key : {"nc1_cdnv", "nc2_cos_mean_h", "nc2_cos_std_h", "nc2_cos_max_h", "nc2_gnc_dist_mean",
                          "nc2_gnc_dist_var", "nc2_min_angle_deg"})
    if (const auto value = report->find(key)) result.numbers.emplace_back(key, *value);
  result.numbers.insert(result.numbers.end(), {{"cosine_error", report->cosine_error},
                                               {"measure_seconds", time},
                                               {"gflop_per_s", flop / time * 1e-9},
                                               {"sgemm_gflop_per_s", bare * 1e-9},
                                               {"fraction_of_sgemm", flop / time / bare},
                                               {"peak_mib", bench::status_mib("VmHWM")}});
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  std::string commit, json;
  std::vector<std::string> names;
  Options options;
  double load = 0;
  getloadavg(&load, 1);
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      const auto value = [&] {
        if (i + 1 == argc) throw UsageError(word + " needs a value");
        return std::string(argv[++i]);
      };
      if (word == "--commit")
        commit = value();
      else if (word == "--json")
        json = value();
      else if (word == "--classes")
        options.classes = std::max(2L, std::atol(value().c_str()));
      else if (word == "--threads")
        options.threads = std::max(1, std::atoi(value().c_str()));
      else if (word == "--batch-rows")
        options.batch_rows = std::max(1L, std::atol(value().c_str()));
      else if (word == "stream" || word == "pairs" || word == "pairs_fast")
        names.push_back(word);
      else
        throw UsageError("there is no measurement " + word);
    }
    if (names.empty()) names = {"stream", "pairs"};
    const Context context(Device::parse("cpu"), {.threads = options.threads});
    std::vector<Result> results;
    for (const auto& name : names) {
      const Precision precision = name == "pairs_fast" ? Precision::fast : Precision::exact;
      results.push_back(name == "stream" ? measure_stream(context, options)
                                         : measure_pairs(context, options, precision));
      print(results.back());
    }
    if (!json.empty()) bench::write_json(json, commit, load, results);
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.kind());
  }
}
