// Memory of a measurement. The library's own code, Accumulator, finish, merge and measure, runs here on a backend that
// counts what is allocated and computes nothing; so a plan cannot drift from what is done. What a verb needs inside
// itself is added where the verb is called: the CPU's from host/cpu/batch_shape.hpp and LAPACK's documentation, CUDA's
// from the sizes in cuda/ (buffers of blocks and tiles, factor.cpp) and 2 n^2 numbers for cuSOLVER's eigensolver.
#include "ncollapse/plan.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>

#include "host/backend.hpp"
#include "host/cpu/batch_shape.hpp"
#include "host/dataset.hpp"
#include "host/input.hpp"
#include "host/moments.hpp"
#include "host/numbers.hpp"
#include "host/state_file.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/metrics.hpp"

namespace ncollapse {

namespace {

struct Tally {
  Index live = 0, peak = 0;

  void hold(Index bytes) {
    live += bytes;
    peak = std::max(peak, live);
  }
};

/// Every verb makes the arrays that it would make and fills in ones. Addresses are unique, and never read.
class CountingBackend final : public Backend {
 public:
  CountingBackend(DeviceType type, int threads) : tally_(std::make_shared<Tally>()), threads_(threads) {
    info_.device = {type, 0};
  }

  Index live() const { return tally_->live; }
  /// The most that `body` holds beyond what is held before it.
  template <class Body>
  Index peak_of(const Body& body) {
    const Index before = tally_->peak = tally_->live;
    body();
    return tally_->peak - before;
  }

  const DeviceInfo& info() const override { return info_; }
  std::shared_ptr<void> allocate(Index bytes) override {
    tally_->hold(bytes);
    return {new char, [tally = tally_, bytes](void* address) {
              tally->live -= bytes;
              delete static_cast<char*>(address);
            }};
  }
  void upload(void*, const void*, Index) override {}
  void download(void* host, const void* from, Index bytes) override {
    if (bytes > 0) std::memset(host, 0, static_cast<std::size_t>(bytes));
    if (from == filled_) *static_cast<Index*>(host) = 1;
  }
  void copy(void*, const void*, Index) override {}
  Matrix import(const MatrixView& source) override { return matrix(source.rows, source.cols); }
  BatchFaults add_batch(MomentState& state, const MatrixView&, const LabelView&) override {
    filled_ = state.counts.data();  // a state without a sample would not be merged
    return {};
  }
  BatchFaults decide_batch(DecisionState&, const MatrixView&, const LabelView&) override { return {}; }
  void combine_rows(const std::vector<double>&, const Matrix&, const std::vector<double>&, const Matrix&,
                    Matrix&) override {}
  Matrix select_rows(const Matrix& A, const std::vector<Index>& index) override {
    return matrix(static_cast<Index>(index.size()), A.cols);
  }
  Matrix sum_groups(const Matrix& A, const std::vector<Index>& begin) override {
    return matrix(static_cast<Index>(begin.size()) - 1, A.cols);
  }
  std::vector<double> group_gram_squares(const Matrix&, const std::vector<Index>& begin) override {
    return ones(static_cast<Index>(begin.size()) - 1);
  }
  void centre_rows(Matrix&, const std::vector<double>&) override {}
  std::vector<double> weighted_row_sum(const Matrix& A, const std::vector<double>&) override { return ones(A.cols); }
  std::vector<double> row_dots(const Matrix& A, const Matrix&) override { return ones(A.rows); }
  double inner(const Matrix&, const Matrix&) override { return 1; }
  Matrix product(const Matrix& A, Transpose transpose_a, const Matrix& B, Transpose transpose_b) override {
    return matrix(transpose_a == Transpose::yes ? A.cols : A.rows, transpose_b == Transpose::yes ? B.rows : B.cols);
  }
  void add_gram(double, const Matrix&, Matrix&) override {}
  void mirror_lower(Matrix&) override {}
  std::vector<double> eigh(Matrix& A) override {
    const Index n = A.rows;  // CUDA keeps the matrix, to check the residual
    workspace(cpu() ? 8 * (2 * n * n + 6 * n + 1) + 4 * (5 * n + 3) : 8 * (3 * n * n + 2 * n));
    return ones(n);
  }
  std::vector<double> eigenvalues(Matrix& A) override {
    const Index n = A.rows;
    workspace(cpu() ? 8 * 34 * n : 8 * (2 * n * n + n));
    return ones(n);
  }
  Svd svd(const Matrix& A) override {
    const Index r = std::min(A.rows, A.cols);
    Svd result{ones(r), matrix(A.rows, r), matrix(r, A.cols)};
    workspace(8 * (A.size() + 4 * r * r + 7 * r + A.rows + A.cols));
    return result;
  }
  std::vector<double> singular_values(const Matrix& A) override {
    const Index r = std::min(A.rows, A.cols);
    workspace(8 * (A.size() + r * r + 7 * r + A.rows + A.cols));
    return ones(r);
  }
  Matrix triangular_factor(const Matrix& A) override {
    const Matrix columns = matrix(A.cols, A.rows);
    workspace(8 * (33 + (cpu() ? 0 : A.cols)) * A.cols);
    return matrix(A.cols, A.cols);
  }
  double cholesky(Matrix& A, Matrix* inverse) override {
    if (inverse || !cpu()) workspace(A.bytes());  // CUDA's estimate takes the inverse whether it is wanted or not
    return 0;                                     // its failure leads to the larger way
  }
  void solve_lower(const Matrix&, Transpose, Matrix&) override {}
  // As in double: what PairQuery::fast takes (narrow copies of the rows, on a GPU two tiles of up to 80 MiB for every
  // 4096 columns) is not counted.
  PairSums pair_sums(const Matrix& A, const PairQuery& query) override {
    cpu() ? tiles(threads_, A.rows, 512, 1024) : gpu_pair_tiles(A.rows);
    PairSums sums;
    if (!query.variances.empty()) sums.nearest_squared = ones(A.rows);
    return sums;
  }
  ProductSums product_sums(const Matrix& A, const Matrix&, const ProductQuery&) override {
    cpu() ? tiles(1, A.rows, 512, 512) : tiles(A.rows > 1024 ? 2 : 1, A.rows, 1024, 1024);
    return {};
  }

 private:
  bool cpu() const { return info_.device.type == DeviceType::cpu; }
  static std::vector<double> ones(Index size) { return std::vector<double>(static_cast<std::size_t>(size), 1.0); }
  void workspace(Index bytes) { tally_->peak = std::max(tally_->peak, tally_->live + bytes); }
  /// geometry.cpp cut_triangle: one square, or two tiles of which one may be a square of up to a quarter more.
  void gpu_pair_tiles(Index rows) {
    constexpr Index kMost = Index{512} * 8192 / 4 * 5;
    workspace(8 * (rows * rows <= kMost ? rows * rows : 2 * kMost));
  }
  void tiles(Index count, Index rows, Index height, Index width) {
    workspace(8 * count * std::min(rows, height) * std::min(rows, width));
  }

  const void* filled_ = nullptr;  // the counts of the last state that took a batch
  std::shared_ptr<Tally> tally_;
  int threads_;
  DeviceInfo info_;
};

/// Device bytes of the phases that do not depend on the batch.
struct DryRun {
  Index state = 0, finish = 0, moments = 0, measure = 0, merge = 0;
};

DryRun dry_run(const PlanRequest& request, Statistics statistics) {
  const auto backend = std::make_shared<CountingBackend>(request.device, cpu_device(request.threads).threads);
  const Context context(backend);
  DryRun bytes;
  Accumulator accumulator(context, {request.classes, request.dim, statistics, {}});
  bytes.state = backend->live();
  // One row makes it a state that has seen something; nothing is read.
  const std::int64_t label = 0;
  const double element = 0;
  accumulator.add(view(&element, 1, request.dim), view(&label, 1));
  MomentData data = [&] {
    std::optional<ClassMoments> moments;
    bytes.finish = backend->peak_of([&] { moments.emplace(accumulator.finish()); });
    return moments->data();
  }();
  bytes.moments = backend->live() - bytes.state;
  // A few class sizes: one eigenspace or none would take a shorter way.
  constexpr Index kSizes = 8;
  data.samples = 0;
  for (Index k = 0; k < request.classes; ++k) data.samples += data.counts[static_cast<std::size_t>(k)] = 1 + k % kSizes;
  data.seen = request.classes;
  std::fill(data.variances.begin(), data.variances.end(), 1.0);
  if (request.classes >= 2) {
    const ClassMoments moments(std::make_shared<const MomentData>(data));
    const Classifier head{.layers = {{&element, Dtype::f32, request.classes, request.dim}}};
    bytes.measure = backend->peak_of([&] { measure(moments, {.classifier = &head}); });
  }
  data = {context, {}, {}, 0, 0, {}, {}, {}};
  bytes.merge = backend->peak_of([&] {
    Accumulator other(context, {request.classes, request.dim, statistics, {}});
    other.add(view(&element, 1, request.dim), view(&label, 1));
    accumulator.merge(other);
  });
  return bytes;
}

// What CUDA keeps beside a state, and for all states: cuda/batch.hpp Limits, moments.cpp, class_sums.cu plan_sums,
// few_classes.cu plan_few, buckets.hpp, staging.hpp.
Index parts(Index of, Index size) { return (of + size - 1) / size; }
Index cuda_block_rows(Index dim, Index rows, Index element_bytes) {
  return std::min(rows, std::clamp<Index>((Index{4} << 30) / (dim * element_bytes), 1, Index{1} << 23));
}
Index cuda_stage_bytes(Index dim, Index rows, Index element_bytes) {
  return 2 * cuda_block_rows(dim, rows, element_bytes) * (dim * element_bytes + 8);
}
constexpr Index kCudaFewRows = 128;  // that are one chunk
/// Chunks of a batch of few classes or rows.
Index cuda_few_chunks(Index rows, Index slabs) {
  Index side = 1;
  while (side < 8 && slabs % (2 * side) == 0) side *= 2;
  if (rows <= kCudaFewRows) return 1;
  return parts(rows, std::clamp<Index>(parts(parts(rows * (slabs / side), 264), 8) * 8, kCudaFewRows, 1024));
}
Index cuda_few_bytes(Index classes, Index dim, Index chunks, Index slabs) {
  return 8 * classes * ((chunks + 1) * dim + chunks * slabs) + 4 * classes * (chunks + 2);
}
Index cuda_scratch_bytes(Index classes, Index dim, Index rows, Index element_bytes, bool full) {
  const Index n = cuda_block_rows(dim, rows, element_bytes), slab = dim <= 128 ? 64 : 256, slabs = parts(dim, slab);
  Index chunk = 0, products = 0;  // rows of Z; bytes of its products by slices
  if (full) {
    chunk = std::min(n, (Index{512} << 20) / (8 * dim));
    if (dim <= 1024) {
      const bool few = dim <= 512 && parts(dim, 128) * parts(dim, 128) * std::min<Index>(chunk / 4096, 64) >= 192;
      const Index slice = few ? 4096 : 1024;
      chunk = std::min(chunk, slice * std::clamp<Index>((Index{256} << 20) / (8 * dim * dim), 1, 64));
      products = parts(chunk, slice) * 8 * dim * dim;
    }
  }
  const Index few_chunks = cuda_few_chunks(rows, slabs);
  const bool in_chunks =
      classes <= 16 && rows * dim * element_bytes <= Index{512} << 20 && (!full || (products > 0 && chunk == n));
  if (classes <= 128 && n == rows && (few_chunks == 1 || in_chunks))
    return cuda_few_bytes(classes, dim, few_chunks, slabs) + 4 * 4 * classes + (full ? 8 * rows * dim : 0) +
           (few_chunks > 1 ? products : 0);
  const Index run =
      std::clamp<Index>(static_cast<Index>(std::bit_floor(static_cast<std::uint64_t>(n * slabs / 8192))), 32, 512);
  const Index sort = 8 * 4 * n + 4 * 4 * classes;
  const Index carries = 8 * 2 * dim * parts(n, run), squares = 8 * slabs * n, of_columns = (2 * (8 + 4) + 4) * dim;
  const Index scatter = full ? products + (chunk < n ? 2 : 1) * 8 * chunk * dim : 0;
  const Index saved = 8 * (2 * classes + (full ? dim * dim : 0)), second_sums = 8 * classes * dim;
  const bool watched = 2 * saved <= rows * dim * element_bytes && second_sums <= Index{4} << 30;
  const Index last = classes <= 128 ? cuda_few_bytes(classes, dim, 1, slabs) : 0;  // a batch of the rows that are left
  return sort + carries + squares + of_columns + scatter + (watched ? saved + second_sums : 0) + last;
}

constexpr Index kPinnedBytes = (Index{16} << 20) + (Index{5} << 18);  // of CUDA's staging and small copies, on the host
constexpr Index kWeightBytes = 4;  // of the classifier's file, held while it is used: f32

class Planner {
 public:
  Planner(const PlanRequest& request, Statistics statistics)
      : request_(request), statistics_(statistics), dry_(dry_run(request, statistics)) {}

  MemoryPlan run() const {
    Index rows = request_.batch_rows > 0 ? request_.batch_rows : default_batch_rows(row_bytes());
    if (request_.samples > 0) rows = std::min(rows, request_.samples);
    const MemoryPlan wanted = with_batch(rows);
    if (wanted.fits || request_.batch_rows > 0) return wanted;
    while (rows > 1) {
      const MemoryPlan smaller = with_batch(rows /= 2);
      if (smaller.fits) return smaller;
    }
    return wanted;  // the batch is not what is too large
  }

  /// Of the memory that is limited.
  static Index of_device(const PlanRequest& request, const PhaseMemory& phase) {
    return request.device == DeviceType::cpu ? phase.host_bytes : phase.device_bytes;
  }

 private:
  bool cpu() const { return request_.device == DeviceType::cpu; }
  Index row_bytes() const { return request_.dim * size_of(request_.dtype); }

  MemoryPlan with_batch(Index rows) const {
    const Index K = request_.classes, d = request_.dim, packed = d * (d + 1) / 2;
    const bool full = statistics_ >= Statistics::full, traces = statistics_ >= Statistics::traces;
    const Index stage = cpu() ? 0 : cuda_stage_bytes(d, rows, size_of(request_.dtype));
    MemoryPlan plan;
    plan.statistics = statistics_;
    plan.batch_rows = rows;
    plan.state_bytes = dry_.state;
    plan.batch_bytes = rows * (row_bytes() + 8);
    plan.add_bytes = cpu() ? cpu::add_workspace_bytes(K, d, rows, size_of(request_.dtype), threads(), full)
                           : cuda_scratch_bytes(K, d, rows, size_of(request_.dtype), full) + stage;
    plan.finish_bytes = dry_.finish;
    plan.measure_bytes = dry_.measure;
    plan.state_file_bytes = state_file_bytes(K, d, statistics_);
    plan.exchange_bytes = 8 * (K * (2 * d + 1) + (traces ? K : 0) + (full ? packed : 0));
    plan.data_bytes = request_.samples * row_bytes();
    // Beside the image of the state file stands, for a moment, the square of its packed scatter.
    const Index image = plan.state_file_bytes + (full ? 8 * d * d : 0);
    add_phase(plan, "accumulate", plan.batch_bytes, dry_.state + plan.add_bytes);
    add_phase(plan, "save", plan.batch_bytes + image, dry_.state + plan.add_bytes);
    add_phase(plan, "load", image, dry_.state);
    if (cpu())  // the part is loaded, then merged
      add_phase(plan, "merge", 0, dry_.state + std::max(dry_.merge, dry_.state + image));
    else
      add_phase(plan, "merge", image, dry_.state + dry_.merge);
    add_phase(plan, "finish", 0,
              dry_.state + dry_.finish + (cpu() ? 0 : plan.add_bytes));  // CUDA's stays with the state
    add_phase(plan, "measure", kWeightBytes * K * d, dry_.moments + dry_.measure + stage);
    plan.fits =
        request_.memory_bytes == 0 || (cpu() ? plan.host_peak_bytes : plan.device_peak_bytes) <= request_.memory_bytes;
    return plan;
  }

  void add_phase(MemoryPlan& plan, const char* name, Index host, Index device) const {
    plan.phases.push_back(cpu() ? PhaseMemory{name, host + device, 0} : PhaseMemory{name, host + kPinnedBytes, device});
    plan.host_peak_bytes = std::max(plan.host_peak_bytes, plan.phases.back().host_bytes);
    plan.device_peak_bytes = std::max(plan.device_peak_bytes, plan.phases.back().device_bytes);
  }

  int threads() const { return cpu_device(request_.threads).threads; }

  const PlanRequest& request_;
  Statistics statistics_;
  DryRun dry_;
};

void check_request(const PlanRequest& request) {
  // Larger ones fit no machine: below them no byte count overflows, and of so many classes lists can be held here.
  constexpr Index kMaxClasses = Index{1} << 24, kMaxDim = Index{1} << 28;
  for (const auto& [name, value, most] :
       {std::tuple{"classes", request.classes, kMaxClasses}, std::tuple{"dim", request.dim, kMaxDim}})
    if (value < 1 || value > most)
      throw UsageError(std::string(name) + " is " + std::to_string(value) + ", must be 1 to " + std::to_string(most));
  check_type(request.dtype, "features are");
  if (request.samples < 0 || request.batch_rows < 0 || request.memory_bytes < 0 || request.threads < 0)
    throw UsageError("samples, batch rows, memory and threads must not be negative");
  Index ignored = 0;
  if (__builtin_mul_overflow(std::max(request.samples, request.batch_rows), 32 * request.dim, &ignored))
    throw UsageError("so many rows of so many values cannot be counted in 64 bits");
}

}  // namespace

std::vector<MemoryPlan> plan_all_statistics(const PlanRequest& request) {
  check_request(request);
  std::vector<MemoryPlan> plans;
  for (const Statistics statistics : {Statistics::means, Statistics::traces, Statistics::full})
    plans.push_back(Planner(request, statistics).run());
  return plans;
}

MemoryPlan plan(const PlanRequest& request) {
  check_request(request);
  const MemoryPlan plan = Planner(request, request.statistics).run();
  if (plan.fits) return plan;
  std::string hint;
  for (const MemoryPlan& other : plan_all_statistics(request))
    if (other.fits) hint += (hint.empty() ? "these statistics fit: " : ", ") + std::string(to_string(other.statistics));
  const auto most = std::max_element(plan.phases.begin(), plan.phases.end(), [&](const auto& a, const auto& b) {
    return Planner::of_device(request, a) < Planner::of_device(request, b);
  });
  throw MemoryError("statistics " + std::string(to_string(request.statistics)) +
                        " of K = " + std::to_string(request.classes) + ", d = " + std::to_string(request.dim) +
                        " need " + size_text(Planner::of_device(request, *most)) + " (" + most->name +
                        "), above the limit of " + size_text(request.memory_bytes),
                    hint.empty() ? "no statistics fit; give a higher limit" : hint);
}

}  // namespace ncollapse
