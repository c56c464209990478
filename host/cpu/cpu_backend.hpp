// The CPU backend: OpenMP over rows, OpenBLAS for products, LAPACK for factorisations.
// Work is cut by sizes, never by the number of threads, and partial results are added in a fixed order.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "host/backend.hpp"
#include "host/cpu/parallel_blas.hpp"
#include "host/scratch.hpp"

namespace ncollapse::cpu {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const ContextOptions& options);

  const DeviceInfo& info() const override { return info_; }
  std::shared_ptr<void> allocate(Index bytes) override;
  void upload(void* to, const void* host, Index bytes) override;
  void download(void* host, const void* from, Index bytes) override;
  void copy(void* to, const void* from, Index bytes) override;
  Matrix import(const MatrixView& source) override;
  Matrix borrow(const MatrixView& source) override;

  BatchFaults add_batch(MomentState& state, const MatrixView& features, const LabelView& labels) override;
  BatchFaults decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) override;

  void combine_rows(const std::vector<double>& a, const Matrix& A, const std::vector<double>& b, const Matrix& B,
                    Matrix& out) override;
  Matrix select_rows(const Matrix& A, const std::vector<Index>& index) override;
  Matrix sum_groups(const Matrix& A, const std::vector<Index>& begin) override;
  std::vector<double> group_gram_squares(const Matrix& A, const std::vector<Index>& begin) override;
  void centre_rows(Matrix& A, const std::vector<double>& centre) override;
  std::vector<double> weighted_row_sum(const Matrix& A, const std::vector<double>& w) override;
  std::vector<double> row_dots(const Matrix& A, const Matrix& B) override;
  double inner(const Matrix& A, const Matrix& B) override;
  Matrix product(const Matrix& A, Transpose transpose_a, const Matrix& B, Transpose transpose_b) override;
  void add_gram(double alpha, const Matrix& A, Matrix& T) override;
  void mirror_lower(Matrix& A) override;
  std::vector<double> eigh(Matrix& A) override;
  std::vector<double> eigenvalues(Matrix& A) override;
  Svd svd(const Matrix& A) override;
  std::vector<double> singular_values(const Matrix& A) override;
  Matrix triangular_factor(const Matrix& A) override;
  double cholesky(Matrix& A, Matrix* inverse) override;
  void solve_lower(const Matrix& L, Transpose transpose, Matrix& B) override;
  PairSums pair_sums(const Matrix& A, const PairQuery& query) override;
  ProductSums product_sums(const Matrix& A, const Matrix& B, const ProductQuery& query) override;

 private:
  std::vector<double> symmetric_eigen(char job, Matrix& A);

  /// order [rows]: row numbers in stable label order; sorted [rows]: their labels.
  void sort_by_label(const Index* labels, Index rows, Index classes, Index* order, Index* sorted);
  /// Of the rows as sort_by_label left them. Whether all squares of centred features are finite.
  template <class T>
  bool add_rows(MomentState& state, const T* data, Index stride, Index rows);
  void keep(const MomentState& state);
  void bring_back(MomentState& state);
  /// Decides the rows of a batch whose labels are in labels_; false where some may hold NaN or infinite values.
  template <class T>
  bool decide_rows(DecisionState& state, const T* data, Index stride, Index rows);
  void count_decisions(DecisionState& state, Index rows);

  int threads() const { return info_.threads; }
  /// Threads worth waking for `work` elements: waking them costs more than some ten thousand additions.
  int threads_for(Index work) const { return team_of(work < kParallelWork ? 1 : threads()); }
  static constexpr Index kParallelWork = Index{1} << 16;

  DeviceInfo info_;
  std::mutex turn_;  ///< of verbs that use what follows, several threads may call them
  Scratch<Index> labels_, order_, sorted_, offsets_, kept_counts_;
  std::vector<Index> touched_;  ///< classes of the batch
  Scratch<double> centred_, carries_, accumulators_, columns_, scales_, kept_sums_;
  Scratch<float> single_, tiles_;
  Scratch<Index> decisions_;
};

}  // namespace ncollapse::cpu
