// One batch into the streaming state.
//
// The rows are sorted by label (stable, so stream order is kept inside a class) and walked in that order, in chunks
// whose centred copy Z fits the cache. A chunk is cut into runs of kRunRows rows. A class that lies wholly inside one
// run has one writer; the pieces at the edges of a run go to carries, which are added in run order afterwards. So the
// work of a thread does not depend on class sizes (99 % in one class costs the same), nothing is locked, and the order
// of additions depends on sizes alone. Then scatter += Z^T Z.
//
// Precision::fast: the first walk over a chunk also takes the sums of squares of its columns, c_j, in double; a second
// one writes Z in single precision, column j scaled by 2^-e_j, e_j = floor(log2(rms of the column)), so that products
// neither overflow nor vanish whatever the features' size. Products of at most kSingleRows terms are added to the
// scatter in double; c_j goes to its diagonal, which so is as exact as ever. Error of an entry, relative to sqrt(T_ii
// T_jj): rounding Z 2 * 2^-24, summing kSingleRows * 2^-24, in all below 2.5e-4.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "host/cpu/batch_checks.hpp"
#include "host/cpu/batch_shape.hpp"
#include "host/cpu/cpu_backend.hpp"
#include "host/cpu/elements.hpp"
#include "host/cpu/parallel_blas.hpp"

namespace ncollapse::cpu {

namespace {

constexpr Index kDirectRows = 8;
constexpr Index kAheadBytes = Index{4} << 10;  // how far the walk looks ahead

// Whether no element is NaN or infinite: those have the largest exponent. One maximum an element, so that the check
// runs at the speed of memory.
template <class T>
NCOLLAPSE_VECTORISED bool all_finite(const T* row, Index dim) {
  auto largest = exponent_bits(T{});
#pragma omp simd reduction(max : largest)
  for (Index j = 0; j < dim; ++j) {
    const auto bits = exponent_bits(row[j]);
    largest = bits > largest ? bits : largest;
  }
  return largest != nonfinite_exponent<T>();
}

/// What a walk over rows leaves besides their class's sums: nothing, the centred rows Z, or the sums of squares of Z's
/// columns.
enum class Leave { nothing, rows, columns };

/// What the walk needs next. Rows in label order lie anywhere, so the processor cannot guess it.
template <class T>
struct Next {
  const T* rows[4];
  const double* shift;  // of the first one's class
  const double* sum;
};

constexpr Index kSortWork = 16;  // additions that sorting a row is worth

// sum += (x - shift) over four rows; returns the sum of squares. Four rows at a time, so that `sum` is read and written
// once for four. `left`: [4 x dim] z = scale (x - shift), or [dim] columns += z^2.
template <Leave leave, class T>
NCOLLAPSE_VECTORISED double centre_four(const T* const x[4], const Next<T>& next, const double* shift, double scale,
                                        Index dim, double* sum, double* left) {
  alignas(64) float wide[4][kBlock];
  double squares = 0;
  for (Index block = 0; block < dim; block += kBlock) {
    const Index end = std::min(block + kBlock, dim);
    for (const T* row : next.rows) fetch(row, block, end);
    const auto *x0 = widen(x[0], block, end, wide[0]), *x1 = widen(x[1], block, end, wide[1]),
               *x2 = widen(x[2], block, end, wide[2]), *x3 = widen(x[3], block, end, wide[3]);
    const double* from = shift + block;
    double *to = sum + block, *z0 = nullptr, *z1 = nullptr, *z2 = nullptr, *z3 = nullptr;
    if constexpr (leave != Leave::nothing) z0 = left + block;
    if constexpr (leave == Leave::rows) z1 = z0 + dim, z2 = z1 + dim, z3 = z2 + dim;
#pragma omp simd reduction(+ : squares)
    for (Index j = 0; j < end - block; ++j) {
      const double a = x0[j] - from[j], b = x1[j] - from[j], c = x2[j] - from[j], d = x3[j] - from[j];
      const double square = (a * a + b * b) + (c * c + d * d);
      to[j] += (a + b) + (c + d);
      squares += square;
      if constexpr (leave == Leave::columns) z0[j] += square * (scale * scale);
      if constexpr (leave == Leave::rows) {
        z0[j] = a * scale;
        z1[j] = b * scale;
        z2[j] = c * scale;
        z3[j] = d * scale;
      }
    }
  }
  return squares;
}

template <Leave leave, class T>
NCOLLAPSE_VECTORISED double centre_one(const T* x, const Next<T>& next, const double* shift, double scale, Index dim,
                                       double* sum, double* left) {
  alignas(64) float wide[kBlock];
  double squares = 0;
  for (Index block = 0; block < dim; block += kBlock) {
    const Index end = std::min(block + kBlock, dim);
    fetch(next.rows[0], block, end);
    fetch(next.shift, block, end);
    fetch(next.sum, block, end);
    const auto* row = widen(x, block, end, wide);
    const double* from = shift + block;
    double *to = sum + block, *z = leave == Leave::nothing ? nullptr : left + block;
#pragma omp simd reduction(+ : squares)
    for (Index j = 0; j < end - block; ++j) {
      const double a = row[j] - from[j];
      to[j] += a;
      squares += a * a;
      if constexpr (leave == Leave::columns) z[j] += a * a * (scale * scale);
      if constexpr (leave == Leave::rows) z[j] = a * scale;
    }
  }
  return squares;
}

template <class T>
NCOLLAPSE_VECTORISED void write_single(const T* x, const double* shift, double scale, const double* column_scale,
                                       Index dim, float* z) {
  alignas(64) float wide[kBlock];
  for (Index block = 0; block < dim; block += kBlock) {
    const Index end = std::min(block + kBlock, dim);
    const auto* row = widen(x, block, end, wide);
    const double *from = shift + block, *by = column_scale + block;
    float* to = z + block;
#pragma omp simd
    for (Index j = 0; j < end - block; ++j) to[j] = static_cast<float>((row[j] - from[j]) * scale * by[j]);
  }
}

NCOLLAPSE_VECTORISED void add_to(double* sum, const double* part, Index dim) {
  for (Index j = 0; j < dim; ++j) sum[j] += part[j];
}

// squares [dim] := sum of the runs' columns; up, down [dim] := 2^e and 2^-e for e = floor(log2(rms)).
void fold_columns(const double* columns, Index runs, Index dim, Index rows, double* squares, double* up, double* down) {
  std::fill(squares, squares + dim, 0.0);
  for (Index run = 0; run < runs; ++run) add_to(squares, columns + run * dim, dim);
  for (Index j = 0; j < dim; ++j) {
    const double rms = std::sqrt(squares[j] / static_cast<double>(rows));
    const int e = rms > 0 && std::isfinite(rms) ? std::clamp(std::ilogb(rms), -1000, 1000) : 0;
    up[j] = std::ldexp(1.0, e);
    down[j] = std::ldexp(1.0, -e);
  }
}

template <class Label>
void copy_labels(const Label* labels, Index size, Index classes, Index* out, BatchFaults& faults) {
  for (Index i = 0; i < size; ++i) {
    const auto label = static_cast<Index>(labels[i]);
    out[i] = label;
    if (label >= 0 && label < classes) continue;
    if (faults.bad_labels++ == 0) {
      faults.bad_label_row = i;
      faults.bad_label = label;
    }
  }
}

}  // namespace

BatchFaults check_labels(const LabelView& labels, Index classes, Index* out) {
  BatchFaults faults;
  faults.rows = labels.size;
  switch (labels.type) {
    case LabelType::i64:
      copy_labels(static_cast<const std::int64_t*>(labels.data), labels.size, classes, out, faults);
      break;
    case LabelType::i32:
      copy_labels(static_cast<const std::int32_t*>(labels.data), labels.size, classes, out, faults);
      break;
    case LabelType::u8:
      copy_labels(static_cast<const std::uint8_t*>(labels.data), labels.size, classes, out, faults);
      break;
  }
  return faults;
}

void check_features(const MatrixView& features, int threads, BatchFaults& faults) {
  const Index rows = features.rows, dim = features.cols, stride = features.row_stride();
  with_elements(features, [&](const auto* data) {
    Index bad = 0, first = rows;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : bad) reduction(min : first)
    for (Index i = 0; i < rows; ++i) {
      const auto* row = data + i * stride;
      if (all_finite(row, dim)) continue;
      for (Index j = 0; j < dim; ++j) bad += is_finite(row[j]) ? 0 : 1;
      first = std::min(first, i);
    }
    faults.nonfinite = bad;
    if (bad == 0) return;
    faults.nonfinite_row = first;
    for (Index j = dim - 1; j >= 0; --j)
      if (!is_finite(data[first * stride + j])) faults.nonfinite_col = j;
  });
}

// A stable counting sort in parts, one a thread: the order does not depend on how many. With far more classes than rows
// a comparison sort.
void CpuBackend::sort_by_label(const Index* labels, Index rows, Index classes, Index* order, Index* sorted) {
  if (!counting_sort(classes, rows)) {
    for (Index i = 0; i < rows; ++i) order[i] = i;
    std::stable_sort(order, order + rows, [&](Index a, Index b) { return labels[a] < labels[b]; });
    for (Index i = 0; i < rows; ++i) sorted[i] = labels[order[i]];
    return;
  }
  const Index parts = sort_parts(classes, rows, threads_for(kSortWork * rows));
  Index* next = offsets_.reserve(parts * classes);  // [parts x classes] counts, then places
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (Index part = 0; part < parts; ++part) {
    Index* count = next + part * classes;
    std::fill(count, count + classes, Index{0});
    for (Index i = part * rows / parts; i < (part + 1) * rows / parts; ++i) ++count[labels[i]];
  }
  Index place = 0;
  for (Index k = 0; k < classes; ++k)
    for (Index part = 0; part < parts; ++part) place += std::exchange(next[part * classes + k], place);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (Index part = 0; part < parts; ++part) {
    Index* to = next + part * classes;
    for (Index i = part * rows / parts; i < (part + 1) * rows / parts; ++i) {
      const Index at = to[labels[i]]++;
      order[at] = i;
      sorted[at] = labels[i];
    }
  }
}

template <class T>
bool CpuBackend::add_rows(MomentState& state, const T* data, Index stride, Index rows) {
  const Index dim = state.dim;
  const bool full = static_cast<bool>(state.scatter), fast = full && state.precision == Precision::fast;
  const Keep what = fast ? Keep::fast_scatter : full ? Keep::scatter : Keep::sums;
  const Index chunk_rows = chunk_of(dim, rows, what).rows, max_runs = chunk_of(dim, rows, what).runs;
  const Index* order = order_.reserve(rows);    // rows in label order
  const Index* labels = sorted_.reserve(rows);  // and their labels

  Index* counts = state.counts.data();
  double* shifts = state.shifts.data();
  double* sums = state.sums.data();
  double* square_sums = state.square_sums.data();
  const double* class_scales = state.scatter_scale.data();

  double* centred = full && !fast ? centred_.reserve(chunk_rows * dim) : nullptr;
  const Index side = tile_of(dim, threads());
  double* columns = fast ? columns_.reserve(max_runs * dim) : nullptr;
  double* scales = fast ? scales_.reserve(3 * dim) : nullptr;
  float* single = fast ? single_.reserve(chunk_rows * dim) : nullptr;
  float* tiles = fast ? tiles_.reserve(threads() * side * side) : nullptr;
  double* accumulators = accumulators_.reserve(threads() * dim);
  // Two carries a run (its first and its last class), each: class, sum of squares, and d sums.
  struct Carry {
    Index label = -1;
    double squares = 0;
  };
  std::vector<Carry> carry(static_cast<std::size_t>(2 * max_runs));
  double* carry_sums = carries_.reserve(2 * max_runs * dim);

  double total_squares = 0;  // only whether it is finite matters, so its order does not
  // From here on nothing throws: a batch is added whole or not at all.
  for (Index begin = 0; begin < rows;) {
    const Index k = labels[begin];
    Index end = begin;
    while (end < rows && labels[end] == k) ++end;
    if (counts[k] == 0)
      for (Index j = 0; j < dim; ++j) shifts[k * dim + j] = to_double(data[order[begin] * stride + j]);
    counts[k] += end - begin;
    begin = end;
  }

  const auto row = [&](Index i) { return data + order[i] * stride; };
  const Index ahead = std::max(kAheadBytes / (dim * static_cast<Index>(sizeof(T))), Index{4});
  const auto next_of = [&](Index i) {
    Next<T> next;
    for (Index r = 0; r < 4; ++r) next.rows[r] = row(std::min(i + ahead + r, rows - 1));
    const Index k = labels[std::min(i + ahead, rows - 1)];
    next.shift = shifts + k * dim;
    next.sum = sums + k * dim;
    return next;
  };
  // Rows begin .. end - 1, all of class k: their sums go to `target`. Returns their squares.
  const auto centre = [&]<Leave leave>(Index begin, Index end, Index k, double* target, double* left) {
    const double scale = class_scales != nullptr ? class_scales[k] : 1.0;
    const double* shift = shifts + k * dim;
    double squares = 0;
    const auto left_of = [&](Index i) { return leave == Leave::rows ? left + (i - begin) * dim : left; };
    Index i = begin;
    for (; i + 4 <= end; i += 4) {
      const T* x[4] = {row(i), row(i + 1), row(i + 2), row(i + 3)};
      squares += centre_four<leave>(x, next_of(i), shift, scale, dim, target, left_of(i));
    }
    for (; i < end; ++i) squares += centre_one<leave>(row(i), next_of(i), shift, scale, dim, target, left_of(i));
    return squares;
  };

  for (Index chunk = 0; chunk < rows; chunk += chunk_rows) {
    const Index chunk_end = std::min(chunk + chunk_rows, rows);
    const Index runs = (chunk_end - chunk + kRunRows - 1) / kRunRows;
#pragma omp parallel for num_threads(threads_for((chunk_end - chunk) * dim)) schedule(dynamic) reduction(+ : total_squares)
    for (Index run = 0; run < runs; ++run) {
      const Index run_begin = chunk + run * kRunRows, run_end = std::min(run_begin + kRunRows, chunk_end);
      double* sum = accumulators + omp_get_thread_num() * dim;
      double* run_columns = fast ? columns + run * dim : nullptr;
      if (fast) std::fill(run_columns, run_columns + dim, 0.0);
      carry[2 * run].label = carry[2 * run + 1].label = -1;
      Index slot = 2 * run;
      for (Index begin = run_begin; begin < run_end;) {
        const Index k = labels[begin];
        Index end = begin;
        while (end < run_end && labels[end] == k) ++end;
        const bool starts_before = begin == run_begin && begin > 0 && labels[begin - 1] == k;
        const bool goes_on = end == run_end && end < rows && labels[end] == k;
        const bool whole = !starts_before && !goes_on;
        // A few rows go to their class at once, more by way of an accumulator that stays in the cache.
        const bool direct = whole && end - begin <= kDirectRows;
        double* target = direct ? sums + k * dim : whole ? sum : carry_sums + slot * dim;
        if (!direct) std::fill(target, target + dim, 0.0);
        const double squares =
            fast      ? centre.template operator()<Leave::columns>(begin, end, k, target, run_columns)
            : centred ? centre.template operator()<Leave::rows>(begin, end, k, target, centred + (begin - chunk) * dim)
                      : centre.template operator()<Leave::nothing>(begin, end, k, target, nullptr);
        total_squares += squares;
        if (whole) {
          if (!direct) add_to(sums + k * dim, target, dim);
          if (square_sums != nullptr) square_sums[k] += squares;
        } else {
          carry[slot++] = {k, squares};
        }
        begin = end;
      }
    }
    for (Index slot = 0; slot < 2 * runs; ++slot) {
      if (carry[slot].label < 0) continue;
      add_to(sums + carry[slot].label * dim, carry_sums + slot * dim, dim);
      if (square_sums != nullptr) square_sums[carry[slot].label] += carry[slot].squares;
    }
    if (centred)
      add_gram_lower(threads(), 1.0, {centred, dim, true}, dim, chunk_end - chunk, 1.0, state.scatter.data());
    if (!fast) continue;
    double *squares = scales, *up = scales + dim, *down = scales + 2 * dim, *scatter = state.scatter.data();
    fold_columns(columns, runs, dim, chunk_end - chunk, squares, up, down);
#pragma omp parallel for num_threads(threads_for((chunk_end - chunk) * dim)) schedule(static)
    for (Index i = chunk; i < chunk_end; ++i) {
      const Index k = labels[i];
      write_single(row(i), shifts + k * dim, class_scales != nullptr ? class_scales[k] : 1.0, down, dim,
                   single + (i - chunk) * dim);
    }
    add_single_gram_lower(threads(), single, dim, chunk_end - chunk, up, tiles, scatter);
    for (Index j = 0; j < dim; ++j) scatter[j * dim + j] += squares[j];
  }
  return std::isfinite(total_squares);
}

// Without a scatter, what a batch changes can be kept, [touched] classes, and brought back.
void CpuBackend::keep(const MomentState& state) {
  const Index dim = state.dim, touched = static_cast<Index>(touched_.size());
  Index* counts = kept_counts_.reserve(touched);
  double* sums = kept_sums_.reserve(touched * (dim + 1));
  for (const Index k : touched_) {
    *counts++ = state.counts.data()[k];
    sums = std::copy_n(state.sums.data() + k * dim, dim, sums);
    *sums++ = state.square_sums ? state.square_sums.data()[k] : 0.0;
  }
}

void CpuBackend::bring_back(MomentState& state) {
  const Index dim = state.dim, touched = static_cast<Index>(touched_.size());
  const Index* counts = kept_counts_.reserve(touched);
  const double* sums = kept_sums_.reserve(touched * (dim + 1));
  for (const Index k : touched_) {
    state.counts.data()[k] = *counts++;
    std::copy_n(sums, dim, state.sums.data() + k * dim);
    sums += dim;
    if (state.square_sums) state.square_sums.data()[k] = *sums;
    ++sums;
    if (state.counts.data()[k] == 0) std::fill_n(state.shifts.data() + k * dim, dim, 0.0);
  }
}

BatchFaults CpuBackend::add_batch(MomentState& state, const MatrixView& features, const LabelView& labels) {
  const std::lock_guard turn(turn_);
  const Index rows = features.rows;
  BatchFaults faults = check_labels(labels, state.classes, labels_.reserve(rows));
  const auto check = [&] { check_features(features, threads_for(rows * features.cols), faults); };
  if (faults.any()) check();
  if (faults.any() || rows == 0) return faults;

  Index* sorted = sorted_.reserve(rows);
  sort_by_label(labels_.reserve(rows), rows, state.classes, order_.reserve(rows), sorted);
  touched_.clear();
  for (Index i = 0; i < rows; ++i)
    if (i == 0 || sorted[i] != sorted[i - 1]) touched_.push_back(sorted[i]);
  const auto add = [&] {
    bool finite = false;
    with_elements(features, [&](const auto* data) { finite = add_rows(state, data, features.row_stride(), rows); });
    return finite;
  };
  // Features are looked at before anything is changed, or by what became of their squares.
  if (!state.scatter && static_cast<Index>(touched_.size()) <= most_kept(rows, size_of(features.dtype))) {
    keep(state);
    if (add()) return faults;
    bring_back(state);
  }
  check();
  if (!faults.any()) add();
  return faults;
}

}  // namespace ncollapse::cpu
