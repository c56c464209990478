#include <algorithm>
#include <cmath>
#include <numeric>

#include "host/backend.hpp"
#include "host/theory/structure.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

constexpr Index kTileRows = 256;
constexpr Index kMaxSamples = Index{1} << 53;

// Rows of an orthonormal contrast basis times the group's rows (Helmert): row j is (sum_{t<j} x_t - j x_j)/sqrt(j
// (j+1)).
void contrasts(const std::vector<double>& X, Index columns, const Index* members, Index count, double* out) {
  std::vector<double> sum(static_cast<std::size_t>(columns));
  for (Index c = 0; c < columns; ++c) sum[c] = X[members[0] * columns + c];
  for (Index j = 1; j < count; ++j) {
    const double scale = 1 / std::sqrt(static_cast<double>(j) * static_cast<double>(j + 1));
    const double* row = X.data() + members[j] * columns;
    for (Index c = 0; c < columns; ++c) {
      out[(j - 1) * columns + c] = (sum[c] - static_cast<double>(j) * row[c]) * scale;
      sum[c] += row[c];
    }
  }
}

}  // namespace

std::vector<double> LabelSpectrum::Structure::numerators(bool left) const {
  const bool with_size = left == (model == LabelModel::with_bias);  // h instead of p
  std::vector<double> values;
  for (std::size_t i = 0; i < weights_.size(); ++i)
    values.push_back(std::sqrt(weights_[i] * (with_size ? static_cast<double>(sizes[i]) : 1.0)));
  return values;
}

std::vector<double> LabelSpectrum::Structure::group_vectors(bool left, Index first, Index count) const {
  const Index m = groups();
  const std::vector<double> above = numerators(left);
  std::vector<double> rows(static_cast<std::size_t>(count * m));
  for (Index row = 0; row < count; ++row) {
    const Index r = first + row;
    double* out = rows.data() + row * m;
    double squares = 0;
    for (Index i = 0; i < m; ++i) {
      const auto size = static_cast<double>(sizes[i]), number = static_cast<double>(members(i));
      if (r + 1 < m) {
        out[i] = above[i] / gap(i, r);
      } else {  // sigma = 0: 1 on the left; sqrt(n) with bias, 1/sqrt(n) for SELI on the right
        out[i] = std::sqrt(left ? number : model == LabelModel::with_bias ? number * size : number / size);
      }
      squares += out[i] * out[i];
    }
    const double scale = 1 / std::sqrt(squares);
    for (Index i = 0; i < m; ++i) out[i] *= scale;
  }
  return rows;
}

void LabelSpectrum::Structure::make_weights() {
  const Index m = groups();
  std::vector<double> weights(static_cast<std::size_t>(m));
  for (Index i = 0; i < m; ++i) {
    // Paired so that every factor is positive and the products neither overflow nor lose digits: root r with size r for
    // sizes above i, with size r + 1 below.
    double product = 1;
    for (Index r = 0; r < i; ++r) product *= gap(i, r) / static_cast<double>(sizes[i] - sizes[r]);
    for (Index r = i; r + 1 < m; ++r) product *= gap(i, r) / static_cast<double>(sizes[i] - sizes[r + 1]);
    weights[i] = product;
  }
  weights_ = std::move(weights);
}

LabelSpectrum::LabelSpectrum(std::vector<Index> counts, LabelModel model) : structure_(std::make_unique<Structure>()) {
  if (counts.empty()) throw UsageError("there are no class counts", "give one count for every class");
  Structure& s = *structure_;
  for (std::size_t k = 0; k < counts.size(); ++k) {
    if (counts[k] < 1)
      throw UsageError(
          "the count of class " + std::to_string(k) + " is " + std::to_string(counts[k]) + ", must be at least 1",
          "leave out classes without samples");
    if (__builtin_add_overflow(s.samples, counts[k], &s.samples) || s.samples > kMaxSamples)
      throw UsageError("the counts up to class " + std::to_string(k) + " sum to more than 2^53 samples",
                       "counts must be whole numbers in double precision");
  }
  s.model = model;
  s.counts = std::move(counts);
  s.order.resize(s.counts.size());
  std::iota(s.order.begin(), s.order.end(), Index{0});
  std::stable_sort(s.order.begin(), s.order.end(), [&](Index a, Index b) { return s.counts[a] > s.counts[b]; });
  for (Index i = 0; i < static_cast<Index>(s.order.size()); ++i) {
    const Index size = s.counts[s.order[i]];
    if (!s.sizes.empty() && s.sizes.back() == size) continue;
    s.sizes.push_back(size);
    s.begin.push_back(i);
  }
  s.begin.push_back(static_cast<Index>(s.order.size()));

  if (model == LabelModel::without_bias) {
    for (Index i = 0; i < s.groups(); ++i)
      s.eigenspaces.push_back({std::sqrt(static_cast<double>(s.sizes[i])), s.members(i)});
    return;
  }
  std::vector<double> weights;
  for (Index i = 0; i < s.groups(); ++i)
    weights.push_back(static_cast<double>(s.members(i)) *
                      (model == LabelModel::with_bias ? static_cast<double>(s.sizes[i]) : 1.0));
  s.roots = secular_roots(s.sizes, weights);
  if (!s.roots.empty()) s.make_weights();
  for (Index i = 0; i < s.groups(); ++i) {
    if (s.members(i) > 1) s.eigenspaces.push_back({std::sqrt(static_cast<double>(s.sizes[i])), s.members(i) - 1});
    s.eigenspaces.push_back({i + 1 < s.groups() ? std::sqrt(s.root(i)) : 0.0, 1});
  }
}

LabelSpectrum::~LabelSpectrum() = default;
LabelSpectrum::LabelSpectrum(LabelSpectrum&&) noexcept = default;
LabelSpectrum& LabelSpectrum::operator=(LabelSpectrum&&) noexcept = default;

Index LabelSpectrum::classes() const { return static_cast<Index>(structure_->counts.size()); }
Index LabelSpectrum::samples() const { return structure_->samples; }
LabelModel LabelSpectrum::model() const { return structure_->model; }
const std::vector<Index>& LabelSpectrum::counts() const { return structure_->counts; }
const std::vector<Eigenspace>& LabelSpectrum::eigenspaces() const { return structure_->eigenspaces; }

std::vector<double> LabelSpectrum::sigma() const {
  std::vector<double> values;
  for (const auto& space : structure_->eigenspaces)
    values.insert(values.end(), static_cast<std::size_t>(space.multiplicity), space.sigma);
  return values;
}

namespace {

std::vector<double> apply(const LabelSpectrum::Structure& s, bool left, const std::vector<double>& X, Index columns) {
  const auto classes = static_cast<Index>(s.counts.size());
  if (columns < 0 || static_cast<Index>(X.size()) != classes * columns)
    throw UsageError("the matrix has " + std::to_string(X.size()) + " entries, expected " + std::to_string(classes) +
                     " x " + std::to_string(columns));
  std::vector<double> out(X.size());
  if (s.model == LabelModel::without_bias) {
    for (Index i = 0; i < classes; ++i)
      std::copy_n(X.begin() + s.order[i] * columns, columns, out.begin() + i * columns);
    return out;
  }
  // Contrasts straight to their rows; group sums, scaled to the orthonormal basis, to the m x m part.
  const Index m = s.groups();
  const auto backend = open_cpu_backend({});
  Matrix sums = backend->matrix(m, columns);
  std::vector<Index> root_row(static_cast<std::size_t>(m));
  Index row = 0;
  for (Index i = 0; i < m; ++i) {
    const Index* members = s.order.data() + s.begin[i];
    const Index count = s.members(i);
    contrasts(X, columns, members, count, out.data() + row * columns);
    row += count - 1;
    root_row[i] = row++;
    double* sum = sums.data() + i * columns;
    for (Index j = 0; j < count; ++j)
      for (Index c = 0; c < columns; ++c) sum[c] += X[members[j] * columns + c];
    for (Index c = 0; c < columns; ++c) sum[c] /= std::sqrt(static_cast<double>(count));
  }
  for (Index first = 0; first < m; first += kTileRows) {
    const Index count = std::min(kTileRows, m - first);
    const Matrix vectors = backend->from_host(s.group_vectors(left, first, count), count, m);
    const Matrix product = backend->product(vectors, Transpose::no, sums, Transpose::no);
    for (Index r = 0; r < count; ++r)
      std::copy_n(product.data() + r * columns, columns, out.begin() + root_row[first + r] * columns);
  }
  return out;
}

}  // namespace

std::vector<double> LabelSpectrum::apply_left(const std::vector<double>& X, Index columns) const {
  return apply(*structure_, true, X, columns);
}

std::vector<double> LabelSpectrum::apply_right(const std::vector<double>& X, Index columns) const {
  return apply(*structure_, false, X, columns);
}

}  // namespace ncollapse
