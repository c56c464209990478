// The CUDA side of the seam: every verb of host/backend.hpp, on one device, in the order of one stream.
#pragma once

#include <optional>

#include "cuda/batch.hpp"
#include "host/backend.hpp"

namespace ncollapse::cuda {

struct FewBatch;

class CudaBackend final : public Backend {
 public:
  /// Throws DeviceError when the device does not exist or this build has no code for it.
  CudaBackend(int device, const ContextOptions& options, const Limits& limits = {});

  const DeviceInfo& info() const override { return info_; }

  std::shared_ptr<void> allocate(Index bytes) override;
  void upload(void* to, const void* host, Index bytes) override;
  void download(void* host, const void* from, Index bytes) override;
  void copy(void* to, const void* from, Index bytes) override;
  Matrix import(const MatrixView& source) override;

  BatchFaults add_batch(MomentState& state, const MatrixView& features, const LabelView& labels) override;
  BatchFaults pending_faults(MomentState& state) override;
  BatchFaults decide_batch(DecisionState& state, const MatrixView& features, const LabelView& labels) override;

  void combine_rows(const std::vector<double>& a, const Matrix& A, const std::vector<double>& b, const Matrix& B,
                    Matrix& out) override;
  Matrix select_rows(const Matrix& A, const std::vector<Index>& index) override;
  Matrix sum_groups(const Matrix& A, const std::vector<Index>& begin) override;
  std::vector<double> group_gram_squares(const Matrix& A, const std::vector<Index>& begin) override;
  void centre_rows(Matrix& A, const std::vector<double>& centre) override;
  std::vector<double> weighted_row_sum(const Matrix& A, const std::vector<double>& w) override;
  std::vector<double> row_dots(const Matrix& A, const Matrix& B) override;
  RowProducts row_products(const Matrix& A, const Matrix& B) override;
  double inner(const Matrix& A, const Matrix& B) override;
  Matrix identity(Index n) override;
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
  struct Workspace;
  struct Prepared;
  Workspace& workspace(MomentState& state);
  void add_block(MomentState& state, const Batch& batch, Index first_row, bool watch, Workspace& space);
  void add_few(MomentState& state, Batch& batch, const FewBatch& few, Workspace& space);
  Prepared& prepared(DecisionState& state);

  std::shared_ptr<Queue> queue_;  ///< shared with every array, so that memory may outlive the backend
  DeviceInfo info_;
  Limits limits_;
  std::optional<Staging> staging_;  ///< of host batches
};

}  // namespace ncollapse::cuda
