// The seam between the algorithms (host/) and the devices (host/cpu/, cuda/). A backend is a handful of verbs in the
// language of the mission; state that grows with N, K d or d^2 stays in its memory, K-sized results come to the host.
// One virtual call per batch. All arithmetic is double unless a verb says otherwise; every verb is deterministic: same
// inputs, same device, same thread count, same bits.
//
// Symbols: K classes, d feature dimension, n_k class counts, r_k frozen shift, m_k class mean.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "ncollapse/accumulator.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// A row-major array in a backend's memory. Copies share the memory.
template <class T>
struct Array {
  std::shared_ptr<T> memory;
  Index rows = 0, cols = 0;

  T* data() const { return memory.get(); }
  Index size() const { return rows * cols; }
  Index bytes() const { return size() * static_cast<Index>(sizeof(T)); }
  explicit operator bool() const { return memory != nullptr; }
  /// Whether the memory is the caller's, which is there for the length of a call.
  bool borrowed() const { return memory != nullptr && memory.use_count() == 0; }
};
using Matrix = Array<double>;
using IndexArray = Array<Index>;

/// The streaming state (docs/exactness.md). With z = x - r_y for every sample x of class
/// y:  sums_k = sum z,  square_sums_k = sum |z|^2,  scatter = sum a_y z z^T.
struct MomentState {
  Index classes = 0, dim = 0;
  Statistics statistics = Statistics::full;
  IndexArray counts;     ///< [K x 1] n_k
  Matrix shifts;         ///< [K x d] r_k: the class's first sample in stream order; 0 before it came
  Matrix sums;           ///< [K x d]; to be read after Backend::pending_faults
  Matrix square_sums;    ///< [K x 1]; null for Statistics::means
  Matrix scatter;        ///< [d x d], only the lower triangle (column <= row) is kept; null below Statistics::full
  Matrix scatter_scale;  ///< [K x 1] sqrt(a_k); null when every a_k is 1
  Precision precision = Precision::exact;
  double error_carried = 0;         ///< c of host/moments.hpp
  std::shared_ptr<void> workspace;  ///< the backend's own, kept from batch to batch; made on first use
};

/// What is wrong with a batch. The batch has changed nothing.
struct BatchFaults {
  Index rows = 0;            ///< rows of that batch
  Index samples = -1;        ///< in the state, all of the batches before it; -1: not counted yet
  Index batch = -1;          ///< how many batches the state took before it; -1: it is the batch of this very call
  Index bad_labels = 0;      ///< labels outside 0 .. K-1
  Index bad_label_row = -1;  ///< the first of them: its row in the batch
  Index bad_label = 0;       ///< and its value
  Index nonfinite = 0;       ///< NaN or infinite feature values
  Index nonfinite_row = -1;  ///< the row of the first of them
  Index nonfinite_col = -1;

  bool any() const { return bad_labels != 0 || nonfinite != 0; }
};

/// Centres, classifier and counters for counting decisions.
struct DecisionState {
  Index classes = 0, dim = 0;
  Matrix centres;                  ///< [S x d] means of the S classes that have samples
  IndexArray centre_class;         ///< [S x 1] their class numbers, ascending
  Matrix weights;                  ///< [K x d] W; null without a classifier
  Matrix bias;                     ///< [1 x K] b (zeros when the head has none); null without a classifier
  IndexArray counters;             ///< [4 x K] rows: samples, correct_centre, correct_classifier, agree
  std::shared_ptr<void> prepared;  ///< the backend's own derived data (norms, narrower copies); made on first use
};

/// All pairs j < k of rows of one matrix A [R x d], and the two Gram residuals over all ordered (j, k).
struct PairQuery {
  std::vector<double> norms;      ///< |a_k| [R]
  double gram_norm = 0;           ///< |A A^T|_F
  std::vector<double> offsets;    ///< [R] u; the uncentred Gram is (A A^T)_jk + u_j + u_k. Empty: all 0
  double frame_norm = 0;          ///< Frobenius norm of the uncentred Gram
  std::vector<double> variances;  ///< [R] v_k for CDNV and `nearest_squared`; empty: those are not computed
  bool fast = false;              ///< products of narrowed rows: PairSums::cosine_error
};

/// Sums over pairs are taken about the simplex ETF's values, so that a collapsed geometry loses no digits:
/// e = cos_jk + 1/(R-1);  f = |a^_j - a^_k| - s;  g = log(1/|a^_j - a^_k|) + log s;  s = sqrt(2R/(R-1)), ^ = unit norm.
struct PairSums {
  double etf_residual =
      0;  ///< sum over ordered (j,k), diagonal included, of (G_jk/|G|_F - E_jk)^2, E = (I - 11^T/R)/sqrt(R-1)
  double frame_residual = 0;  ///< the same with the uncentred Gram and I/sqrt(R)
  Index angles = 0;           ///< pairs j<k with both norms > 0: the pairs in the sums below
  double cos_sum = 0, cos_square_sum = 0, cos_abs_sum = 0;  ///< sums of e, e^2, |e|
  double cos_max = -2;                                      ///< largest cos_jk; -2 when there is no pair
  double distance_sum = 0, distance_square_sum = 0;         ///< sums of f, f^2
  double min_unit_distance = 4;                             ///< smallest |a^_j - a^_k|; 4 when there is no pair
  Index coincident_directions = 0;         ///< pairs with |a^_j - a^_k| <= 4 eps (then taken as 0), not in the log sums
  double log_sum = 0, log_square_sum = 0;  ///< sums of g, g^2
  double cdnv_sum = 0;                     ///< sum over j<k of (v_j + v_k) / (2 |a_j - a_k|^2)
  Index coincident_means = 0;              ///< pairs with |a_j - a_k| = 0, left out of cdnv_sum
  std::vector<double> nearest_squared;     ///< [R] min over j != k of |a_k - a_j|^2
  /// E, where the products were narrow (PairQuery::fast); else 0. No cosine is off by more than E. A pair whose squared
  /// distance is below 64 E (at least 1e-4) of the sum of both squared norms is evaluated directly, in double, so that
  /// coincident pairs are found as such; all other squared distances, of rows and of unit rows, are off by at most E
  /// times that sum, 1/64 of themselves. The residuals come from Backend::take_residuals then.
  double cosine_error = 0;
};
inline constexpr double kPairMargin = 64;  ///< the factor of E above

/// All entries of P = A B^T, A and B [R x d].
struct ProductQuery {
  double product_norm = 0;          ///< |P|_F
  std::vector<double> row_offsets;  ///< [R] u; the uncentred product is P_jk + u_j
  double frame_norm = 0;            ///< Frobenius norm of the uncentred product; 0: frame_residual is not wanted
};
struct ProductSums {
  double etf_residual = 0;    ///< sum of (P_jk/|P|_F - E_jk)^2
  double frame_residual = 0;  ///< sum of ((P_jk + u_j)/frame_norm - I_jk/sqrt(R))^2
};

/// A = left diag(values) right, r = min(m, n): the thin singular value decomposition of A [m x n].
struct Svd {
  std::vector<double> values;  ///< descending, [r]
  Matrix left;                 ///< U [m x r], orthonormal columns
  Matrix right;                ///< V^T [r x n], orthonormal rows
};

/// Of the rows of two matrices of one shape: |A_k|^2, |B_k|^2 and <A_k, B_k>, [rows] each.
struct RowProducts {
  std::vector<double> left, right, cross;
};

enum class Transpose { no, yes };

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const DeviceInfo& info() const = 0;

  // --- memory. Throws MemoryError when it does not fit.
  /// Zeroed memory of at least `bytes` bytes (0 allowed), freed with its last owner.
  virtual std::shared_ptr<void> allocate(Index bytes) = 0;
  virtual void upload(void* to, const void* host, Index bytes) = 0;      ///< host memory may be reused at return
  virtual void download(void* host, const void* from, Index bytes) = 0;  ///< waits
  virtual void copy(void* to, const void* from, Index bytes) = 0;
  /// A copy as doubles, from any dtype, stride and memory space.
  virtual Matrix import(const MatrixView& source) = 0;
  /// As import, but shares the caller's memory where that already is what a Matrix is. Never written to.
  virtual Matrix borrow(const MatrixView& source) { return import(source); }

  // --- batches. Features and labels in host or device memory (device only for CUDA). Every label and every feature is
  // checked; a batch with a fault changes nothing. Shapes were checked by the caller. 0 rows are allowed.
  /// Updates the state by one batch. A class that had no sample takes its first row in stream order as its shift.
  /// A backend that works while the caller goes on finds faults later: it then leaves out the batch with the fault and
  /// all after it, and reports that fault from a later call or from pending_faults. From then on batches are taken
  /// again. A call that reports a fault has not taken its own batch.
  virtual BatchFaults add_batch(MomentState& state, const MatrixView& features, const LabelView& labels) = 0;
  /// The fault that was not reported yet, if there is one. Waits. From this call to the next batch the state's
  /// arrays may be read; counts always.
  virtual BatchFaults pending_faults(MomentState&) { return {}; }
  /// Counts decisions: centre decision argmin_k sum_j (h_j - m_kj)^2, classifier decision argmax_k (w_k . h + b_k),
  /// as direct double-precision evaluation of these formulas gives them, ties to the lowest class. Scores of lower
  /// precision may only decide rows whose margin exceeds a rigorous error bound.
  virtual BatchFaults decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) = 0;

  // --- dense algebra on matrices of this backend. Shapes are the caller's duty; empty matrices are allowed.
  /// out_k = a_k A_k + b_k B_k for every row k; a, b [rows]. B may be null (then b is not read). out may be A or B.
  virtual void combine_rows(const std::vector<double>& a, const Matrix& A, const std::vector<double>& b,
                            const Matrix& B, Matrix& out) = 0;
  /// out_i = A_{index_i}: picks rows (host indices).
  virtual Matrix select_rows(const Matrix& A, const std::vector<Index>& index) = 0;
  /// out_g = sum of the rows begin[g] .. begin[g+1] - 1 of A, in an order that depends on the groups' sizes only; begin
  /// [groups + 1], host.
  virtual Matrix sum_groups(const Matrix& A, const std::vector<Index>& begin) = 0;
  /// |A_g A_g^T|^2 (Frobenius) of the same groups of rows, [groups].
  virtual std::vector<double> group_gram_squares(const Matrix& A, const std::vector<Index>& begin) {
    std::vector<double> squares;
    for (std::size_t g = 0; g + 1 < begin.size(); ++g) {
      const Matrix products = gram(rows_of(A, begin[g], begin[g + 1] - begin[g]));
      squares.push_back(inner(products, products));
    }
    return squares;
  }
  /// A_k -= centre for every row; centre [cols].
  virtual void centre_rows(Matrix& A, const std::vector<double>& centre) = 0;
  /// sum_k w_k A_k, [cols]; w [rows].
  virtual std::vector<double> weighted_row_sum(const Matrix& A, const std::vector<double>& w) = 0;
  /// <A_k, B_k> for every row k, [rows].
  virtual std::vector<double> row_dots(const Matrix& A, const Matrix& B) = 0;
  /// The three at once.
  virtual RowProducts row_products(const Matrix& A, const Matrix& B) {
    return {row_dots(A, A), row_dots(B, B), row_dots(A, B)};
  }
  /// sum_ij A_ij B_ij.
  virtual double inner(const Matrix& A, const Matrix& B) = 0;
  /// I [n x n].
  virtual Matrix identity(Index n) {
    Matrix result = matrix(n, n);
    const double one = 1;
    constexpr auto kBytes = static_cast<Index>(sizeof one);
    if (n > 0) upload(result.data(), &one, kBytes);
    // Row by row it repeats after n + 1 entries: what is there is doubled.
    for (Index filled = n + 1; filled < result.size(); filled *= 2)
      copy(result.data() + filled, result.data(), std::min(filled, result.size() - filled) * kBytes);
    return result;
  }
  /// op(A) op(B).
  virtual Matrix product(const Matrix& A, Transpose transpose_a, const Matrix& B, Transpose transpose_b) = 0;
  /// Lower triangle of T += alpha A^T A; A [R x d], T [d x d].
  virtual void add_gram(double alpha, const Matrix& A, Matrix& T) = 0;
  /// Copies the lower triangle to the upper one.
  virtual void mirror_lower(Matrix& A) = 0;
  /// Symmetric eigenproblem; A [n x n], lower triangle read. Returns the eigenvalues in ascending order; row i of A
  /// becomes the unit eigenvector i. Throws Error(internal) when the solver fails.
  virtual std::vector<double> eigh(Matrix& A) = 0;
  /// The eigenvalues alone, ascending; A is used up. Throws like eigh.
  virtual std::vector<double> eigenvalues(Matrix& A) = 0;
  /// Thin singular value decomposition; A is kept. Not checked here, see host/decomposition.hpp. Throws Error(internal)
  /// when the solver fails, UsageError when the vendor's interface cannot take the size.
  virtual Svd svd(const Matrix& A) = 0;
  /// The singular values alone, descending, [min(m, n)]; A is kept. Throws like svd.
  virtual std::vector<double> singular_values(const Matrix& A) = 0;
  /// R [n x n] of A = Q R, upper triangular, A [m x n], m >= n; Q has orthonormal columns. A is kept.
  virtual Matrix triangular_factor(const Matrix& A) = 0;
  /// A = L L^T; A [n x n], lower triangle read, where L then stands; the upper one is left undefined. Returns an
  /// estimate of 1 / cond(A), right to a factor of n; 0 when A is not positive definite (A is used up then). inverse,
  /// where it is wanted, becomes L^-T [n x n], of no use where 0 is returned.
  virtual double cholesky(Matrix& A, Matrix* inverse = nullptr) = 0;
  /// Every row b of B becomes L^-1 b, or L^-T b; L as cholesky left it.
  virtual void solve_lower(const Matrix& L, Transpose transpose, Matrix& B) = 0;
  /// One tiled sweep; nothing of size R x R is stored. Distances below 1e-2 of the norms are recomputed from the rows
  /// (PairQuery::fast: PairSums::cosine_error).
  virtual PairSums pair_sums(const Matrix& A, const PairQuery& query) = 0;
  virtual ProductSums product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) = 0;

  // --- conveniences over the verbs above.
  /// A A^T or A^T A, the smaller, both triangles: they have one norm, and but for zeros the same eigenvalues.
  Matrix gram(const Matrix& A) {
    return A.rows <= A.cols ? product(A, Transpose::no, A, Transpose::yes)
                            : product(A, Transpose::yes, A, Transpose::no);
  }
  /// A v, [rows]; v [cols].
  std::vector<double> times(const Matrix& A, const std::vector<double>& v) {
    return to_host(product(A, Transpose::no, from_host(v, 1, A.cols), Transpose::yes));
  }
  /// |A|_F
  double norm(const Matrix& A) { return std::sqrt(inner(A, A)); }
  /// Rows first .. first + count - 1, in the same memory.
  static Matrix rows_of(const Matrix& A, Index first, Index count) {
    return {{A.memory, A.data() + first * A.cols}, count, A.cols};
  }
  /// out = a A + b B; out may be A or B.
  void combine(double a, const Matrix& A, double b, const Matrix& B, Matrix& out) {
    const auto rows = static_cast<std::size_t>(A.rows);
    combine_rows(std::vector<double>(rows, a), A, std::vector<double>(rows, b), B, out);
  }
  /// A = diag(a) A; a [rows].
  void scale_rows(const std::vector<double>& a, Matrix& A) { combine_rows(a, A, {}, {}, A); }
  /// diag(a) A; a [rows].
  Matrix scaled(const std::vector<double>& a, const Matrix& A) {
    Matrix result = matrix(A.rows, A.cols);
    combine_rows(a, A, {}, {}, result);
    return result;
  }
  /// What product_sums finds, in O(R d): the references have norm 1, so |P/|P| - E|^2 = 2 - 2 <P, E>/|P|, and <P, E>
  /// takes the trace and the sum of P alone. A difference of numbers of size 1: absolutely exact to some 1e-15, where
  /// the sum of the residuals themselves would be relatively exact. Both norms of the query have to be right.
  ProductSums product_residuals(const Matrix& A, const Matrix& B, const ProductQuery& query) {
    const std::vector<double> ones(static_cast<std::size_t>(A.rows), 1.0);
    double trace = 0, sum = 0;
    for (const double dot : row_dots(A, B)) trace += dot;
    const auto of_a = weighted_row_sum(A, ones), of_b = weighted_row_sum(B, ones);
    for (std::size_t j = 0; j < of_a.size(); ++j) sum += of_a[j] * of_b[j];
    return residuals_of(A.rows, trace, sum, query);
  }
  /// From the trace of P [rows x rows] and the sum of its entries.
  static ProductSums residuals_of(Index rows, double trace, double sum, const ProductQuery& query) {
    const auto r = static_cast<double>(rows);
    double offsets = 0;
    for (const double offset : query.row_offsets) offsets += offset;
    const auto residual = [](double inner, double norm) {
      const double square = 2 - 2 * inner / norm;
      return square < 0 ? 0 : square;  // a NaN stays one
    };
    ProductSums sums;
    sums.etf_residual = residual((trace - sum / r) / std::sqrt(r - 1), query.product_norm);
    if (query.frame_norm > 0) sums.frame_residual = residual((trace + offsets) / std::sqrt(r), query.frame_norm);
    return sums;
  }
  /// The residuals of PairSums in the same way, from the sum of the rows of A [cols]; the query's norms are the trace.
  static void take_residuals(const PairQuery& query, const std::vector<double>& row_sum, PairSums& sums) {
    double trace = 0, sum = 0;
    for (const double norm : query.norms) trace += norm * norm;
    for (const double value : row_sum) sum += value * value;
    ProductQuery product{query.gram_norm, query.offsets, query.frame_norm};
    for (double& offset : product.row_offsets) offset *= 2;  // on both sides
    const ProductSums found = residuals_of(static_cast<Index>(query.norms.size()), trace, sum, product);
    sums.etf_residual = found.etf_residual;
    sums.frame_residual = found.frame_residual;
  }
  Matrix matrix(Index rows, Index cols) { return array<double>(rows, cols); }
  IndexArray index_array(Index rows, Index cols) { return array<Index>(rows, cols); }
  template <class T>
  Array<T> array(Index rows, Index cols) {
    Index bytes = 0;
    if (__builtin_mul_overflow(rows, cols, &bytes) ||
        __builtin_mul_overflow(bytes, static_cast<Index>(sizeof(T)), &bytes))
      throw MemoryError(std::to_string(rows) + " x " + std::to_string(cols) + " numbers fit no memory");
    return {std::static_pointer_cast<T>(allocate(bytes)), rows, cols};
  }
  template <class T>
  Array<T> clone(const Array<T>& source) {
    Array<T> result{std::static_pointer_cast<T>(allocate(source.bytes())), source.rows, source.cols};
    copy(result.data(), source.data(), source.bytes());
    return result;
  }
  template <class T>
  std::vector<T> to_host(const Array<T>& source) {
    std::vector<T> result(static_cast<std::size_t>(source.size()));
    download(result.data(), source.data(), source.bytes());
    return result;
  }
  template <class T>
  void from_host(Array<T>& target, const std::vector<T>& values) {
    upload(target.data(), values.data(), target.bytes());
  }
  /// The values as a new array.
  template <class T>
  Array<T> from_host(const std::vector<T>& values, Index rows, Index cols) {
    Array<T> result = array<T>(rows, cols);
    from_host(result, values);
    return result;
  }
};

/// What the CPU backend would say of itself; opens nothing.
DeviceInfo cpu_device(int threads);
std::shared_ptr<Backend> open_cpu_backend(const ContextOptions& options);

/// Defined in cuda/; a library built without CUDA has a stub in host/ that throws DeviceError.
std::shared_ptr<Backend> open_cuda_backend(int device, const ContextOptions& options);

struct CudaDevices {
  struct LeftOut {
    int index;
    std::string reason;  ///< a sentence that names the device
  };
  std::vector<DeviceInfo> usable;
  std::vector<LeftOut> left_out;
  std::string none_because;  ///< of a machine without any; empty where one is, usable or not

  std::string unavailable_reason() const;  ///< why none can be used; empty when one can
  DeviceInfo at(int index) const;          ///< throws DeviceError, saying why, for one that cannot be used
};
CudaDevices cuda_devices();

}  // namespace ncollapse
