// end_to_end FEATURES LABELS WEIGHTS BIAS [--batch ROWS] [--device auto|cpu|cuda] [--plain]
// The whole job on arrays in the device's memory, as a training program would do it: accumulate, decide, measure.
// Prints one JSON object with the seconds of that (reading the files and placing the arrays before it are not counted)
// and every metric. --plain: the same by one-hot products and separate passes, BLAS alone, with the metrics that gives.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "bench/program.hpp"
#include "bench/vendor.hpp"
#include "host/backend.hpp"
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

/// A copy in the device's memory; on the CPU the array itself.
std::shared_ptr<void> place(const Context& context, const void* data, Index bytes) {
  if (context.info().device.type == DeviceType::cpu) return {std::shared_ptr<void>(), const_cast<void*>(data)};
  std::shared_ptr<void> memory = context.backend()->allocate(bytes);
  context.backend()->upload(memory.get(), data, bytes);
  return memory;
}

struct Job {
  Context context;
  MatrixView features;
  LabelView labels;
  MatrixView weights, bias;  // in host memory
  Index batch_rows;

  template <class Consumer>
  void pass(Consumer& consumer) const {
    const auto* rows = static_cast<const std::byte*>(features.data);
    const auto* ids = static_cast<const std::int64_t*>(labels.data);
    for (Index first = 0; first < features.rows; first += batch_rows) {
      const Index count = std::min(batch_rows, features.rows - first);
      MatrixView batch = features;
      batch.data = rows + first * features.cols * size_of(features.dtype);
      batch.rows = count;
      consumer.add(batch, {ids + first, LabelType::i64, count, labels.space});
    }
  }
};

struct Answer {
  double seconds = 0, accumulate = 0, measure = 0;
  std::vector<Metric> metrics;
};

using Clock = std::chrono::steady_clock;
double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

Answer run(const Job& job) {
  const Classifier head{.layers = {job.weights}, .bias = job.bias};
  const auto start = Clock::now();
  const ClassMoments moments = [&] {
    Accumulator accumulator(job.context, {.classes = job.weights.rows, .dim = job.features.cols});
    job.pass(accumulator);
    return accumulator.finish();
  }();
  const DecisionCounts decisions = [&] {
    DecisionCounter counter(moments, &head);
    job.pass(counter);
    return counter.finish();
  }();
  const auto accumulated = Clock::now();
  Report report = measure(moments, {.classifier = &head, .train = &decisions}, Convention::peer);
  const auto end = Clock::now();
  return {seconds(start, end), seconds(start, accumulated), seconds(accumulated, end), std::move(report.metrics)};
}

Answer run_plain(const Job& job, bench::Vendor& vendor) {
  const auto weights = place(job.context, job.weights.data, job.weights.rows * job.weights.cols * Index{sizeof(float)});
  const auto start = Clock::now();
  const bench::PlainResult result =
      vendor.plain({job.features, static_cast<const std::int64_t*>(job.labels.data),
                    static_cast<const float*>(weights.get()), job.weights.rows, job.batch_rows});
  const auto end = Clock::now();
  const double agree = static_cast<double>(result.agree) / static_cast<double>(job.features.rows);
  return {seconds(start, end),
          seconds(start, end) - result.pairs,
          result.pairs,
          {{"nc1_cdnv", result.nc1_cdnv}, {"nc4_agree_train", agree}}};
}

void run(const std::vector<std::string>& files, Index batch_rows, const std::string& device_name, bool plain) {
  const Matrix features(files[0], ArrayRole::features), weights(files[2], ArrayRole::weights);
  const std::vector<std::int64_t> labels = read_labels(files[1]);
  Matrix bias(files[3], ArrayRole::bias);
  bias.whole.cols *= bias.whole.rows;  // b as a row, whatever the file calls it
  bias.whole.rows = 1;
  bias.whole.stride = 0;
  if (plain && weights.whole.dtype != Dtype::f32) throw UsageError("--plain reads float32 weights only");

  const Device device = Device::parse(device_name);
  bench::reset_peak();  // the peak from here on: reading the files does not count
  std::unique_ptr<bench::Vendor> vendor;
  if (plain && device.type == DeviceType::cpu) vendor = bench::open_cpu_vendor(devices().front().threads);
  if (plain && device.type == DeviceType::cuda) vendor = bench::open_cuda_vendor(device.index);
  const Context context(device, {.cuda_stream = vendor ? vendor->stream() : nullptr});
  const MemorySpace space = device.type == DeviceType::cpu ? MemorySpace::host : MemorySpace::device;
  const auto x = place(context, features.whole.data, static_cast<Index>(features.memory.size()));
  const auto y = place(context, labels.data(), static_cast<Index>(labels.size() * sizeof(std::int64_t)));
  Job job{context,       features.whole, {y.get(), LabelType::i64, features.whole.rows, space},
          weights.whole, bias.whole,     batch_rows};
  job.features.data = x.get();
  job.features.space = space;
  if (device.type == DeviceType::cuda) {  // libraries that load kernels at their first use have done so then
    plain ? run_plain(job, *vendor) : run(job);
  }
  const Answer answer = plain ? run_plain(job, *vendor) : run(job);

  std::cout << std::setprecision(17) << "{\"seconds\": " << answer.seconds
            << ", \"accumulate_seconds\": " << answer.accumulate << ", \"measure_seconds\": " << answer.measure
            << ", \"device\": \"" << to_string(device) << "\", \"peak_mib\": " << bench::status_mib("VmHWM")
            << ", \"threads\": " << context.info().threads << ", \"metrics\": {";
  for (const char* comma = ""; const Metric& metric : answer.metrics) {
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
  bool plain = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--batch" && i + 1 < argc) {
      batch_rows = std::max(1L, std::stol(argv[++i]));
    } else if (word == "--device" && i + 1 < argc) {
      device = argv[++i];
    } else if (word == "--plain") {
      plain = true;
    } else {
      files.push_back(word);
    }
  }
  if (files.size() != 4) {
    std::cerr << "usage: end_to_end FEATURES LABELS WEIGHTS BIAS [--batch ROWS] [--device auto|cpu|cuda] "
                 "[--plain]\n";
    return 2;
  }
  try {
    run(files, batch_rows, device, plain);
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.kind());
  }
}
