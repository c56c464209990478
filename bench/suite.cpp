#include "bench/suite.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <tuple>
#include <utility>

#include "bench/oracle.hpp"
#include "bench/samples.hpp"
#include "host/backend.hpp"
#include "ncollapse/ncollapse.hpp"

namespace ncollapse::bench {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Processor time that anybody has used, from /proc/stat: all but idle and waiting for disks.
double busy_seconds() {
  std::ifstream stat("/proc/stat");
  std::string word;
  double busy = 0, ticks = 0;
  stat >> word;
  for (int field = 0; field < 8 && stat >> ticks; ++field) busy += field == 3 || field == 4 ? 0 : ticks;
  return busy / static_cast<double>(sysconf(_SC_CLK_TCK));
}
double own_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Timing {
  Index repeats = 0;
  double median = 0, fastest = 0, slowest = 0;
};

/// FNV-1a, a word at a time.
class Hash {
 public:
  void add(double value) { add(std::bit_cast<std::uint64_t>(value)); }
  void add(const std::vector<double>& values) {
    for (const double value : values) add(value);
  }
  void add(const std::vector<Index>& values) {
    for (const Index value : values) add(static_cast<std::uint64_t>(value));
  }
  void add(std::uint64_t word) { value_ = (value_ ^ word) * 0x100000001b3U; }
  std::uint64_t value() const { return value_ ^ value_ >> 32; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325U;
};

/// Times of a call: warmed up, several calls to a sample where one is too short for the clock, waiting for the device
/// after each sample. `call` is given its number, to take other memory each time.
template <class Call>
Timing time_calls(Vendor& vendor, int repeats, double seconds, const Call& call) {
  constexpr double kShortest = 2e-3;
  constexpr std::size_t kLeast = 3;
  Index number = 0;
  call(number++);
  vendor.wait();
  auto start = Clock::now();
  call(number++);
  vendor.wait();
  const auto calls = static_cast<Index>(std::clamp(kShortest / std::max(since(start), 1e-9), 1.0, 1e5));
  std::vector<double> times;
  const auto begin = Clock::now();
  while (times.size() < static_cast<std::size_t>(repeats) && (times.size() < kLeast || since(begin) < seconds)) {
    start = Clock::now();
    for (Index i = 0; i < calls; ++i) call(number++);
    vendor.wait();
    times.push_back(since(start) / static_cast<double>(calls));
  }
  std::sort(times.begin(), times.end());
  const std::size_t middle = times.size() / 2;
  const double median = times.size() % 2 == 1 ? times[middle] : (times[middle - 1] + times[middle]) / 2;
  return {static_cast<Index>(times.size()), median, times.front(), times.back()};
}

/// What copies and products reach here, each measured once.
class Floors {
 public:
  /// seconds: for each measurement.
  Floors(const Context& context, Vendor& vendor, double seconds)
      : backend_(*context.backend()), vendor_(vendor), memory_(context.info().memory_bytes), seconds_(seconds) {
    // Far more than the cache holds, where there is time for it.
    const Index cache = vendor.cache_bytes();
    const Index bytes = std::min(std::clamp(static_cast<Index>(4e9 * seconds), 2 * cache, 16 * cache), memory_ / 16);
    const auto from = backend_.allocate(bytes), to = backend_.allocate(bytes);
    vendor_.copy(from.get(), to.get(), bytes);
    const Timing timing = time_calls(vendor_, 20, seconds_, [&](Index) { vendor_.copy(to.get(), from.get(), bytes); });
    rates_.copy_bytes_per_s = 2 * static_cast<double>(bytes) / timing.median;
    for (const auto& [type, rate] :
         {std::pair{Gemm::f64, &Rates::dgemm}, {Gemm::f32, &Rates::sgemm}, {Gemm::f16, &Rates::hgemm}}) {
      if (!vendor_.has(type)) continue;
      for (Index n = 512; n <= 8192; n *= 2) {
        rates_.*rate = std::max(rates_.*rate, measured(type, false, n, n, n));
        if (2.0 * std::pow(n, 3) / (rates_.*rate) > std::min(0.02, seconds_)) break;
      }
    }
  }

  const Rates& rates() const { return rates_; }
  double copy() const { return rates_.copy_bytes_per_s; }
  double best(Gemm type) const {
    return type == Gemm::f64 ? rates_.dgemm : type == Gemm::f32 ? rates_.sgemm : rates_.hgemm;
  }
  /// FLOP/s of a product of that shape, cut where its memory or its time would be out of proportion.
  double of_shape(Gemm type, bool gram, Index m, Index n, Index k) {
    const double most = std::min(0.04, seconds_) * best(type) / 2;  // multiplications in 40 ms
    const Index room = memory_ / 32 / 8;
    m = std::min({m, Index{8192}, room / std::max(n, k)});
    if (gram) {
      k = std::clamp<Index>(static_cast<Index>(most / static_cast<double>(m * n)), 64, k);
    } else {
      n = std::clamp<Index>(static_cast<Index>(most / static_cast<double>(std::min<Index>(m, 256) * k)), 64, n);
      m = std::clamp<Index>(static_cast<Index>(most / static_cast<double>(n * k)), 64, m);
    }
    double& rate = shapes_[{type, gram, m, n, k}];
    if (rate == 0) rate = measured(type, gram, m, n, k);
    return rate;
  }

 private:
  double measured(Gemm type, bool gram, Index m, Index n, Index k) {
    const Index size = type == Gemm::f64 ? 8 : type == Gemm::f32 ? 4 : 2, result = type == Gemm::f64 ? 8 : 4;
    const void* A = numbers(type, m * k * size, 0);
    const void* B = numbers(type, n * k * size, 1);
    const auto C = backend_.allocate(m * n * result);
    const Timing timing =
        time_calls(vendor_, 20, seconds_, [&](Index) { vendor_.gemm(type, gram, m, n, k, A, B, C.get()); });
    return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) / timing.fastest;
  }

  /// Standard normal operands: zeros would be faster than real data on a GPU.
  const void* numbers(Gemm type, Index bytes, int which) {
    auto& [memory, size] = operands_[{type, which}];
    if (size >= bytes) return memory.get();
    constexpr std::uint64_t kOperandStream = 100;  // and the next: none of the samples'
    constexpr Index kBlock = Index{1} << 20;
    std::vector<std::byte> block(static_cast<std::size_t>(kBlock));
    for (Index i = 0; i < kBlock / (type == Gemm::f64 ? 8 : type == Gemm::f32 ? 4 : 2); ++i) {
      const float x = normal(kOperandStream + static_cast<std::uint64_t>(which), 0, i);
      if (type == Gemm::f64) reinterpret_cast<double*>(block.data())[i] = x;
      if (type == Gemm::f32) reinterpret_cast<float*>(block.data())[i] = x;
      if (type == Gemm::f16) reinterpret_cast<_Float16*>(block.data())[i] = static_cast<_Float16>(x);
    }
    size = (bytes + kBlock - 1) / kBlock * kBlock;
    memory.reset();
    memory = backend_.allocate(size);
    for (Index at = 0; at < size; at += kBlock)
      backend_.upload(static_cast<std::byte*>(memory.get()) + at, block.data(), kBlock);
    return memory.get();
  }

  Backend& backend_;
  Vendor& vendor_;
  Index memory_;
  double seconds_;
  Rates rates_;
  std::map<std::tuple<Gemm, bool, Index, Index, Index>, double> shapes_;
  std::map<std::pair<Gemm, int>, std::pair<std::shared_ptr<void>, Index>> operands_;
};

/// The samples of a shape, on the host as a generator and on the device as memory.
struct Instance {
  Samples samples;
  Placed placed;
  std::vector<float> weights;

  Instance(const Context& context, const Shape& shape, int threads)
      : samples(shape, threads),
        placed(
            context, samples,
            shape.on_host || context.info().device.type == DeviceType::cpu ? MemorySpace::host : MemorySpace::device),
        weights(samples.weights()) {}

  Classifier head() const { return {.layers = {view(weights.data(), samples.shape().classes, samples.shape().dim)}}; }
};

// Noise over mean norm. From the one on all rows of a case need scores for their decisions, with the other none does.
constexpr double kFar = 0.75, kCollapsed = 1e-2;

class Suite {
 public:
  Suite(const Options& options, const Progress& progress)
      : options_(options),
        progress_(progress),
        cuda_(options.device.type == DeviceType::cuda),
        vendor_(cuda_ ? open_cuda_vendor(options.device.index) : open_cpu_vendor(cpu_threads(options))),
        context_(options.device, {.threads = options.threads, .cuda_stream = vendor_->stream()}),
        backend_(*context_.backend()),
        host_threads_(cpu_threads(options)),
        repeats_(options.repeats > 0 ? options.repeats
                 : cuda_             ? 20
                                     : 7),
        floors_(context_, *vendor_, options.seconds / 4),
        call_(options.seconds / (repeats_ + 2)) {}

  Results run();

 private:
  static int cpu_threads(const Options& options) {
    return options.threads > 0 ? options.threads : devices().front().threads;
  }
  /// Elements that the host makes in that many times the timing of a row; on a GPU, in five times as many, since there
  /// only large shapes say something.
  double made_in(double times) const { return 1e8 * times * (cuda_ ? 5 : 1) * options_.seconds * host_threads_; }
  static double number(Index i) { return static_cast<double>(i); }

  Shape fit(const Case& from, std::string_view operation) const;
  const Instance& instance(const Shape& shape);
  Measurement measure_one(const Case& from, std::string_view operation);

  // Each fills in what only it knows.
  void add(Measurement& m, const Instance& data, const AccumulatorOptions& how);
  void decide(Measurement& m, const Instance& data, bool collapsed);
  void pairs(Measurement& m, const Instance& data, bool fast);
  void eigen(Measurement& m, const Instance& data);
  void svd(Measurement& m, const Instance& data);
  void finish_and_measure(Measurement& m, const Instance& data);
  void end_to_end(Measurement& m, const Instance& data);
  void add_overhead(Measurement& m, const Instance& data);

  template <class Call>
  void time(Measurement& m, const Call& call) {
    if (options_.profile) {
      call(0);  // what is made on first use
      vendor_->wait();
      vendor_->profile(true);
      call(1);
      vendor_->wait();
      vendor_->profile(false);
    }
    const Timing timing = time_calls(*vendor_, repeats_, options_.seconds, call);
    m.repeats = timing.repeats;
    m.seconds = timing.median;
    m.fastest = timing.fastest;
    m.slowest = timing.slowest;
  }
  /// Runs `once` from a fresh start and compares the bits: a hundred times where those fit an eighth of the row's time,
  /// on a GPU all of it once more, else as often as fit, twice at least. The row says how often.
  template <class Once>
  void hash(Measurement& m, const Once& once) {
    constexpr Index kMost = 100;
    const double seconds = options_.seconds / (cuda_ ? 1 : 8);
    const auto start = Clock::now();
    do {
      const std::uint64_t value = once();
      if (m.hashed++ == 0) m.hash = value;
      m.same_bits = m.same_bits && value == m.hash;
    } while (m.hashed < 2 || (m.hashed < kMost && since(start) < seconds));
  }
  /// The larger of both needs; kind says which.
  void set_floor(Measurement& m, Gemm type, double rate) {
    const double bytes = m.bytes / floors_.copy(), flop = m.flop > 0 ? m.flop / rate : 0;
    m.floor = bytes >= flop ? Floor{"copy", bytes} : Floor{to_string(type), flop};
  }
  double product_rate(Gemm type, bool gram, Index m, Index n, Index k) {
    return cuda_ ? floors_.best(type) : floors_.of_shape(type, gram, m, n, k);
  }
  Index batch_rows(const Shape& shape) const {
    if (shape.batch_rows > 0) return shape.batch_rows;
    const auto rows_in = [&](Index mebibytes) { return std::max<Index>((mebibytes << 20) / shape.row_bytes(), 1); };
    if (cuda_) return rows_in(shape.on_host ? 64 : 4096);
    // A batch is read twice, once to check it: the second time it is still in the cache. With many classes the state is
    // more than a batch, and four rows of a class are to share its way there and back.
    return std::max(rows_in(8), std::min(4 * shape.classes, rows_in(64)));
  }
  /// Rows first .. first + shape.samples - 1 of the placed data, in batches.
  template <class Consumer>
  void pass(Consumer& consumer, const Instance& data, const Shape& shape, Index first) const {
    const Index batch = batch_rows(shape);
    for (Index at = 0; at < shape.samples; at += batch) {
      const Index rows = std::min(batch, shape.samples - at);
      consumer.add(data.placed.features_at(first + at, rows), data.placed.labels_at(first + at, rows));
    }
  }
  /// Where the window of call i begins: other rows each time, so that no cache holds them.
  static Index window(const Instance& data, const Shape& shape, Index i) {
    return i % (data.samples.shape().samples / shape.samples) * shape.samples;
  }
  /// `how`: all but the sizes.
  Accumulator accumulator(const Shape& shape, AccumulatorOptions how) const {
    how.classes = shape.classes;
    how.dim = shape.dim;
    return Accumulator(context_, how);
  }
  ClassMoments moments(const Instance& data, const Shape& shape, const AccumulatorOptions& how) const {
    Accumulator sums = accumulator(shape, how);
    pass(sums, data, shape, 0);
    return sums.finish();
  }
  /// As many of its first rows as the oracle does quickly.
  static Shape few_rows(const Shape& shape) {
    constexpr Index kElements = 4'000'000;
    Shape few = shape;
    few.samples = std::clamp<Index>(kElements / shape.dim, 1, shape.samples);
    return few;
  }
  static void set_report_error(Measurement& m, const Instance& data, const Shape& checked, const Report& report) {
    m.error = error_of_report(data.samples, checked.samples, report);
    m.error_of = "nc1_trace_ratio and nc2_equinorm_h by definition, first " + std::to_string(checked.samples);
  }
  static Shape whole(const Instance& data, const Shape& shape) {
    Shape all = shape;
    all.samples = data.samples.shape().samples;
    return all;
  }

  Options options_;
  Progress progress_;
  bool cuda_;
  std::unique_ptr<Vendor> vendor_;
  Context context_;
  Backend& backend_;
  int host_threads_;
  int repeats_;
  Floors floors_;
  double call_;  // seconds that one call may take, about
  std::unique_ptr<Instance> instance_;
};

// ------------------------------------------------------------------------------------------------ shapes

/// The case as this machine can do it in the time: fewer samples, and fewer classes where the state, or work that grows
/// with their square, would be too much.
Shape Suite::fit(const Case& from, std::string_view operation) const {
  Shape shape = from.shape;
  if (options_.sigma > 0) shape.sigma = options_.sigma;
  if (operation == "decisions") shape.sigma = std::max(shape.sigma, kFar);
  if (operation == "decisions_collapsed") shape.sigma = std::min(shape.sigma, kCollapsed);
  const double dim = number(shape.dim), copy = floors_.copy(), dgemm = floors_.best(Gemm::f64),
               decide = floors_.best(cuda_ ? Gemm::f16 : Gemm::f32);
  const double memory = number(context_.info().memory_bytes), host_memory = number(devices().front().memory_bytes);
  const auto at_most = [](Index& value, double limit, Index least) {
    value = std::max(std::min(value, static_cast<Index>(std::min(limit, 9e18))), std::min(value, least));
  };
  shape.samples =
      std::max<Index>(static_cast<Index>(number(shape.samples) * options_.scale), std::min<Index>(shape.samples, 64));

  at_most(shape.classes, number(shape.samples), 2);  // at most one class a sample
  // K: six K x d arrays of doubles in a quarter of the memory, the state read and written once in the time of a call.
  at_most(shape.classes, memory / 4 / (48 * dim), 2);
  at_most(shape.classes, call_ * copy / (24 * dim), 2);
  const bool quadratic = operation == "measure" || operation == "end_to_end";
  if (quadratic) at_most(shape.classes, std::sqrt(2 * call_ * dgemm / (4 * dim)), 2);
  if (operation == "pairs") at_most(shape.classes, std::sqrt(call_ * dgemm / dim), 2);
  if (operation == "pairs_fast") at_most(shape.classes, std::sqrt(call_ * decide / dim), 2);
  const double solver = std::cbrt(call_ * dgemm / 20);  // about 9 n^3 at a fraction of the rate of a product
  if (operation == "eigen" || operation == "svd") {
    at_most(shape.classes, solver, 2);
    if (operation == "svd") {
      at_most(shape.dim, 2 * solver, 2);
      at_most(shape.classes, dim, 2);  // wide, as the bare solver takes it
    }
  }
  const double classes = number(shape.classes);

  const Index few = 256 * std::max(1, cuda_ ? 8 : host_threads_);  // a tile for every thread
  // N: memory, the time to make them on the host, and the time of a call.
  at_most(shape.samples, memory / 4 / number(shape.row_bytes()), 1);
  at_most(shape.samples, host_memory / 4 / number(shape.row_bytes() + 8), 1);
  at_most(shape.samples, made_in(0.3) / dim, few);
  const double of_copy = number(shape.row_bytes()) * 2 / copy, of_scatter = dim * (dim + 1) / dgemm,
               of_decisions = 4 * classes * dim / decide;
  if (operation == "sums") at_most(shape.samples, call_ / of_copy, few);
  if (operation == "scatter" || operation == "scatter_fast")
    at_most(shape.samples, call_ / (of_copy + of_scatter), few);
  if (operation == "decisions") at_most(shape.samples, call_ / (of_copy + of_decisions), few);
  if (operation == "decisions_collapsed") at_most(shape.samples, call_ / of_copy, few);
  // More samples than dimensions, as everywhere in practice: the scatter has to have full rank.
  if (quadratic)
    at_most(shape.samples, call_ / (2 * of_copy + of_scatter + of_decisions), 2 * (shape.classes + shape.dim));
  if (operation == "add_overhead") shape.samples = 64;
  if (shape.sizes == Sizes::singletons) shape.samples = shape.classes = std::min(shape.classes, shape.samples);
  if (shape.batch_rows > 0) shape.batch_rows = std::max<Index>(shape.samples / 16, 1);
  return shape;
}

const Instance& Suite::instance(const Shape& shape) {
  if (instance_) {
    const Shape& have = instance_->samples.shape();
    if (have.id == shape.id && have.classes == shape.classes && have.dim == shape.dim && have.sigma == shape.sigma &&
        have.samples >= shape.samples)
      return *instance_;
  }
  instance_.reset();
  Shape larger = shape;  // enough that windows move through more than the cache
  if (shape.sizes != Sizes::singletons) {
    const Index wanted = 2 * vendor_->cache_bytes() / shape.row_bytes() + 1;
    larger.samples = (std::max(wanted, shape.samples) + shape.samples - 1) / shape.samples * shape.samples;
    if (number(larger.samples) * number(shape.dim) > made_in(0.6) * options_.scale) larger.samples = shape.samples;
  }
  instance_ = std::make_unique<Instance>(context_, larger, host_threads_);
  return *instance_;
}

// ------------------------------------------------------------------------------------------------ operations

void Suite::add(Measurement& m, const Instance& data, const AccumulatorOptions& how) {
  const Shape& shape = m.shape;
  const bool full = how.statistics == Statistics::full, fast = how.precision == Precision::fast;
  {
    Accumulator sums = accumulator(shape, how);
    time(m, [&](Index i) { pass(sums, data, shape, window(data, shape, i)); });
  }
  ClassMoments result = moments(data, shape, how);
  hash(m, [&] {
    result = moments(data, shape, how);
    Hash bits;
    bits.add(result.counts());
    bits.add(result.means());
    bits.add(result.within_variances());
    if (full) bits.add(result.within_scatter());
    return bits.value();
  });
  m.error =
      full ? error_of_scatter(data.samples, shape.samples, result) : error_of_sums(data.samples, shape.samples, result);
  m.error_of = full ? "entries of the scatter of 5 columns" : "means and variances of some classes";

  const double rows = number(shape.samples), dim = number(shape.dim);
  double touched = 0;  // class sums that a batch reads and writes, and their shifts
  std::vector<Index> last_batch(static_cast<std::size_t>(shape.classes), -1);
  for (Index i = 0; i < shape.samples; ++i) {
    Index& last = last_batch[data.samples.labels()[i]];
    if (last != i / batch_rows(shape)) touched += 1;
    last = i / batch_rows(shape);
  }
  m.bytes = rows * (number(shape.row_bytes()) + 8) + 24 * dim * touched;
  m.flop = rows * dim * (full ? dim + 1 : 0);
  const Gemm type = !fast ? Gemm::f64 : cuda_ ? Gemm::f16 : Gemm::f32;
  set_floor(m, type, full ? product_rate(type, true, shape.dim, shape.dim, shape.samples) : 1);
  // On the CPU half the speed of the product, or of a copy, which moves every byte twice. Of a GPU's product 80 %, or
  // 65 % of one in half precision (40 % where dimensions are few), counted as 2 N d^2, half of which the triangle
  // needs.
  if (!cuda_) m.bar = m.floor.kind == "copy" ? 0.25 : 0.5;
  if (cuda_ && full) m.bar = !fast ? 0.4 : shape.dim >= 2048 ? 0.325 : 0.2;
  // Shuffled rows of less than 1 KB use less of every access to memory.
  if (cuda_ && !full) m.bar = shape.sorted ? 0.85 : shape.row_bytes() >= 1024 ? 0.75 : 0.55;
}

void Suite::decide(Measurement& m, const Instance& data, bool collapsed) {
  constexpr double kCheckedProducts = 5e7;
  const Shape& shape = m.shape;
  const ClassMoments centres = moments(data, whole(data, shape), {.statistics = Statistics::means});
  const Classifier head = data.head();
  {
    DecisionCounter counter(centres, &head);
    // What is made once for a counter, when it has seen four rows a class, is not timed.
    for (Index seen = 0; collapsed && seen < 4 * shape.classes; seen += shape.samples) pass(counter, data, shape, 0);
    time(m, [&](Index i) { pass(counter, data, shape, window(data, shape, i)); });
  }
  const auto count = [&](const Shape& rows) {
    DecisionCounter counter(centres, &head);
    pass(counter, data, rows, 0);
    return counter.finish();
  };
  hash(m, [&] {
    const DecisionCounts counts = count(shape);
    Hash bits;
    bits.add(counts.correct_centre);
    bits.add(counts.correct_classifier);
    bits.add(counts.agree);
    return bits.value();
  });
  Shape checked = shape;
  checked.samples =
      std::clamp<Index>(static_cast<Index>(kCheckedProducts / number(shape.classes * shape.dim)), 1, shape.samples);
  m.error = error_of_decisions(data.samples, checked.samples, centres.means(), centres.counts(), data.weights,
                               count(checked));
  m.error_of = "wrong counts a sample, first " + std::to_string(checked.samples);

  const double rows = number(shape.samples), dim = number(shape.dim);
  m.bytes = rows * (number(shape.row_bytes()) + 8);
  m.flop = collapsed ? 0 : 2 * rows * dim * number(centres.classes_seen() + shape.classes);
  const Gemm type = cuda_ ? Gemm::f16 : Gemm::f32;
  set_floor(m, type, collapsed ? 1 : product_rate(type, false, shape.samples, shape.classes, shape.dim));
  m.bar = cuda_ ? (shape.dim >= 2048 || collapsed ? 0.6 : 0.45) : m.floor.kind == "copy" ? 0.25 : 0.5;
}

void Suite::pairs(Measurement& m, const Instance& data, bool fast) {
  constexpr double kCheckedProducts = 2e7;
  const Shape& shape = m.shape;
  const Index classes = shape.classes, dim = shape.dim;
  const auto sweep = [&](Index rows) {
    std::vector<double> values(data.weights.begin(), data.weights.begin() + rows * dim);
    Matrix A = backend_.from_host(values, rows, dim);
    PairQuery query;
    for (const double squared : backend_.row_dots(A, A)) query.norms.push_back(std::sqrt(squared));
    const Matrix gram = backend_.gram(A);
    query.gram_norm = query.frame_norm = backend_.norm(gram);
    query.variances.assign(static_cast<std::size_t>(rows), shape.sigma * shape.sigma);
    query.fast = fast;
    return std::tuple{std::move(A), std::move(query), std::move(values)};
  };
  {
    const auto [A, query, values] = sweep(classes);
    time(m, [&, &A = A, &query = query](Index) { backend_.pair_sums(A, query); });
    hash(m, [&, &A = A, &query = query] {
      const PairSums sums = backend_.pair_sums(A, query);
      Hash bits;
      bits.add(std::vector{sums.etf_residual, sums.cos_sum, sums.cos_square_sum, sums.cos_max, sums.distance_sum,
                           sums.log_sum, sums.min_unit_distance, sums.cdnv_sum});
      bits.add(sums.nearest_squared);
      return bits.value();
    });
  }
  const Index checked =
      std::clamp<Index>(static_cast<Index>(std::sqrt(2 * kCheckedProducts / number(dim))), 2, classes);
  const auto [A, query, values] = sweep(checked);
  m.error = error_of_pairs(values, checked, dim, query.variances, backend_.pair_sums(A, query));
  m.error_of = "cosine, distance and CDNV sums, first " + std::to_string(checked) + " classes";
  m.by_rows = false;
  m.bytes = 8 * number(classes) * number(dim);
  m.flop = number(classes) * number(classes) * number(dim);
  const Gemm type = !fast ? Gemm::f64 : cuda_ ? Gemm::f16 : Gemm::f32;
  set_floor(m, type, product_rate(type, false, classes, classes, dim));
  m.bar = cuda_ && fast && dim >= 2048 ? 0.7 : 0.5;
}

void Suite::eigen(Measurement& m, const Instance& data) {
  const Index n = std::min(m.shape.classes, m.shape.dim);
  const std::vector<double> values(data.weights.begin(), data.weights.begin() + n * m.shape.dim);
  const Matrix rows = backend_.from_host(values, n, m.shape.dim);
  const Matrix gram = backend_.product(rows, Transpose::no, rows, Transpose::yes);
  Matrix A = backend_.matrix(n, n);
  std::vector<double> found;
  const auto solve = [&] {
    backend_.copy(A.data(), gram.data(), gram.bytes());
    found = backend_.eigh(A);
  };
  time(m, [&](Index) { solve(); });
  const Timing bare = time_calls(*vendor_, repeats_, options_.seconds, [&](Index) {
    backend_.copy(A.data(), gram.data(), gram.bytes());
    vendor_->eigh(n, A.data());
  });
  hash(m, [&] {
    solve();
    Hash bits;
    bits.add(found);
    bits.add(backend_.to_host(A));
    return bits.value();
  });
  m.error = error_of_eigen(backend_.to_host(gram), n, found, backend_.to_host(A));
  m.error_of = "residual and length of 3 eigenvectors";
  m.by_rows = false;
  m.shape.classes = n;
  m.bytes = 8 * number(n) * number(n);
  m.floor = {cuda_ ? "syevd" : "dsyevd", bare.median};
  m.bar = 1 / 1.1;
}

void Suite::svd(Measurement& m, const Instance& data) {
  const Index rows = m.shape.classes, cols = m.shape.dim;
  const std::vector<double> values(data.weights.begin(), data.weights.end());
  const Matrix A = backend_.from_host(values, rows, cols), copy = backend_.matrix(rows, cols);
  Svd found;
  time(m, [&](Index) { found = backend_.svd(A); });
  const Timing bare = time_calls(*vendor_, repeats_, options_.seconds, [&](Index) {
    backend_.copy(copy.data(), A.data(), A.bytes());
    vendor_->svd(rows, cols, copy.data());
  });
  hash(m, [&] {
    found = backend_.svd(A);
    Hash bits;
    bits.add(found.values);
    bits.add(backend_.to_host(found.left));
    bits.add(backend_.to_host(found.right));
    return bits.value();
  });
  m.error = error_of_svd(values, rows, cols, found.values, backend_.to_host(found.left), backend_.to_host(found.right));
  m.error_of = "residual and length of 3 triplets";
  m.by_rows = false;
  m.bytes = 8 * number(rows) * number(cols);
  m.floor = {cuda_ ? "gesvd" : "dgesdd", bare.median};
  m.bar = 1 / 1.1;
}

/// Products that finish() and measure() cannot do without: the read-out of the scatter and the total one, Gram matrices
/// on the smaller side, an eigenproblem (9 r^3), pairs of means and of weights and their product.
double flop_of_measure(double classes, double dim) {
  const double r = std::min(classes, dim);
  return 2 * classes * dim * dim + 9 * r * r * r + 2 * r * dim * dim + 4 * r * classes * dim +
         4 * classes * classes * dim;
}

void Suite::finish_and_measure(Measurement& m, const Instance& data) {
  const Shape& shape = m.shape;
  const Classifier head = data.head();
  Accumulator sums = accumulator(shape, {.statistics = Statistics::full});
  pass(sums, data, shape, 0);
  Report report;
  const auto once = [&] { report = ncollapse::measure(sums.finish(), {.classifier = &head}); };
  time(m, [&](Index) { once(); });
  hash(m, [&] {
    once();
    Hash bits;
    for (const Metric& metric : report.metrics) bits.add(metric.value);
    return bits.value();
  });
  const Shape checked = few_rows(shape);
  Accumulator fewer = accumulator(checked, {.statistics = Statistics::full});
  pass(fewer, data, checked, 0);
  set_report_error(m, data, checked, ncollapse::measure(fewer.finish(), {.classifier = &head}));
  m.by_rows = false;
  m.flop = flop_of_measure(number(report.classes_seen), number(shape.dim));
  set_floor(m, Gemm::f64, floors_.best(Gemm::f64));
}

void Suite::end_to_end(Measurement& m, const Instance& data) {
  const Shape& shape = m.shape;
  const Classifier head = data.head();
  Report report;
  const auto once = [&](const Shape& part, Index first) {
    Accumulator sums = accumulator(part, {.statistics = Statistics::full});
    pass(sums, data, part, first);
    const ClassMoments found = sums.finish();
    DecisionCounter counter(found, &head);
    pass(counter, data, part, first);
    const DecisionCounts decisions = counter.finish();
    report = ncollapse::measure(found, {.classifier = &head, .train = &decisions});
  };
  time(m, [&](Index i) { once(shape, window(data, shape, i)); });
  hash(m, [&] {
    once(shape, 0);
    Hash bits;
    for (const Metric& metric : report.metrics) bits.add(metric.value);
    return bits.value();
  });
  const Shape checked = few_rows(shape);
  const double seen = number(report.classes_seen);
  once(checked, 0);
  set_report_error(m, data, checked, report);
  const double rows = number(shape.samples), dim = number(shape.dim);
  // One rate for all products, that of the wider type: a floor below what is possible.
  const Gemm narrow = cuda_ ? Gemm::f16 : Gemm::f32;
  const double decisions = shape.sigma < kFar ? 0 : 2 * rows * dim * (seen + number(shape.classes));
  const double accumulate = rows * dim * (dim + 1), measure = flop_of_measure(seen, dim);
  m.bytes = 2 * rows * number(shape.row_bytes());
  m.flop = decisions + accumulate + measure;
  const double products = (accumulate + measure) / floors_.best(Gemm::f64) + decisions / floors_.best(narrow),
               copies = m.bytes / floors_.copy();
  m.floor = copies > products ? Floor{"copy", copies} : Floor{"products", products};

  if (!options_.baseline) return;
  const auto weights = backend_.allocate(static_cast<Index>(data.weights.size() * sizeof(float)));
  backend_.upload(weights.get(), data.weights.data(), static_cast<Index>(data.weights.size() * sizeof(float)));
  const PlainInput input{data.placed.features_at(0, shape.samples),
                         static_cast<const std::int64_t*>(data.placed.labels_at(0, shape.samples).data),
                         static_cast<const float*>(weights.get()), shape.classes, std::min<Index>(shape.samples, 1000)};
  vendor_->plain(input);  // warms up
  m.plain = vendor_->plain(input);
  once(shape, 0);
  m.nc1_trace_ratio = report.find("nc1_trace_ratio").value_or(0);
  m.nc1_cdnv = report.find("nc1_cdnv").value_or(0);
  m.agree = std::llround(report.find("nc4_agree_train").value_or(0) * rows);
}

void Suite::add_overhead(Measurement& m, const Instance& data) {
  const Shape& shape = m.shape;
  Accumulator sums = accumulator(shape, {.statistics = Statistics::full});
  // The time of the host, not of the device: only add itself may wait while the clock runs.
  constexpr Index kWarmUp = 10, kLeast = 20, kMost = 2000, kTogether = 16;
  std::vector<double> times;
  const auto begin = Clock::now();
  for (Index i = 0; i < kMost && (i < kWarmUp + kLeast || since(begin) < options_.seconds); ++i) {
    if (i % kTogether == 0) vendor_->wait();  // a full launch queue would make the host wait for the device
    const auto start = Clock::now();
    pass(sums, data, shape, window(data, shape, i));
    if (i >= kWarmUp) times.push_back(since(start));
  }
  vendor_->wait();
  std::sort(times.begin(), times.end());
  m.repeats = static_cast<Index>(times.size());
  m.seconds = times[times.size() / 2];
  m.fastest = times.front();
  m.slowest = times.back();
  const ClassMoments result = moments(data, shape, {.statistics = Statistics::full});
  hash(m, [&] {
    Hash bits;
    bits.add(moments(data, shape, {.statistics = Statistics::full}).within_scatter());
    return bits.value();
  });
  m.error = error_of_sums(data.samples, shape.samples, result);
  m.error_of = "means and variances of some classes";
  m.bytes = number(shape.samples) * number(shape.row_bytes());
  m.floor = {"limit", 50e-6};
  m.bar = 1;
}

// ------------------------------------------------------------------------------------------------ all of them

Measurement Suite::measure_one(const Case& from, std::string_view operation) {
  Measurement m;
  m.operation = operation;
  m.shape = fit(from, operation);
  const Instance& data = instance(m.shape);
  if (operation == "sums") add(m, data, {.statistics = Statistics::traces});
  if (operation == "scatter") add(m, data, {.statistics = Statistics::full});
  if (operation == "scatter_fast") add(m, data, {.statistics = Statistics::full, .precision = Precision::fast});
  if (operation == "decisions" || operation == "decisions_collapsed")
    decide(m, data, operation == "decisions_collapsed");
  if (operation == "pairs" || operation == "pairs_fast") pairs(m, data, operation == "pairs_fast");
  if (operation == "eigen") eigen(m, data);
  if (operation == "svd") svd(m, data);
  if (operation == "measure") finish_and_measure(m, data);
  if (operation == "end_to_end") end_to_end(m, data);
  if (operation == "add_overhead") add_overhead(m, data);
  return m;
}

template <class Names>
void check_names(const std::vector<std::string>& wanted, const Names& known, const char* what) {
  for (const std::string& name : wanted) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    std::string list;
    for (const auto& each : known) list += (list.empty() ? "" : ", ") + std::string(each);
    throw UsageError("there is no " + std::string(what) + " '" + name + "'", "there are " + list);
  }
}

bool named(const std::vector<std::string>& names, std::string_view name) {
  return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
}

Results Suite::run() {
  if (options_.profile && !cuda_)
    throw UsageError("there is nothing on a CPU that --profile would tell a profiler", "use --device cuda");
  const auto start = Clock::now();
  const double busy = busy_seconds(), own = own_seconds();
  const auto processors = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN));
  Results results;
  results.device = context_.info();
  results.rates = floors_.rates();
  for (const Case& from : options_.matrix) {
    if (!named(options_.cases, from.shape.id)) continue;
    for (const std::string_view operation : from.operations) {
      if (!named(options_.operations, operation)) continue;
      const auto skip = [&](const std::string& why) {
        results.skipped.push_back({from.shape.id, std::string(operation), why});
      };
      if (!cuda_ && (from.shape.on_host || operation == "add_overhead")) {
        skip("says something of a GPU only");
        continue;
      }
      if (options_.limit > 0 && since(start) > options_.limit) {
        skip("the time limit was reached");
        continue;
      }
      progress_(results, from.shape.id + " " + std::string(operation));
      try {
        results.rows.push_back(measure_one(from, operation));
      } catch (const DeviceError& error) {
        skip(error.what());
      }
    }
    instance_.reset();
  }
  results.seconds = since(start);
  results.others = std::max(0.0, (busy_seconds() - busy - (own_seconds() - own)) / (results.seconds * processors));
  return results;
}

}  // namespace

Results run(const Options& options, const Progress& progress) {
  std::vector<std::string> cases, names;
  for (const Case& from : options.matrix) cases.push_back(from.shape.id);
  for (const Operation& operation : operations()) names.emplace_back(operation.name);
  check_names(options.cases, cases, "case");
  check_names(options.operations, names, "operation");
  bool any = false;
  for (const Case& from : options.matrix)
    for (const std::string_view operation : from.operations)
      any = any || (named(options.cases, from.shape.id) && named(options.operations, operation));
  if (!any) {
    std::string list;
    for (const std::string& operation : options.operations) list += " " + operation;
    throw UsageError("none of these cases has the operations" + list, "ncollapse bench --list shows which have");
  }
  if (!(options.scale > 0) || !(options.seconds > 0)) throw UsageError("--scale and --seconds must be positive");
  return Suite(options, progress).run();
}

}  // namespace ncollapse::bench
