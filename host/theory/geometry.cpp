#include "host/theory/geometry.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "host/numbers.hpp"

namespace ncollapse {

namespace {

constexpr Index kTileRows = 256;
constexpr Index kSortBytes = Index{2} << 20;   // of rows sorted at a time: they stay in the cache
constexpr Index kGramBytes = Index{16} << 20;  // of rows in a step of a Gram matrix: deep enough for BLAS

Index rows_in(Index bytes, Index cols) {
  return std::max<Index>(1, bytes / (static_cast<Index>(sizeof(double)) * std::max<Index>(1, cols)));
}

/// The end of the chunk of whole groups that begins with group `first`.
Index next_chunk(const LabelSpectrum::Structure& s, Index first, Index cols) {
  const Index rows = rows_in(kSortBytes, cols);
  Index last = first + 1;
  while (last < s.groups() && s.begin[last + 1] - s.begin[first] <= rows) ++last;
  return last;
}

/// Groups first .. last - 1 of A: the rows, sorted.
Matrix sorted_rows(Backend& backend, const LabelSpectrum::Structure& s, const Matrix& A, Index first, Index last) {
  return backend.select_rows(A, {s.order.begin() + s.begin[first], s.order.begin() + s.begin[last]});
}

std::vector<Index> local_begins(const LabelSpectrum::Structure& s, Index first, Index last) {
  std::vector<Index> begin;
  for (Index i = first; i <= last; ++i) begin.push_back(s.begin[i] - s.begin[first]);
  return begin;
}

/// Groups first .. last - 1 of one matrix, sorted and with the groups' means subtracted (where `deviate`); their sums
/// go to `sums`.
Matrix deviations(Backend& backend, const LabelSpectrum::Structure& s, const Matrix& A, Index first, Index last,
                  bool deviate, Matrix& sums) {
  Matrix rows = sorted_rows(backend, s, A, first, last);
  std::vector<double> to_mean, to_basis;
  std::vector<Index> group_of;
  for (Index i = first; i < last; ++i) {
    const auto count = static_cast<double>(s.members(i));
    to_mean.push_back(1 / count);
    to_basis.push_back(1 / std::sqrt(count));
    group_of.insert(group_of.end(), static_cast<std::size_t>(s.members(i)), i - first);
  }
  const Matrix totals = backend.sum_groups(rows, local_begins(s, first, last));
  Matrix slice = Backend::rows_of(sums, first, last - first);
  backend.combine_rows(to_basis, totals, {}, {}, slice);
  if (!deviate) return rows;
  const Matrix means = backend.scaled(to_mean, totals);
  backend.combine(1, rows, -1, backend.select_rows(means, group_of), rows);
  return rows;
}

}  // namespace

GroupedPair group_pair(Backend& backend, const LabelSpectrum::Structure& s, const Matrix& A, const Matrix& B) {
  const Index m = s.groups();
  const bool contrasts = s.model != LabelModel::without_bias;  // else a group is one eigenspace: U = V = I
  GroupedPair pair;
  pair.left_sums = backend.matrix(m, A.cols);
  const bool same = A.data() == B.data();  // a matrix beside itself: everything once
  pair.right_sums = same ? pair.left_sums : backend.matrix(m, B.cols);
  for (Index first = 0, last = 0; first < m; first = last) {
    last = next_chunk(s, first, A.cols);
    const Matrix a = deviations(backend, s, A, first, last, contrasts, pair.left_sums);
    const Matrix b = same ? a : deviations(backend, s, B, first, last, contrasts, pair.right_sums);
    const RowProducts products = backend.row_products(a, b);
    const auto begins = local_begins(s, first, last);
    const auto left_gram = backend.group_gram_squares(a, begins);
    const auto right_gram = same ? left_gram : backend.group_gram_squares(b, begins);
    pair.left_gram.insert(pair.left_gram.end(), left_gram.begin(), left_gram.end());
    pair.right_gram.insert(pair.right_gram.end(), right_gram.begin(), right_gram.end());
    for (Index i = first; i < last; ++i) {
      const auto total = [&](const std::vector<double>& values) {
        return std::accumulate(values.begin() + begins[i - first], values.begin() + begins[i - first + 1], 0.0);
      };
      pair.left.push_back(total(products.left));
      pair.right.push_back(total(products.right));
      pair.cross.push_back(total(products.cross));
    }
  }
  return pair;
}

GroupedPair scaled_right(Backend& backend, const LabelSpectrum::Structure& s, const GroupedPair& pair,
                         const std::vector<double>& scale, const std::vector<double>& centre) {
  GroupedPair result = pair;
  result.right_sums = backend.clone(pair.right_sums);
  if (!centre.empty()) {
    // The centre adds to a group's sum / sqrt(l) what it adds to every member, sqrt(l) times; contrasts never see it.
    std::vector<double> up, down;
    for (Index i = 0; i < s.groups(); ++i) {
      up.push_back(std::sqrt(static_cast<double>(s.members(i))));
      down.push_back(1 / up.back());
    }
    backend.scale_rows(down, result.right_sums);
    backend.centre_rows(result.right_sums, centre);
    backend.scale_rows(up, result.right_sums);
  }
  backend.scale_rows(scale, result.right_sums);
  for (std::size_t i = 0; i < scale.size(); ++i) {
    result.right[i] *= scale[i] * scale[i];
    result.cross[i] *= scale[i];
    result.right_gram[i] *= std::pow(scale[i], 4);
  }
  return result;
}

SpectrumEnergies spectrum_energies(Backend& backend, const LabelSpectrum& spectrum, const GroupedPair& pair) {
  const auto& s = spectrum.structure();
  const Index m = s.groups();
  SpectrumEnergies energies;
  const auto add = [&](double left, double right, double cross, double left_gram, double right_gram) {
    energies.left.push_back(left);
    energies.right.push_back(right);
    energies.cross.push_back(cross);
    energies.left_blocks += left_gram;
    energies.right_blocks += right_gram;
  };
  const auto add_group = [&](Index i) {
    add(pair.left[i], pair.right[i], pair.cross[i], pair.left_gram[i], pair.right_gram[i]);
  };
  if (s.model == LabelModel::without_bias) {
    for (Index i = 0; i < m; ++i) add_group(i);
    return energies;
  }
  for (Index first = 0; first < m; first += kTileRows) {
    const Index count = std::min(kTileRows, m - first);
    const auto rows = [&](bool left, const Matrix& sums) {
      const Matrix vectors = backend.from_host(s.group_vectors(left, first, count), count, m);
      return backend.product(vectors, Transpose::no, sums, Transpose::no);
    };
    const Matrix left = rows(true, pair.left_sums), right = rows(false, pair.right_sums);
    const RowProducts products = backend.row_products(left, right);
    for (Index r = 0; r < count; ++r) {
      if (s.members(first + r) > 1) add_group(first + r);
      const double left_square = products.left[r], right_square = products.right[r];
      add(left_square, right_square, products.cross[r], left_square * left_square, right_square * right_square);
    }
  }
  return energies;
}

Matrix group_sums(Backend& backend, const LabelSpectrum::Structure& s, const Matrix& A,
                  const std::vector<double>& scale) {
  Matrix sums = backend.matrix(s.groups(), A.cols);
  for (Index first = 0, last = 0; first < s.groups(); first = last) {
    last = next_chunk(s, first, A.cols);
    Matrix rows = sorted_rows(backend, s, A, first, last);
    std::vector<double> factors;
    for (Index i = s.begin[first]; i < s.begin[last]; ++i) factors.push_back(scale[s.order[i]]);
    backend.scale_rows(factors, rows);
    const Matrix totals = backend.sum_groups(rows, local_begins(s, first, last));
    backend.copy(sums.data() + first * A.cols, totals.data(), totals.bytes());
  }
  return sums;
}

double distance_to_diagonal(const std::vector<double>& energies, double norm, const std::vector<double>& target,
                            const std::vector<Eigenspace>& spaces) {
  double inner = 0, squares = 0;
  for (std::size_t i = 0; i < spaces.size(); ++i) {
    inner += energies[i] * target[i];
    squares += static_cast<double>(spaces[i].multiplicity) * target[i] * target[i];
  }
  return std::sqrt(at_least_zero(2 - 2 * inner / (norm * std::sqrt(squares))));
}

GramNorms gram_norms(Backend& backend, Grams& grams, const Matrix& A, const Matrix& B, const std::vector<double>& scale,
                     const std::vector<double>& centre) {
  const auto scaled_rows = [&](Index first, Index count) {
    Matrix rows = backend.clone(Backend::rows_of(B, first, count));
    if (!centre.empty()) backend.centre_rows(rows, centre);
    backend.scale_rows({scale.begin() + first, scale.begin() + first + count}, rows);
    return rows;
  };
  if (A.rows <= A.cols) {
    const Matrix X = scaled_rows(0, B.rows);
    return {grams.norm(A), grams.norm(X), grams.product_norm(A, X)};
  }
  Matrix right = backend.matrix(B.cols, B.cols);
  const Index chunk = rows_in(kGramBytes, B.cols);
  for (Index first = 0; first < B.rows; first += chunk)
    backend.add_gram(1.0, scaled_rows(first, std::min(chunk, B.rows - first)), right);
  backend.mirror_lower(right);
  const double left = grams.norm(A), own = backend.norm(right), squares = backend.inner(grams.of(A), right);
  const bool cancels = Grams::cancels(squares, A.cols, left * own);
  return {left, own, cancels ? grams.product_norm(A, scaled_rows(0, B.rows)) : std::sqrt(squares)};
}

}  // namespace ncollapse
