// theory [NAME...] [--classes K,K,...] [--device auto|cpu|cuda] [--commit HASH] [--json FILE]
// What the structure of label matrices saves: seconds (medians) and memory of the theory's calls, beside the dense way.
// Without names everything is measured:
//   predict    1,000,000 classes of 1000 distinct sizes on one thread
//   spectrum   K classes of random sizes, U^T X and V^T X for X [K x 1] and [K x 64], against the dense decomposition
//              on the device; the dense one runs once and takes minutes for K = 4096 on a few cores
//   distance   geometry_distance for 131072 classes of 2000 distinct sizes, d = 1024, beside one pass over W and M
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "bench/program.hpp"
#include "host/backend.hpp"
#include "ncollapse/ncollapse.hpp"

extern "C" void omp_set_num_threads(int threads);  // predict() uses as many threads as OpenMP would

namespace {

using namespace ncollapse;
using bench::Result, bench::seconds, bench::status_mib;

struct Options {
  std::vector<Index> classes{1024, 2048, 4096};
  Device device = Device::best();
};

template <class Call>
double median_seconds(const Call& call, int repeats = 5) {
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) times.push_back(seconds(call));
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<std::size_t>(repeats / 2)];
}

// ------------------------------------------------------------------------------------------------ predict

std::vector<Result> measure_predict(const Options&) {
  constexpr Index kClasses = 1'000'000, kSizes = 1000;
  UfmOptions model{.lambda_w = {1e-10}, .lambda_h = 1e-10};
  for (Index k = 0; k < kClasses; ++k) model.counts.push_back(1 + k % kSizes);
  const int threads = devices().front().threads;
  omp_set_num_threads(1);
  bench::reset_peak();
  const double before = status_mib("VmRSS");
  predict(model);
  const double growth = status_mib("VmHWM") - before;
  const double time = median_seconds([&] { predict(model); });
  omp_set_num_threads(threads);
  return {{"predict",
           "cpu",
           1,
           {{"classes", kClasses}, {"sizes", kSizes}, {"seconds", time}, {"peak_growth_mib", growth}}}};
}

// ------------------------------------------------------------------------------------------------ spectrum

Matrix dense_label_matrix(Backend& backend, const std::vector<Index>& counts, Index samples) {
  const auto classes = static_cast<Index>(counts.size());
  std::vector<double> entries;
  for (Index j = 0; j < classes; ++j)
    for (Index k = 0; k < classes; ++k)
      entries.push_back(((j == k) - static_cast<double>(counts[j]) / static_cast<double>(samples)) *
                        std::sqrt(static_cast<double>(counts[k])));
  return backend.from_host(entries, classes, classes);
}

std::vector<Result> measure_spectrum(const Options& options) {
  constexpr Index kColumns = 64;
  const Context context(options.device);
  Backend& backend = *context.backend();
  backend.svd(dense_label_matrix(backend, {1, 2, 3}, 6));  // what a solver loads on its first call does not count
  std::vector<Result> results;
  for (const Index classes : options.classes) {
    std::mt19937 random(1);
    std::vector<Index> counts;
    for (Index k = 0; k < classes; ++k) counts.push_back(1 + static_cast<Index>(random() % 10000));
    std::vector<double> vector, columns;
    for (Index i = 0; i < classes; ++i) vector.push_back(std::sin(static_cast<double>(i)));
    for (Index i = 0; i < classes * kColumns; ++i) columns.push_back(std::cos(static_cast<double>(i)));

    const auto structured = [&](const std::vector<double>& X, Index width) {
      return median_seconds([&] {
        const LabelSpectrum spectrum(counts, LabelModel::with_bias);
        spectrum.apply_left(X, width);
        spectrum.apply_right(X, width);
      });
    };
    const double with_vector = structured(vector, 1), with_columns = structured(columns, kColumns);
    const LabelSpectrum spectrum(counts, LabelModel::with_bias);
    const Matrix matrix = dense_label_matrix(backend, counts, spectrum.samples());
    Svd svd;
    const double dense = seconds([&] { svd = backend.svd(matrix); });
    double difference = 0;
    const auto sigma = spectrum.sigma();
    for (std::size_t i = 0; i + 1 < sigma.size(); ++i)  // the last one is 0
      difference = std::max(difference, std::abs(svd.values[i] / sigma[i] - 1));
    results.push_back({"spectrum",
                       to_string(options.device),
                       context.info().threads,
                       {{"classes", static_cast<double>(classes)},
                        {"sizes", static_cast<double>(std::set<Index>(counts.begin(), counts.end()).size())},
                        {"structured_seconds_vector", with_vector},
                        {"structured_seconds_64_columns", with_columns},
                        {"dense_seconds", dense},
                        {"ratio_vector", dense / with_vector},
                        {"ratio_64_columns", dense / with_columns},
                        {"max_relative_difference", difference}}});
  }
  return results;
}

// ------------------------------------------------------------------------------------------------ distance

std::vector<Result> measure_distance(const Options& options) {
  constexpr Index kClasses = 131072, kDim = 1024, kSizes = 2000;
  const Context context(options.device);
  Backend& backend = *context.backend();
  std::mt19937_64 random(7);
  std::vector<Index> counts;
  for (Index k = 0; k < kClasses; ++k) counts.push_back(5 + 3 * (k % kSizes));
  Matrix W, M;
  for (Matrix* matrix : {&W, &M}) {
    std::vector<double> values(static_cast<std::size_t>(kClasses * kDim));
    for (double& value : values) value = static_cast<double>(random() >> 11) * 0x1p-53 - 0.5;
    *matrix = backend.from_host(values, kClasses, kDim);
  }
  const double pass = median_seconds([&] { backend.row_dots(W, M); });  // reads both once
  const MemorySpace space = options.device.type == DeviceType::cpu ? MemorySpace::host : MemorySpace::device;
  const auto view_of = [&](const Matrix& A) { return MatrixView{A.data(), Dtype::f64, A.rows, A.cols, 0, space}; };
  constexpr double kDecay = 1.7e-7;  // about a third of the directions survive
  const UfmOptions model{counts, {kDecay}, kDecay, true, 0};
  GeometryDistance distance;
  bench::reset_peak();
  const double before = status_mib("VmRSS");
  const double time = median_seconds([&] { distance = geometry_distance(context, model, view_of(W), view_of(M)); }, 3);
  if (!distance.undefined.empty()) throw UsageError("no distance: " + distance.undefined.begin()->second);
  return {{"distance",
           to_string(options.device),
           context.info().threads,
           {{"classes", static_cast<double>(kClasses)},
            {"sizes", static_cast<double>(kSizes)},
            {"dim", static_cast<double>(kDim)},
            {"pass_seconds", pass},
            {"seconds", time},
            {"passes", time / pass},
            {"peak_growth_mib", status_mib("VmHWM") - before}}}};
}

// ------------------------------------------------------------------------------------------------ the program

const std::vector<std::pair<std::string, std::vector<Result> (*)(const Options&)>> kMeasurements{
    {"predict", measure_predict},
    {"spectrum", measure_spectrum},
    {"distance", measure_distance},
};

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> names;
  std::string commit, json;
  double load_before = 0;
  getloadavg(&load_before, 1);
  try {
    Options options;
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      const auto value = [&] {
        if (i + 1 == argc) throw UsageError(word + " needs a value");
        return std::string(argv[++i]);
      };
      if (word == "--device") {
        options.device = Device::parse(value());
      } else if (word == "--commit") {
        commit = value();
      } else if (word == "--json") {
        json = value();
      } else if (word == "--classes") {
        options.classes.clear();
        std::istringstream list(value());
        for (std::string number; std::getline(list, number, ',');)
          options.classes.push_back(std::max(2L, std::stol(number)));
      } else {
        names.push_back(word);
      }
    }
    const bool everything = names.empty();
    std::vector<Result> results;
    for (const auto& [name, measure_it] : kMeasurements) {
      if (std::erase(names, name) == 0 && !everything) continue;
      for (Result& result : measure_it(options)) {
        print(result);
        results.push_back(std::move(result));
      }
    }
    if (!names.empty()) throw UsageError("there is no measurement " + names.front());
    if (!json.empty()) bench::write_json(json, commit, load_before, results);
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.kind());
  }
}
