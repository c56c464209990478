// The accumulator: validation, stream order, merge algebra. The arithmetic of a batch is the backend's add_batch.
//
// Merge (Chan, Golub, LeVeque 1979), from the central forms (n, m, nv, S) of both sides:
//   n = n1 + n2,  m = m1 + (n2/n)(m2 - m1),  nv = nv1 + nv2 + (n1 n2/n)|m1 - m2|^2,
//   S = S1 + S2 + sum_k a_k (n1 n2/n)(m1 - m2)(m1 - m2)^T:
// only positive semi-definite additions, so nothing cancels. The merged state continues with r = r1 (r2 where only the
// other has the class), so s = s1 + s2 + n2 (r2 - r), t = nv + |s|^2/n and T = S + sum_k a_k s s^T/n. No difference is
// formed of means: m2 - m1 = (r2 - r) + s2/n2 - s1/n1 is rounded at the size of the class's spread.
//
// Over ranks (reduce) the same in one step for any number of parts p, by two sums: first the counts and, rounded,
//   r = sum_p (n_p/n) m_p,   then   s = sum_p n_p (m_p - r),   t = sum_p (nv_p + n_p |m_p - r|^2),
//   T = sum_p (S_p + sum_k a_k n_p (m_p - r)(m_p - r)^T):
// every rank adds its own positive semi-definite share before anything is sent. m_p - r is formed as (r_p - r) +
// s_p/n_p, so that it is rounded at its own size, not at that of the means. Sent: 2 K (d + 1) + d (d + 1)/2 numbers. If
// the ranks had one shift per class, state could be added to state in one sum, but they would have to meet after each
// class's first sample, in the middle of their streams. Nor are classes divided among the ranks: a rank may meet any
// class, so it holds K x d anyway.
#include "ncollapse/accumulator.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>

#include "host/exchange.hpp"
#include "host/input.hpp"
#include "host/moments.hpp"
#include "host/state_file.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

constexpr std::array<std::string_view, 3> kStatisticsNames = {"means", "traces", "full"};
constexpr std::size_t kDtypes = 4;
constexpr std::array<std::string_view, 2> kPrecisionNames = {"exact", "fast"};

std::string times(Index a, Index b) { return std::to_string(a) + " x " + std::to_string(b); }

void check_options(const AccumulatorOptions& options) {
  if (options.classes < 1) throw UsageError("classes is " + std::to_string(options.classes) + ", must be at least 1");
  if (options.dim < 1) throw UsageError("dim is " + std::to_string(options.dim) + ", must be at least 1");
  if (static_cast<std::size_t>(options.statistics) >= kStatisticsNames.size())
    throw UsageError("unknown statistics, number " + std::to_string(static_cast<int>(options.statistics)));
  if (static_cast<std::size_t>(options.precision) >= kPrecisionNames.size())
    throw UsageError("unknown precision, number " + std::to_string(static_cast<int>(options.precision)));
  const auto& weights = options.scatter_weights;
  if (weights.empty()) return;
  if (static_cast<Index>(weights.size()) != options.classes)
    throw UsageError("scatter_weights has " + std::to_string(weights.size()) + " entries for " +
                     std::to_string(options.classes) + " classes");
  for (std::size_t k = 0; k < weights.size(); ++k)
    if (!(weights[k] > 0) || !std::isfinite(weights[k]))
      throw UsageError("scatter_weights[" + std::to_string(k) + "] is " + std::to_string(weights[k]) +
                       ", must be positive and finite");
}

// The lower triangle of a row-major square, row by row.
std::vector<double> pack_lower(const std::vector<double>& square, Index dim) {
  std::vector<double> packed;
  packed.reserve(static_cast<std::size_t>(dim * (dim + 1) / 2));
  for (Index i = 0; i < dim; ++i)
    packed.insert(packed.end(), square.begin() + i * dim, square.begin() + i * dim + i + 1);
  return packed;
}

std::vector<double> unpack_lower(const std::vector<double>& packed, Index dim) {
  std::vector<double> square(static_cast<std::size_t>(dim * dim), 0.0);
  auto next = packed.begin();
  for (Index i = 0; i < dim; ++i) {
    std::copy(next, next + i + 1, square.begin() + i * dim);
    next += i + 1;
  }
  return square;
}

// The same in the backend's memory, and back.
Matrix pack_lower(Backend& backend, const Matrix& square) {
  const Index dim = square.rows;
  Matrix packed = backend.matrix(1, dim * (dim + 1) / 2);
  double* next = packed.data();
  for (Index i = 0; i < dim; next += ++i)
    backend.copy(next, square.data() + i * dim, (i + 1) * static_cast<Index>(sizeof(double)));
  return packed;
}

void unpack_lower(Backend& backend, const Matrix& packed, Matrix& square) {
  const double* next = packed.data();
  for (Index i = 0; i < square.rows; next += ++i)
    backend.copy(square.data() + i * square.cols, next, (i + 1) * static_cast<Index>(sizeof(double)));
}

}  // namespace

std::string_view to_string(Statistics statistics) { return kStatisticsNames[static_cast<std::size_t>(statistics)]; }

Statistics parse_statistics(std::string_view name) {
  for (std::size_t i = 0; i < kStatisticsNames.size(); ++i)
    if (name == kStatisticsNames[i]) return static_cast<Statistics>(i);
  throw UsageError("unknown statistics '" + std::string(name) + "'", "statistics are means, traces and full");
}

std::string_view to_string(Precision precision) { return kPrecisionNames[static_cast<std::size_t>(precision)]; }

Precision parse_precision(std::string_view name) {
  for (std::size_t i = 0; i < kPrecisionNames.size(); ++i)
    if (name == kPrecisionNames[i]) return static_cast<Precision>(i);
  throw UsageError("unknown precision '" + std::string(name) + "'", "precisions are exact and fast");
}

struct Accumulator::Impl {
  Context context;
  AccumulatorOptions options;
  MomentState state;
  bool reduced = false;             // holds what other ranks have seen
  std::optional<Dtype> dtype = {};  // the coarsest of the features; no type is below any
  Wholeness wholeness = {};

  Backend& backend() const { return *context.backend(); }
  void require_whole() const { wholeness.require("accumulator"); }
  Index samples() const {
    const auto counts = backend().to_host(state.counts);
    return std::accumulate(counts.begin(), counts.end(), Index{0});
  }
  /// The state holds just the batches before the one with the fault.
  void throw_if_any(const BatchFaults& faults) const {
    if (faults.any()) throw_faults(faults, faults.samples >= 0 ? faults.samples : samples(), options.classes);
  }
};

Accumulator::Accumulator(Context context, AccumulatorOptions options) {
  check_options(options);
  auto state = make_state(*context.backend(), options);
  impl_ = std::make_unique<Impl>(Impl{std::move(context), std::move(options), std::move(state)});
}
Accumulator::Accumulator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Accumulator::~Accumulator() = default;
Accumulator::Accumulator(Accumulator&&) noexcept = default;
Accumulator& Accumulator::operator=(Accumulator&&) noexcept = default;

Index Accumulator::samples() const {
  impl_->require_whole();
  return impl_->samples();
}
const AccumulatorOptions& Accumulator::options() const { return impl_->options; }
const Context& Accumulator::context() const { return impl_->context; }

void Accumulator::add(const MatrixView& features, const LabelView& labels) {
  check_batch(impl_->backend(), impl_->options.dim, features, labels);
  impl_->require_whole();
  if (features.rows == 0) return;
  impl_->throw_if_any(
      impl_->wholeness.add(features.rows, [&] { return impl_->backend().add_batch(impl_->state, features, labels); }));
  impl_->dtype = std::max(impl_->dtype, std::optional(features.dtype));
}

void Accumulator::check() const {
  impl_->require_whole();
  impl_->throw_if_any(impl_->backend().pending_faults(impl_->state));
}

ClassMoments Accumulator::finish() const {
  check();
  MomentData data = read_out(impl_->context, impl_->options, impl_->state);
  data.dtype = impl_->dtype;
  return ClassMoments(std::make_shared<const MomentData>(std::move(data)));
}

void Accumulator::merge(const Accumulator& other) {
  const auto& mine = impl_->options;
  const auto& theirs = other.impl_->options;
  if (mine.classes != theirs.classes || mine.dim != theirs.dim)
    throw UsageError("cannot merge a state of K x d = " + times(theirs.classes, theirs.dim) + " into one of " +
                     times(mine.classes, mine.dim));
  if (mine.statistics != theirs.statistics || mine.scatter_weights != theirs.scatter_weights)
    throw UsageError("cannot merge states of different statistics or scatter weights",
                     "accumulate all parts with the same options");
  check();
  other.check();
  if (other.samples() == 0 && theirs.precision <= mine.precision) return;

  Backend& backend = impl_->backend();
  Backend& source = other.impl_->backend();
  MomentData theirs_out = read_out(other.impl_->context, theirs, other.impl_->state);
  Matrix shifts = other.impl_->state.shifts, sums = other.impl_->state.sums, scatter = theirs_out.scatter;
  if (&backend != &source)
    for (Matrix* matrix : {&shifts, &sums, &scatter})
      if (*matrix) *matrix = backend.from_host(source.to_host(*matrix), matrix->rows, matrix->cols);
  MomentData out = read_out(impl_->context, mine, impl_->state);
  out.means = theirs_out.means = {};  // not needed, and K x d each

  const auto classes = static_cast<std::size_t>(mine.classes);
  const std::vector<double> one(classes, 1.0), minus(classes, -1.0);
  std::vector<double> here(classes), only_there(classes), taken(classes), inverse(classes), minus_inverse(classes),
      gap(classes), gap_weighted(classes), spread(classes), spread_weighted(classes);
  std::vector<Index> counts(classes);
  for (std::size_t k = 0; k < classes; ++k) {
    counts[k] = out.counts[k] + theirs_out.counts[k];
    const auto n1 = static_cast<double>(out.counts[k]), n2 = static_cast<double>(theirs_out.counts[k]), n = n1 + n2;
    const double weight = std::sqrt(weight_of(mine.scatter_weights, k));
    here[k] = n1 > 0 ? 1.0 : 0.0;
    only_there[k] = 1 - here[k];
    taken[k] = n2;
    inverse[k] = n2 > 0 ? 1 / n2 : 0.0;
    minus_inverse[k] = n1 > 0 ? -1 / n1 : 0.0;
    gap[k] = n > 0 ? std::sqrt(n1 * n2 / n) : 0.0;
    gap_weighted[k] = gap[k] * weight;
    spread[k] = n > 0 ? 1 / std::sqrt(n) : 0.0;
    spread_weighted[k] = spread[k] * weight;
  }
  const MomentState& own = impl_->state;
  Matrix merged_shifts = backend.matrix(mine.classes, mine.dim), merged_sums = backend.matrix(mine.classes, mine.dim),
         difference = backend.matrix(mine.classes, mine.dim);
  backend.combine_rows(here, own.shifts, only_there, shifts, merged_shifts);
  backend.combine_rows(one, shifts, minus, merged_shifts, difference);
  backend.combine_rows(one, difference, inverse, sums, difference);  // m2 - r
  backend.combine_rows(one, own.sums, taken, difference, merged_sums);
  backend.combine_rows(one, difference, minus_inverse, own.sums, difference);  // m2 - m1

  AccumulatorOptions options = mine;
  options.precision = std::max(mine.precision, theirs.precision);
  MomentState merged = make_state(backend, options);
  backend.from_host(merged.counts, counts);
  merged.shifts = merged_shifts;
  merged.sums = merged_sums;
  if (mine.statistics >= Statistics::traces) {
    const RowProducts squares = backend.row_products(difference, merged_sums);
    std::vector<double> square_sums(classes);
    for (std::size_t k = 0; k < classes; ++k)
      square_sums[k] = out.variances[k] * static_cast<double>(out.counts[k]) +
                       theirs_out.variances[k] * static_cast<double>(theirs_out.counts[k]) +
                       (gap[k] > 0 ? gap[k] * gap[k] * squares.left[k] : 0) + spread[k] * spread[k] * squares.right[k];
    backend.from_host(merged.square_sums, square_sums);
  }
  if (mine.statistics >= Statistics::full) {
    const std::vector<double> ones(static_cast<std::size_t>(mine.dim), 1.0);
    backend.combine_rows(ones, out.scatter, ones, scatter, out.scatter);
    backend.scale_rows(gap_weighted, difference);
    backend.add_gram(1.0, difference, out.scatter);
    backend.combine_rows(spread_weighted, merged_sums, {}, {}, difference);
    backend.add_gram(1.0, difference, out.scatter);
    merged.scatter = out.scatter;
    if (options.precision == Precision::fast) {
      merged.error_carried = out.scatter_error + theirs_out.scatter_error -
                             kFastError * trace_of(backend.to_host(merged.square_sums), mine.scatter_weights);
    }
  }
  impl_->options = std::move(options);
  impl_->state = std::move(merged);
  impl_->reduced = impl_->reduced || other.impl_->reduced;
  impl_->dtype = std::max(impl_->dtype, other.impl_->dtype);
}

void Accumulator::reduce(const Communicator& ranks) {
  if (ranks.size() == 1) return;
  Backend& backend = impl_->backend();
  const Exchange exchange(backend, ranks);
  const auto& options = impl_->options;
  const auto& weights = options.scatter_weights;
  exchange.agree(
      {options.classes, options.dim, static_cast<Index>(options.statistics), static_cast<Index>(options.precision),
       fingerprint(weights.data(), weights.size() * sizeof(double)), impl_->reduced ? 1 : 0},
      "give every rank the same options, and reduce each accumulator once", [](const Index* values) {
        return "K x d = " + times(values[0], values[1]) + ", statistics " +
               std::string(to_string(static_cast<Statistics>(values[2]))) + ", precision " +
               std::string(to_string(static_cast<Precision>(values[3]))) + ", scatter weights #" +
               std::to_string(values[4] % 10000) + (values[5] != 0 ? ", reduced before" : "");
      });
  if (impl_->reduced)
    throw UsageError("this accumulator was reduced before: what all ranks have seen would count once for every rank",
                     "make a new accumulator");

  const auto classes = static_cast<std::size_t>(options.classes);
  std::optional<MomentData> own;
  Matrix means;
  std::vector<Index> counts;
  exchange.together("reading out its moments", [&] {
    check();
    own.emplace(read_out(impl_->context, options, impl_->state));
    means = backend.matrix(options.classes, options.dim);
    counts = own->counts;
    counts.resize(classes + kDtypes, 0);  // with the ranks that have seen a type
    if (impl_->dtype) counts[classes + static_cast<std::size_t>(*impl_->dtype)] = 1;
  });
  exchange.sum(counts);
  std::optional<Dtype> dtype;  // the last one is the coarsest
  for (std::size_t type = 0; type < kDtypes; ++type)
    if (counts[classes + type] > 0) dtype = static_cast<Dtype>(type);
  counts.resize(classes);
  exchange.together("weighting its means", [&] {
    std::vector<double> share(classes);
    for (std::size_t k = 0; k < classes; ++k)
      share[k] = counts[k] > 0 ? static_cast<double>(own->counts[k]) / static_cast<double>(counts[k]) : 0.0;
    backend.combine_rows(share, own->means, {}, {}, means);
  });
  exchange.sum(means);

  MomentState total = impl_->state;
  total.workspace = nullptr;
  std::vector<double> square_sums;
  Matrix packed;
  exchange.together("moving its moments to the common means", [&] {
    std::vector<double> here(classes), minus(classes), inverse(classes), root(classes);
    for (std::size_t k = 0; k < classes; ++k) {
      const auto count = static_cast<double>(own->counts[k]);
      here[k] = count > 0 ? 1.0 : 0.0;  // an absent class adds nothing
      minus[k] = -here[k];
      inverse[k] = count > 0 ? 1.0 / count : 0.0;
      root[k] = std::sqrt(count * weight_of(weights, k));
    }
    Matrix& difference = own->means;  // whose values are no longer needed
    backend.combine_rows(here, impl_->state.shifts, minus, means, difference);
    backend.combine_rows(here, difference, inverse, impl_->state.sums, difference);
    total.counts = backend.from_host(counts, options.classes, 1);
    if (options.statistics >= Statistics::traces) {
      square_sums = backend.row_dots(difference, difference);
      for (std::size_t k = 0; k < classes; ++k)
        square_sums[k] = static_cast<double>(own->counts[k]) * (own->variances[k] + square_sums[k]);
      total.square_sums = backend.matrix(options.classes, 1);
    }
    if (options.statistics >= Statistics::full) {
      backend.add_gram(1.0, backend.scaled(root, difference), own->scatter);
      packed = pack_lower(backend, own->scatter);
      total.scatter = own->scatter;
    }
    backend.scale_rows({own->counts.begin(), own->counts.end()}, difference);
    total.sums = difference;
    total.shifts = means;
  });
  exchange.sum(total.sums);
  if (total.square_sums) {
    exchange.sum(square_sums);
    backend.from_host(total.square_sums, square_sums);
  }
  if (total.scatter) {
    exchange.sum(packed);
    unpack_lower(backend, packed, total.scatter);
    if (options.precision == Precision::fast) {
      std::vector<double> error{own->scatter_error};
      exchange.sum(error);
      total.error_carried = error[0] - kFastError * trace_of(square_sums, weights);
    }
  }
  impl_->state = std::move(total);
  impl_->reduced = true;
  impl_->dtype = dtype;
}

void Accumulator::save(const std::filesystem::path& file, const std::string& note) const {
  check();
  Backend& backend = impl_->backend();
  const MomentState& state = impl_->state;
  StateImage image;
  image.options = impl_->options;
  image.samples = impl_->samples();
  image.error_carried = state.error_carried;
  image.reduced = impl_->reduced;
  image.dtype = impl_->dtype;
  image.note = note;
  image.counts = backend.to_host(state.counts);
  image.shifts = backend.to_host(state.shifts);
  image.sums = backend.to_host(state.sums);
  if (state.square_sums) image.square_sums = backend.to_host(state.square_sums);
  if (state.scatter) image.scatter = pack_lower(backend.to_host(state.scatter), state.dim);
  write_state(file, image);
}

Accumulator Accumulator::load(Context context, const std::filesystem::path& file, std::string* note) {
  StateImage image = read_state(file);
  Accumulator result(std::move(context), image.options);
  Backend& backend = result.impl_->backend();
  MomentState& state = result.impl_->state;
  backend.from_host(state.counts, image.counts);
  backend.from_host(state.shifts, image.shifts);
  backend.from_host(state.sums, image.sums);
  if (state.square_sums) backend.from_host(state.square_sums, image.square_sums);
  state.error_carried = image.error_carried;
  result.impl_->reduced = image.reduced;
  result.impl_->dtype = image.dtype;
  if (state.scatter) backend.from_host(state.scatter, unpack_lower(image.scatter, state.dim));
  if (note != nullptr) *note = std::move(image.note);
  return result;
}

}  // namespace ncollapse
