// end_to_end FEATURES LABELS WEIGHTS BIAS [--batch ROWS] [--device auto|cpu|cuda]
// The whole job on arrays in memory, as a training program would do it: accumulate, decide, measure. Prints one JSON
// object with the seconds of that (reading the files before it is not counted) and every metric.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include "ncollapse/ncollapse.hpp"

namespace {

using namespace ncollapse;

/// A file's array in memory of its own.
struct Matrix {
  std::vector<std::byte> memory;
  MatrixView whole;

  Matrix(const std::string& file, ArrayRole role) {
    ArrayFile array = ArrayFile::open(file, role);
    memory.resize(static_cast<std::size_t>(array.rows() * array.row_bytes()));
    whole = array.read_matrix(0, array.rows());
    std::memcpy(memory.data(), whole.data, memory.size());
    whole.data = memory.data();
  }
};

std::vector<std::int64_t> read_labels(const std::string& file) {
  ArrayFile array = ArrayFile::open(file, ArrayRole::labels);
  const LabelView labels = array.read_labels(0, array.rows());
  if (labels.type != LabelType::i64) throw UsageError(file + ": this program reads int64 labels only");
  const auto* first = static_cast<const std::int64_t*>(labels.data);
  return {first, first + labels.size};
}

/// Largest resident size since it was last reset, arrays of the caller included.
double peak_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  return 0;
}

template <class Consumer>
void pass(Consumer& consumer, const MatrixView& features, const std::vector<std::int64_t>& labels, Index batch_rows) {
  for (Index first = 0; first < features.rows; first += batch_rows) {
    MatrixView batch = features;
    batch.data = static_cast<const std::byte*>(features.data) + first * features.row_stride() * size_of(features.dtype);
    batch.rows = std::min(batch_rows, features.rows - first);
    consumer.add(batch, view(labels.data() + first, batch.rows));
  }
}

void run(const std::vector<std::string>& files, Index batch_rows, const std::string& device) {
  const Matrix features(files[0], ArrayRole::features), weights(files[2], ArrayRole::weights);
  const std::vector<std::int64_t> labels = read_labels(files[1]);
  Matrix bias(files[3], ArrayRole::bias);
  bias.whole.cols *= bias.whole.rows;  // b as a row, whatever the file calls it
  bias.whole.rows = 1;
  bias.whole.stride = 0;
  const Classifier head{.layers = {weights.whole}, .bias = bias.whole};

  std::ofstream("/proc/self/clear_refs") << 5;  // the peak from here on: reading the files does not count
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const Context context(Device::parse(device));
  const ClassMoments moments = [&] {
    Accumulator accumulator(context, {.classes = weights.whole.rows, .dim = features.whole.cols});
    pass(accumulator, features.whole, labels, batch_rows);
    return accumulator.finish();
  }();
  const DecisionCounts decisions = [&] {
    DecisionCounter counter(moments, &head);
    pass(counter, features.whole, labels, batch_rows);
    return counter.finish();
  }();
  const auto accumulated = Clock::now();
  const Report report = measure(moments, {.classifier = &head, .train = &decisions}, Convention::peer);
  const auto end = Clock::now();

  const auto seconds = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  std::cout << std::setprecision(17) << "{\"seconds\": " << seconds(start, end)
            << ", \"accumulate_seconds\": " << seconds(start, accumulated)
            << ", \"measure_seconds\": " << seconds(accumulated, end) << ", \"device\": \""
            << to_string(context.info().device) << "\", \"peak_mib\": " << peak_mib()
            << ", \"threads\": " << context.info().threads << ", \"metrics\": {";
  for (const char* comma = ""; const Metric& metric : report.metrics) {
    std::cout << comma << '"' << metric.key << "\": " << metric.value;
    comma = ", ";
  }
  std::cout << "}}\n";
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> files;
  Index batch_rows = 1000;
  std::string device = "cpu";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--batch" && i + 1 < argc) {
      batch_rows = std::max(1L, std::stol(argv[++i]));
    } else if (word == "--device" && i + 1 < argc) {
      device = argv[++i];
    } else {
      files.push_back(word);
    }
  }
  if (files.size() != 4) {
    std::cerr << "usage: end_to_end FEATURES LABELS WEIGHTS BIAS [--batch ROWS] [--device auto|cpu|cuda]\n";
    return 2;
  }
  try {
    run(files, batch_rows, device);
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.kind());
  }
}
