// Checked singular value decompositions: cases checked by hand, shapes and ranks of every kind, wrong input, and a
// solver that lies.
#include "host/decomposition.hpp"

#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "ncollapse/decomposition.hpp"
#include "ncollapse/error.hpp"
#include "tests/api/support.hpp"

namespace ncollapse_test {
namespace {

using namespace ncollapse;

constexpr double kEps = std::numeric_limits<double>::epsilon();

class Decompose : public OnDevice {
 protected:
  SingularValueDecomposition decomposed(const std::vector<double>& values, Index rows, Index cols) const {
    return decompose(context(), {.layers = {view(values.data(), rows, cols)}});
  }
};
NCOLLAPSE_ON_EVERY_DEVICE(Decompose);

std::vector<double> random_matrix(Index rows, Index cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(at(rows * cols));
  for (double& x : values) x = normal(random);
  return values;
}

double norm(const std::vector<double>& values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

/// Shapes, order, and what decompose() claims of residual and orthogonality, computed again here.
void expect_decomposes(const SingularValueDecomposition& svd, const std::vector<double>& A, Index m, Index n) {
  const Index r = std::min(m, n);
  const std::string what = std::to_string(m) + " x " + std::to_string(n);
  ASSERT_EQ(svd.rows, m);
  ASSERT_EQ(svd.cols, n);
  ASSERT_EQ(svd.values.size(), at(r));
  ASSERT_EQ(svd.left.size(), at(m * r));
  ASSERT_EQ(svd.right.size(), at(r * n));
  EXPECT_TRUE(std::is_sorted(svd.values.rbegin(), svd.values.rend())) << what;
  EXPECT_TRUE(svd.values.back() >= 0) << what;
  double residual = 0, columns = 0, rows = 0;
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) {
      double sum = A[at(i * n + j)];
      for (Index l = 0; l < r; ++l) sum -= svd.left[at(i * r + l)] * svd.values[at(l)] * svd.right[at(l * n + j)];
      residual += sum * sum;
    }
  for (Index i = 0; i < r; ++i)
    for (Index k = 0; k < r; ++k) {
      double u = i == k ? -1 : 0, v = u;
      for (Index l = 0; l < m; ++l) u += svd.left[at(l * r + i)] * svd.left[at(l * r + k)];
      for (Index l = 0; l < n; ++l) v += svd.right[at(i * n + l)] * svd.right[at(k * n + l)];
      columns += u * u;
      rows += v * v;
    }
  const double bound = 50 * static_cast<double>(std::max(m, n)) * kEps;
  EXPECT_TRUE(std::sqrt(residual) <= bound * norm(A)) << what << " " << std::sqrt(residual);
  EXPECT_TRUE(std::sqrt(columns) <= bound) << what << " " << std::sqrt(columns);
  EXPECT_TRUE(std::sqrt(rows) <= bound) << what << " " << std::sqrt(rows);
  EXPECT_TRUE(svd.residual <= bound && svd.orthogonality <= bound) << what;
}

TEST_P(Decompose, ByHand) {
  const std::vector<double> A{0, 3, 0, 0, 0, -2};  // e_1 -> 3 e_2, e_2 -> -2 e_3
  const auto svd = decomposed(A, 2, 3);
  expect_decomposes(svd, A, 2, 3);
  expect_close(svd.values[0], 3, 4 * kEps, 0);
  expect_close(svd.values[1], 2, 4 * kEps, 0);
  expect_close(std::abs(svd.left[0]), 1, 4 * kEps, 0);   // u_1 = +-e_1
  expect_close(std::abs(svd.right[1]), 1, 4 * kEps, 0);  // v_1 = +-e_2
  EXPECT_EQ(svd.rank(), 2);

  const std::vector<double> ones(12, 1.0);  // [3 x 4]: sqrt(12) once
  const auto single = decomposed(ones, 3, 4);
  expect_decomposes(single, ones, 3, 4);
  expect_close(single.values[0], std::sqrt(12.0), 8 * kEps, 0);
  EXPECT_EQ(single.rank(), 1);
}

TEST_P(Decompose, EveryShapeAndRank) {
  for (const auto& [m, n] :
       {std::pair<Index, Index>{1, 1}, {1, 9}, {9, 1}, {7, 4}, {4, 7}, {65, 33}, {33, 65}, {48, 48}}) {
    const auto A = random_matrix(m, n, static_cast<unsigned>(m * n));
    const auto svd = decomposed(A, m, n);
    expect_decomposes(svd, A, m, n);
    EXPECT_EQ(svd.rank(), std::min(m, n));

    const Index rank = (std::min(m, n) + 1) / 2;
    const auto left = random_matrix(m, rank, 1), right = random_matrix(rank, n, 2);
    std::vector<double> low(A.size(), 0.0);
    for (Index i = 0; i < m; ++i)
      for (Index l = 0; l < rank; ++l)
        for (Index j = 0; j < n; ++j) low[at(i * n + j)] += left[at(i * rank + l)] * right[at(l * n + j)];
    const auto deficient = decomposed(low, m, n);
    expect_decomposes(deficient, low, m, n);
    EXPECT_EQ(deficient.rank(), rank) << m << " x " << n;

    const std::vector<double> zero(A.size(), 0.0);
    const auto nothing = decomposed(zero, m, n);
    expect_decomposes(nothing, zero, m, n);
    EXPECT_EQ(nothing.values, std::vector<double>(at(std::min(m, n)), 0.0));
    EXPECT_EQ(nothing.residual, 0);
    EXPECT_EQ(nothing.rank(), 0);
  }
}

TEST_P(Decompose, RepeatedValues) {
  constexpr Index n = 6;  // H = I - 2 u u^T is orthogonal; 5 H has one singular value, six times
  const auto u = random_matrix(n, 1, 3);
  std::vector<double> A(at(n * n));
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < n; ++j) A[at(i * n + j)] = 5 * ((i == j) - 2 * u[at(i)] * u[at(j)] / (norm(u) * norm(u)));
  const auto svd = decomposed(A, n, n);
  expect_decomposes(svd, A, n, n);
  for (const double value : svd.values) expect_close(value, 5, 50 * n * kEps, 0);
}

TEST_P(Decompose, ProductOfLayers) {
  const auto first = random_matrix(8, 5, 1), second = random_matrix(6, 8, 2), third = random_matrix(3, 6, 3);
  const auto svd =
      decompose(context(), {.layers = {view(first.data(), 8, 5), view(second.data(), 6, 8), view(third.data(), 3, 6)}});
  std::vector<double> inner(at(6 * 5), 0.0), product(at(3 * 5), 0.0);
  for (Index i = 0; i < 6; ++i)
    for (Index l = 0; l < 8; ++l)
      for (Index j = 0; j < 5; ++j) inner[at(i * 5 + j)] += second[at(i * 8 + l)] * first[at(l * 5 + j)];
  for (Index i = 0; i < 3; ++i)
    for (Index l = 0; l < 6; ++l)
      for (Index j = 0; j < 5; ++j) product[at(i * 5 + j)] += third[at(i * 6 + l)] * inner[at(l * 5 + j)];
  expect_decomposes(svd, product, 3, 5);
}

TEST_P(Decompose, LabelMatrices) {
  const auto balanced = decompose_label_matrix(context(), {4, 4, 4}, LabelModel::with_bias);
  expect_close(balanced.values[0], 2, 150 * kEps, 0);
  expect_close(balanced.values[1], 2, 150 * kEps, 0);
  expect_close(balanced.values[2], 0, 0, 300 * kEps);
  EXPECT_EQ(balanced.rank(), 2);
  const auto plain = decompose_label_matrix(context(), {1, 9, 4}, LabelModel::without_bias);
  for (std::size_t i = 0; i < 3; ++i) expect_close(plain.values[i], 3 - static_cast<double>(i), 150 * kEps, 0);
  // (I - 11^T/2) diag(1, 3): both rows are +-(1, -3)/2, so sigma^2 = 2 (1 + 9) / 4.
  const auto seli = decompose_label_matrix(context(), {1, 9}, LabelModel::seli);
  expect_close(seli.values[0], std::sqrt(5.0), 100 * kEps, 0);
  EXPECT_EQ(seli.rank(), 1);
}

TEST_P(Decompose, RepetitionGivesTheSameBits) {
  const auto A = random_matrix(40, 30, 5);
  const auto once = decomposed(A, 40, 30), again = decomposed(A, 40, 30);
  EXPECT_TRUE(same_bits(once.values, again.values));
  EXPECT_TRUE(same_bits(once.left, again.left));
  EXPECT_TRUE(same_bits(once.right, again.right));
}

TEST_P(Decompose, WrongInput) {
  EXPECT_THROW(decompose(context(), {}), UsageError);
  const auto first = random_matrix(4, 3, 1), second = random_matrix(2, 5, 2);
  EXPECT_THROW(decompose(context(), {.layers = {view(first.data(), 4, 3), view(second.data(), 2, 5)}}), UsageError);
  auto values = random_matrix(3, 3, 1);
  for (const double bad : {std::nan(""), HUGE_VAL, 1e200}) {
    values[4] = bad;
    EXPECT_THROW(decomposed(values, 3, 3), DataError) << bad;
  }
  const std::vector<double> large(4, 1e100);  // finite, and so is their product; its squares are not
  EXPECT_THROW(decompose(context(), {.layers = {view(large.data(), 2, 2), view(large.data(), 2, 2)}}), DataError);

  EXPECT_THROW(decompose_label_matrix(context(), {}, LabelModel::seli), UsageError);
  EXPECT_THROW(decompose_label_matrix(context(), {3, 0}, LabelModel::with_bias), UsageError);
  try {
    decompose_label_matrix(context(), std::vector<Index>(at(kMaxDenseClasses + 1), 1), LabelModel::with_bias);
    ADD_FAILURE() << "a matrix of 8 GiB";
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("32768"), std::string::npos) << error.what();
  }
}

/// A CPU backend whose svd() is changed before it is returned.
class LyingBackend final : public Backend {
 public:
  explicit LyingBackend(std::function<void(Backend&, Svd&)> lie) : lie_(std::move(lie)) {}
  Svd svd(const Matrix& A) override {
    Svd result = honest_->svd(A);
    lie_(*honest_, result);
    return result;
  }

  const DeviceInfo& info() const override { return honest_->info(); }
  std::shared_ptr<void> allocate(Index bytes) override { return honest_->allocate(bytes); }
  void upload(void* to, const void* host, Index bytes) override { honest_->upload(to, host, bytes); }
  void download(void* host, const void* from, Index bytes) override { honest_->download(host, from, bytes); }
  void copy(void* to, const void* from, Index bytes) override { honest_->copy(to, from, bytes); }
  Matrix import(const MatrixView& source) override { return honest_->import(source); }
  BatchFaults add_batch(MomentState& state, const MatrixView& features, const LabelView& labels) override {
    return honest_->add_batch(state, features, labels);
  }
  BatchFaults decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) override {
    return honest_->decide_batch(state, features, labels);
  }
  void combine_rows(const std::vector<double>& a, const Matrix& A, const std::vector<double>& b, const Matrix& B,
                    Matrix& out) override {
    honest_->combine_rows(a, A, b, B, out);
  }
  Matrix select_rows(const Matrix& A, const std::vector<Index>& index) override {
    return honest_->select_rows(A, index);
  }
  Matrix sum_groups(const Matrix& A, const std::vector<Index>& begin) override { return honest_->sum_groups(A, begin); }
  void centre_rows(Matrix& A, const std::vector<double>& centre) override { honest_->centre_rows(A, centre); }
  std::vector<double> weighted_row_sum(const Matrix& A, const std::vector<double>& w) override {
    return honest_->weighted_row_sum(A, w);
  }
  std::vector<double> row_dots(const Matrix& A, const Matrix& B) override { return honest_->row_dots(A, B); }
  double inner(const Matrix& A, const Matrix& B) override { return honest_->inner(A, B); }
  Matrix product(const Matrix& A, Transpose ta, const Matrix& B, Transpose tb) override {
    return honest_->product(A, ta, B, tb);
  }
  void add_gram(double alpha, const Matrix& A, Matrix& T) override { honest_->add_gram(alpha, A, T); }
  void mirror_lower(Matrix& A) override { honest_->mirror_lower(A); }
  std::vector<double> eigh(Matrix& A) override { return honest_->eigh(A); }
  std::vector<double> eigenvalues(Matrix& A) override { return honest_->eigenvalues(A); }
  std::vector<double> singular_values(const Matrix& A) override { return svd(A).values; }
  Matrix triangular_factor(const Matrix& A) override { return honest_->triangular_factor(A); }
  double cholesky(Matrix& A, Matrix* inverse) override { return honest_->cholesky(A, inverse); }
  void solve_lower(const Matrix& L, Transpose t, Matrix& B) override { honest_->solve_lower(L, t, B); }
  PairSums pair_sums(const Matrix& A, const PairQuery& query) override { return honest_->pair_sums(A, query); }
  ProductSums product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) override {
    return honest_->product_sums(A, B, query);
  }

 private:
  std::shared_ptr<Backend> honest_ = open_cpu_backend({});
  std::function<void(Backend&, Svd&)> lie_;
};

TEST(CheckedSvd, ALieIsFound) {
  const auto negate_row = [](Backend& backend, Matrix& A, Index row) {
    std::vector<double> signs(at(A.rows), 1.0);
    signs[at(row)] = -1;
    backend.combine_rows(signs, A, {}, {}, A);
  };
  const auto change_first = [](Backend& backend, Matrix& A, double value) {
    backend.upload(A.data(), &value, sizeof value);
  };
  const std::vector<std::pair<const char*, std::function<void(Backend&, Svd&)>>> lies{
      {"a singular value", [](Backend&, Svd& svd) { svd.values[2] *= 1 + 1e-9; }},
      {"a vector's sign", [&](Backend& backend, Svd& svd) { negate_row(backend, svd.right, 1); }},
      {"an entry of U", [&](Backend& backend, Svd& svd) { change_first(backend, svd.left, 0.5); }},
      {"NaN in U", [&](Backend& backend, Svd& svd) { change_first(backend, svd.left, std::nan("")); }},
      {"NaN in V", [&](Backend& backend, Svd& svd) { change_first(backend, svd.right, std::nan("")); }},
      {"NaN in s", [](Backend&, Svd& svd) { svd.values[0] = std::nan(""); }},
      // Seen by the orthogonality alone: with s = 0 these vectors do not count in the product.
      {"the vectors of s = 0",
       [](Backend& backend, Svd& svd) {
         std::vector<double> halves(at(svd.right.rows), 1.0);
         halves.back() = 0.5;
         backend.combine_rows(halves, svd.right, {}, {}, svd.right);
       }},
  };
  const auto values = random_matrix(5, 4, 7);
  std::vector<double> singular = values;  // the last column repeats the first: s_4 = 0
  for (Index i = 0; i < 5; ++i) singular[at(4 * i + 3)] = singular[at(4 * i)];
  const auto check = [&](Backend& backend) {
    Matrix A = backend.matrix(5, 4);
    backend.from_host(A, singular);
    return checked_svd(backend, A);
  };
  LyingBackend truthful([](Backend&, Svd&) {});
  const CheckedSvd checked = check(truthful);
  EXPECT_TRUE(checked.residual <= 250 * kEps && checked.orthogonality <= 250 * kEps);
  for (const auto& [what, lie] : lies) {
    LyingBackend backend(lie);
    try {
      check(backend);
      ADD_FAILURE() << what;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::internal) << what;
      EXPECT_NE(std::string(error.what()).find("orthogonality"), std::string::npos) << error.what();
    }
  }
  for (const auto& [what, lie] : {lies.front(), lies[5]}) {
    LyingBackend backend(lie);
    Matrix A = backend.matrix(5, 4);
    backend.from_host(A, singular);
    EXPECT_THROW(checked_singular_values(backend, A), Error) << what;
    EXPECT_EQ(checked_singular_values(truthful, A), checked.svd.values);
  }
}

}  // namespace
}  // namespace ncollapse_test
