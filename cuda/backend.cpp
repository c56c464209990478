// Opening a device, its memory, and the small verbs on matrices. K-sized results come back to the host here, so these
// verbs wait where they return numbers.
#include "cuda/backend.hpp"

#include <string>

#include "cuda/dense.hpp"
#include "cuda/rows.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::cuda {

CudaBackend::CudaBackend(int device, const ContextOptions& options, const Limits& limits)
    : info_(cuda_devices().at(device)), limits_(limits) {
  const DeviceGuard on(device);
  queue_ = std::make_shared<Queue>(device, static_cast<cudaStream_t>(options.cuda_stream));
  staging_.emplace(*queue_, limits_.piece_bytes, options.threads);
  launch_identity(queue_->stream(), Buffer<double>(*queue_, 1).get(), 1);  // fails here where there is no code for it
  queue_->wait();
}

std::shared_ptr<void> CudaBackend::allocate(Index bytes) {
  const Turn turn(*queue_);
  // The deleter holds the queue. Its memory is freed in stream order: kernels queued before may still use it.
  std::shared_ptr<void> memory(queue_->allocate(bytes), [queue = queue_](void* raw) { queue->release(raw); });
  if (bytes > 0) check(cudaMemsetAsync(memory.get(), 0, static_cast<std::size_t>(bytes), queue_->stream()));
  return memory;
}

void CudaBackend::upload(void* to, const void* host, Index bytes) {
  const Turn turn(*queue_);
  queue_->upload(to, host, bytes);
}

void CudaBackend::download(void* host, const void* from, Index bytes) {
  const Turn turn(*queue_);
  queue_->download(host, from, bytes);
}

void CudaBackend::copy(void* to, const void* from, Index bytes) {
  const Turn turn(*queue_);
  queue_->copy(to, from, bytes);
}

Matrix CudaBackend::import(const MatrixView& source) {
  const Turn turn(*queue_);
  Matrix result = matrix(source.rows, source.cols);
  if (result.size() == 0) return result;
  if (source.space == MemorySpace::device) {
    require_device_memory(source.data, "the values");
    launch_convert(queue_->stream(), {source.data, source.dtype, source.rows, source.cols, source.row_stride()},
                   result.data());
    return result;
  }
  const Index row_bytes = source.cols * size_of(source.dtype), block = limits_.rows_per_block(row_bytes, source.rows);
  const Buffer<unsigned char> stage(*queue_, block * row_bytes);
  for (Index first = 0; first < source.rows; first += block) {
    const Index rows = std::min(block, source.rows - first);
    upload_rows(*queue_, stage.get(), source, first, rows);
    launch_convert(queue_->stream(), {stage.get(), source.dtype, rows, source.cols, source.cols},
                   result.data() + first * source.cols);
  }
  return result;
}

void CudaBackend::combine_rows(const std::vector<double>& a, const Matrix& A, const std::vector<double>& b,
                               const Matrix& B, Matrix& out) {
  if (A.size() == 0) return;
  const Turn turn(*queue_);
  std::vector<double> factors(a);
  if (B) factors.insert(factors.end(), b.begin(), b.end());
  const Buffer<double> values(*queue_, factors);
  launch_combine_rows(queue_->stream(), values.get(), A.data(), values.get() + A.rows, B.data(), A.rows, A.cols,
                      out.data());
}

Matrix CudaBackend::select_rows(const Matrix& A, const std::vector<Index>& index) {
  const Turn turn(*queue_);
  Matrix result = matrix(static_cast<Index>(index.size()), A.cols);
  const Buffer<Index> rows(*queue_, index);
  launch_select_rows(queue_->stream(), A.data(), rows.get(), result.rows, result.cols, result.data());
  return result;
}

Matrix CudaBackend::sum_groups(const Matrix& A, const std::vector<Index>& begin) {
  const Turn turn(*queue_);
  Matrix sums = matrix(static_cast<Index>(begin.size()) - 1, A.cols);
  // A thread has a column of a group: long groups are cut into parts, whose sums are added up as groups of rows are.
  constexpr Index kPart = 256;
  std::vector<Index> part_begin, first_part;
  for (Index g = 0; g < sums.rows; ++g) {
    first_part.push_back(static_cast<Index>(part_begin.size()));
    for (Index row = begin[g]; row < begin[g + 1]; row += kPart) part_begin.push_back(row);
  }
  const auto parts = static_cast<Index>(part_begin.size());
  first_part.push_back(parts);
  part_begin.push_back(begin.back());
  const Buffer<Index> starts(*queue_, part_begin), of_groups(*queue_, first_part);
  const Buffer<double> partial(*queue_, parts * A.cols);
  launch_sum_groups(queue_->stream(), A.data(), starts.get(), parts, A.cols, partial.get());
  launch_sum_groups(queue_->stream(), partial.get(), of_groups.get(), sums.rows, A.cols, sums.data());
  return sums;
}

std::vector<double> CudaBackend::group_gram_squares(const Matrix& A, const std::vector<Index>& begin) {
  const Turn turn(*queue_);
  const Index groups = static_cast<Index>(begin.size()) - 1;
  std::vector<double> squares(static_cast<std::size_t>(groups));
  if (groups == 0) return squares;
  const Buffer<Index> starts(*queue_, begin);
  const Buffer<double> parts(*queue_, groups * kGroupParts);
  launch_group_grams(queue_->stream(), A.data(), starts.get(), groups, A.cols, parts.get());
  const auto found = parts.to_host();
  for (Index g = 0; g < groups; ++g) {
    for (Index part = 0; part < kGroupParts; ++part) squares[g] += found[g * kGroupParts + part];
    if (begin[g + 1] - begin[g] > kMostGroupRows)
      squares[g] = Backend::group_gram_squares(A, {begin[g], begin[g + 1]}).front();
  }
  return squares;
}

void CudaBackend::centre_rows(Matrix& A, const std::vector<double>& centre) {
  if (A.size() == 0) return;
  const Turn turn(*queue_);
  const Buffer<double> values(*queue_, centre);
  launch_centre_rows(queue_->stream(), A.data(), values.get(), A.rows, A.cols);
}

std::vector<double> CudaBackend::weighted_row_sum(const Matrix& A, const std::vector<double>& w) {
  if (A.size() == 0) return std::vector<double>(static_cast<std::size_t>(A.cols), 0.0);
  const Turn turn(*queue_);
  const Buffer<double> weights(*queue_, w), sum(*queue_, A.cols);
  const Buffer<double> partial(*queue_, row_chunks(A.rows) * A.cols);
  launch_weighted_row_sum(queue_->stream(), A.data(), weights.get(), A.rows, A.cols, partial.get(), sum.get());
  return sum.to_host();
}

std::vector<double> CudaBackend::row_dots(const Matrix& A, const Matrix& B) {
  const Turn turn(*queue_);
  const Buffer<double> dots(*queue_, A.rows);
  launch_row_dots(queue_->stream(), A.data(), B.data(), A.rows, A.cols, dots.get());
  return dots.to_host();
}

RowProducts CudaBackend::row_products(const Matrix& A, const Matrix& B) {
  const Turn turn(*queue_);
  const Buffer<double> products(*queue_, 3 * A.rows);
  launch_row_products(queue_->stream(), A.data(), B.data(), A.rows, A.cols, products.get());
  const std::vector<double> found = products.to_host();
  const auto part = [&](Index number) {
    return std::vector<double>(found.begin() + number * A.rows, found.begin() + (number + 1) * A.rows);
  };
  return {part(0), part(1), part(2)};
}

double CudaBackend::inner(const Matrix& A, const Matrix& B) {
  const Turn turn(*queue_);
  return cuda::inner(*queue_, A.data(), B.data(), A.size()).sum();
}

Matrix CudaBackend::identity(Index n) {
  const Turn turn(*queue_);
  Matrix result = matrix(n, n);
  launch_identity(queue_->stream(), result.data(), n);
  return result;
}

Matrix CudaBackend::product(const Matrix& A, Transpose transpose_a, const Matrix& B, Transpose transpose_b) {
  const Turn turn(*queue_);
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const Index m = ta ? A.cols : A.rows, k = ta ? A.rows : A.cols, n = tb ? B.rows : B.cols;
  Matrix result = matrix(m, n);
  if (k > 0) gemm(*queue_, transpose_a, transpose_b, m, n, k, A.data(), A.cols, B.data(), B.cols, result.data(), n);
  return result;
}

void CudaBackend::add_gram(double alpha, const Matrix& A, Matrix& T) {
  const Turn turn(*queue_);
  cuda::add_gram(*queue_, alpha, A.data(), A.cols, A.rows, A.cols, T.data());
}

void CudaBackend::mirror_lower(Matrix& A) {
  const Turn turn(*queue_);
  launch_mirror_lower(queue_->stream(), A.data(), A.rows);
}

}  // namespace ncollapse::cuda
