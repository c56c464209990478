// Memory and dense algebra on the CPU. Matrices are row-major; a row-major matrix is the column-major transpose, which
// is how LAPACK is called here (row-major lower triangle = column-major 'U'), so that nothing is ever transposed.
#include <cblas.h>
#include <lapacke.h>
#include <omp.h>

#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "host/cpu/cpu_backend.hpp"
#include "host/cpu/elements.hpp"
#include "host/cpu/parallel_blas.hpp"
#include "ncollapse/error.hpp"

extern "C" char* openblas_get_corename();

namespace ncollapse::cpu {

namespace {

constexpr Index kBlockRows = 64;  // rows a partial sum spans, whatever the number of threads

void check_lapack(int info, const std::string& what) {
  if (info == LAPACK_WORK_MEMORY_ERROR) throw MemoryError("out of memory: the workspace of " + what);
  if (info != 0) throw Error(ErrorKind::internal, what + " failed with info " + std::to_string(info));
}

std::string shape_of(const Matrix& A) { return std::to_string(A.rows) + " x " + std::to_string(A.cols); }

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "CPU";
}

NCOLLAPSE_VECTORISED double dot(const double* a, const double* b, Index n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

NCOLLAPSE_VECTORISED void add_scaled(double scale, const double* row, double* sum, Index n) {
  for (Index j = 0; j < n; ++j) sum[j] += scale * row[j];
}

}  // namespace

CpuBackend::CpuBackend(const ContextOptions& options) : info_(cpu_device(options.threads)) {}

std::shared_ptr<void> CpuBackend::allocate(Index bytes) {
  constexpr std::size_t kAlignment = 64;
  const std::size_t padded = (static_cast<std::size_t>(bytes) + kAlignment) / kAlignment * kAlignment;
  // calloc hands out zeroed pages without touching them; only the alignment is missing, so it is made here.
  void* base = std::calloc(padded + kAlignment, 1);
  if (base == nullptr)
    throw MemoryError("out of memory: " + std::to_string(bytes) + " bytes were wanted on the CPU",
                      "fewer statistics (means, traces) need less memory");
  void* aligned = base;
  std::size_t space = padded + kAlignment;
  std::align(kAlignment, padded, aligned, space);
  // Rows of many classes are visited in no order; with small pages each visit would miss the TLB. Only a wish.
  constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
  const auto first = (reinterpret_cast<std::uintptr_t>(aligned) + kHugePage - 1) / kHugePage * kHugePage,
             last = (reinterpret_cast<std::uintptr_t>(aligned) + padded) / kHugePage * kHugePage;
  if (last > first + 8 * kHugePage) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  return {aligned, [base](void*) { std::free(base); }};
}

void CpuBackend::upload(void* to, const void* host, Index bytes) { copy(to, host, bytes); }
void CpuBackend::download(void* host, const void* from, Index bytes) { copy(host, from, bytes); }
void CpuBackend::copy(void* to, const void* from, Index bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

Matrix CpuBackend::import(const MatrixView& source) {
  Matrix result = matrix(source.rows, source.cols);
  const Index stride = source.row_stride();
  with_elements(source, [&](const auto* data) {
    for (Index i = 0; i < source.rows; ++i)
      for (Index j = 0; j < source.cols; ++j) result.data()[i * source.cols + j] = to_double(data[i * stride + j]);
  });
  return result;
}

Matrix CpuBackend::borrow(const MatrixView& source) {
  if (source.dtype != Dtype::f64 || source.row_stride() != source.cols) return import(source);
  auto* data = const_cast<double*>(static_cast<const double*>(source.data));
  return {std::shared_ptr<double>(std::shared_ptr<void>(), data), source.rows, source.cols};
}

void CpuBackend::combine_rows(const std::vector<double>& a, const Matrix& A, const std::vector<double>& b,
                              const Matrix& B, Matrix& out) {
  const Index cols = A.cols;
#pragma omp parallel for num_threads(threads_for(A.size())) schedule(static)
  for (Index k = 0; k < A.rows; ++k) {
    const double* left = A.data() + k * cols;
    double* target = out.data() + k * cols;
    if (B) {
      const double* right = B.data() + k * cols;
      for (Index j = 0; j < cols; ++j) target[j] = a[k] * left[j] + b[k] * right[j];
    } else {
      for (Index j = 0; j < cols; ++j) target[j] = a[k] * left[j];
    }
  }
}

Matrix CpuBackend::select_rows(const Matrix& A, const std::vector<Index>& index) {
  Matrix result = matrix(static_cast<Index>(index.size()), A.cols);
  for (Index i = 0; i < result.rows; ++i) std::copy_n(A.data() + index[i] * A.cols, A.cols, result.data() + i * A.cols);
  return result;
}

Matrix CpuBackend::sum_groups(const Matrix& A, const std::vector<Index>& begin) {
  Matrix sums = matrix(static_cast<Index>(begin.size()) - 1, A.cols);
#pragma omp parallel for num_threads(threads_for(A.size())) schedule(dynamic)
  for (Index g = 0; g < sums.rows; ++g)
    for (Index i = begin[g]; i < begin[g + 1]; ++i)
      add_scaled(1.0, A.data() + i * A.cols, sums.data() + g * A.cols, A.cols);
  return sums;
}

std::vector<double> CpuBackend::group_gram_squares(const Matrix& A, const std::vector<Index>& begin) {
  constexpr Index kSmall = 256;  // members up to which a group is one thread's work
  const auto groups = static_cast<Index>(begin.size()) - 1;
  std::vector<double> squares(static_cast<std::size_t>(groups));
  const int cols = blas_int(A.cols, "columns");
  Index largest = 0;  // of the small ones
  for (Index g = 0; g < groups; ++g)
    if (const Index count = begin[g + 1] - begin[g]; count <= kSmall) largest = std::max(largest, count);
  const int team = threads_for(A.size());
  const Matrix grams = matrix(team, largest * largest);
  const BlasThreads guard(1);
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (Index g = 0; g < groups; ++g) {
    const Index count = begin[g + 1] - begin[g];
    if (count > kSmall) continue;
    double* gram = grams.data() + omp_get_thread_num() * grams.cols;
    cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, static_cast<int>(count), cols, 1.0,
                A.data() + begin[g] * A.cols, cols, 0.0, gram, static_cast<int>(count));
    for (Index i = 0; i < count; ++i) {
      const double* row = gram + i * count;
      squares[g] += 2 * dot(row, row, i) + row[i] * row[i];
    }
  }
  for (Index g = 0; g < groups; ++g)
    if (begin[g + 1] - begin[g] > kSmall) squares[g] = Backend::group_gram_squares(A, {begin[g], begin[g + 1]}).front();
  return squares;
}

void CpuBackend::centre_rows(Matrix& A, const std::vector<double>& centre) {
#pragma omp parallel for num_threads(threads_for(A.size())) schedule(static)
  for (Index k = 0; k < A.rows; ++k)
    for (Index j = 0; j < A.cols; ++j) A.data()[k * A.cols + j] -= centre[j];
}

std::vector<double> CpuBackend::weighted_row_sum(const Matrix& A, const std::vector<double>& w) {
  // Column strips, so that every strip is summed in row order by one thread.
  constexpr Index kStrip = 64;
  std::vector<double> sum(static_cast<std::size_t>(A.cols), 0.0);
  const Index strips = (A.cols + kStrip - 1) / kStrip;
#pragma omp parallel for num_threads(threads_for(A.size())) schedule(static)
  for (Index strip = 0; strip < strips; ++strip) {
    const Index begin = strip * kStrip, width = std::min(kStrip, A.cols - begin);
    for (Index k = 0; k < A.rows; ++k) add_scaled(w[k], A.data() + k * A.cols + begin, sum.data() + begin, width);
  }
  return sum;
}

std::vector<double> CpuBackend::row_dots(const Matrix& A, const Matrix& B) {
  std::vector<double> dots(static_cast<std::size_t>(A.rows));
#pragma omp parallel for num_threads(threads_for(A.size())) schedule(static)
  for (Index k = 0; k < A.rows; ++k) dots[k] = dot(A.data() + k * A.cols, B.data() + k * A.cols, A.cols);
  return dots;
}

double CpuBackend::inner(const Matrix& A, const Matrix& B) {
  const auto dots = row_dots(A, B);
  double sum = 0;
  for (const double value : dots) sum += value;
  return sum;
}

Matrix CpuBackend::product(const Matrix& A, Transpose transpose_a, const Matrix& B, Transpose transpose_b) {
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const Index rows = ta ? A.cols : A.rows, depth = ta ? A.rows : A.cols, cols = tb ? B.rows : B.cols;
  Matrix result = matrix(rows, cols);
  if (result.size() == 0 || depth == 0) return result;
  if (A.data() == B.data() && ta != tb) {  // a Gram matrix: half the work
    add_gram_lower(threads(), 1.0, {A.data(), A.cols, ta}, rows, depth, 0.0, result.data());
    mirror_lower(result);
    return result;
  }
  multiply(threads(), {A.data(), A.cols, ta}, {B.data(), B.cols, tb}, rows, cols, depth, result.data(), cols);
  return result;
}

void CpuBackend::add_gram(double alpha, const Matrix& A, Matrix& T) {
  if (A.size() > 0) add_gram_lower(threads(), alpha, {A.data(), A.cols, true}, A.cols, A.rows, 1.0, T.data());
}

void CpuBackend::mirror_lower(Matrix& A) {
  const Index n = A.rows;
  const Index blocks = (n + kBlockRows - 1) / kBlockRows;
#pragma omp parallel for num_threads(threads_for(A.size())) schedule(dynamic)
  for (Index block = 0; block < blocks; ++block)  // square blocks, so that both sides stay in the cache
    for (Index other = 0; other <= block; ++other)
      for (Index i = block * kBlockRows; i < std::min((block + 1) * kBlockRows, n); ++i)
        for (Index j = other * kBlockRows; j < std::min((other + 1) * kBlockRows, i); ++j)
          A.data()[j * n + i] = A.data()[i * n + j];
}

std::vector<double> CpuBackend::eigh(Matrix& A) { return symmetric_eigen('V', A); }
std::vector<double> CpuBackend::eigenvalues(Matrix& A) { return symmetric_eigen('N', A); }

std::vector<double> CpuBackend::symmetric_eigen(char job, Matrix& A) {
  const Index n = A.rows;
  std::vector<double> values(static_cast<std::size_t>(n));
  if (n == 0) return values;
  constexpr Index kMaxOrder = 32766;  // dsyevd's workspace, 2 n^2 + 6 n + 1 numbers, is counted in 32 bits
  if (job == 'V' && n > kMaxOrder)
    throw UsageError("an eigenproblem of order " + std::to_string(n) + " is too large, at most " +
                         std::to_string(kMaxOrder) + " can be solved",
                     "accumulate traces instead of the full scatter");
  const BlasThreads guard(threads());
  const int order = blas_int(n, "order");
  check_lapack(LAPACKE_dsyevd(LAPACK_COL_MAJOR, job, 'U', order, A.data(), order, values.data()),
               "the symmetric eigensolver (dsyevd) of order " + std::to_string(n));
  return values;
}

Svd CpuBackend::svd(const Matrix& A) {
  // Column-major the memory of A is A^T = V diag(s) U^T: what LAPACK calls U is our V^T, and its V^T is our U.
  const Index r = std::min(A.rows, A.cols);
  Svd result{std::vector<double>(static_cast<std::size_t>(r)), matrix(A.rows, r), matrix(r, A.cols)};
  if (r == 0) return result;
  constexpr Index kMaxOrder = 23000;  // dgesdd's workspace, 4 r^2 + 7 r + O(m + n) numbers, is counted in 32 bits
  if (r > kMaxOrder)
    throw UsageError("a singular value decomposition of a " + shape_of(A) + " matrix is too large, at most " +
                         std::to_string(kMaxOrder) + " singular values can be found on the CPU",
                     "a GPU has no such limit");
  const int rows = blas_int(A.rows, "rows"), cols = blas_int(A.cols, "columns");
  const Matrix used_up = clone(A);
  const BlasThreads guard(threads());
  check_lapack(LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', cols, rows, used_up.data(), cols, result.values.data(),
                              result.right.data(), cols, result.left.data(), static_cast<int>(r)),
               "the singular value decomposition (dgesdd) of " + shape_of(A) + " numbers");
  return result;
}

std::vector<double> CpuBackend::singular_values(const Matrix& A) {
  std::vector<double> values(static_cast<std::size_t>(std::min(A.rows, A.cols)));
  if (values.empty()) return values;
  const int rows = blas_int(A.rows, "rows"), cols = blas_int(A.cols, "columns");
  const Matrix used_up = clone(A);
  const BlasThreads guard(threads());
  check_lapack(
      LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'N', cols, rows, used_up.data(), cols, values.data(), nullptr, cols, nullptr, 1),
      "the singular values (dgesdd) of " + shape_of(A) + " numbers");
  return values;
}

Matrix CpuBackend::triangular_factor(const Matrix& A) {
  // By columns: dgelqf on the memory as it lies takes three times as long.
  const Index m = A.rows, n = A.cols;
  Matrix columns = matrix(n, m), R = matrix(n, n);
  if (n == 0) return R;
#pragma omp parallel for num_threads(threads_for(A.size())) schedule(static)
  for (Index first = 0; first < n; first += kBlockRows)
    for (Index row = 0; row < m; row += kBlockRows)
      for (Index j = first; j < std::min(first + kBlockRows, n); ++j)
        for (Index i = row; i < std::min(row + kBlockRows, m); ++i) columns.data()[j * m + i] = A.data()[i * n + j];
  std::vector<double> reflectors(static_cast<std::size_t>(n));
  const int rows = blas_int(m, "rows"), cols = blas_int(n, "columns");
  {
    const BlasThreads guard(threads());
    check_lapack(LAPACKE_dgeqrf(LAPACK_COL_MAJOR, rows, cols, columns.data(), rows, reflectors.data()),
                 "the QR factorisation (dgeqrf) of " + shape_of(A) + " numbers");
  }
  for (Index j = 0; j < n; ++j)
    for (Index i = 0; i <= j; ++i) R.data()[i * n + j] = columns.data()[j * m + i];
  return R;
}

double CpuBackend::cholesky(Matrix& A, Matrix* inverse) {
  // By panels, on OpenMP's threads: BLAS's own would fight the ones that spin after the last parallel loop.
  constexpr Index kPanel = 256;
  const Index n = A.rows;
  if (n == 0) return 1;
  const int stride = blas_int(n, "order");
  const BlasThreads guard(1);
  const double norm = LAPACKE_dlansy(LAPACK_COL_MAJOR, '1', 'U', stride, A.data(), stride);
  if (norm == LAPACK_WORK_MEMORY_ERROR) check_lapack(LAPACK_WORK_MEMORY_ERROR, "a matrix norm (dlansy)");
  for (Index k = 0; k < n; k += kPanel) {
    const Index width = std::min(kPanel, n - k), below = k + width, blocks = (n - below + kPanel - 1) / kPanel;
    double* pivot = A.data() + k * n + k;
    if (LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'U', static_cast<int>(width), pivot, stride) != 0) return 0;
    const auto rows_of = [&](Index block) { return static_cast<int>(std::min(kPanel, n - below - block * kPanel)); };
    const auto panel_at = [&](Index block) { return A.data() + (below + block * kPanel) * n + k; };
#pragma omp parallel num_threads(threads_for((n - below) * width))
    {
#pragma omp for schedule(dynamic)
      for (Index i = 0; i < blocks; ++i)
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, rows_of(i),
                    static_cast<int>(width), 1.0, pivot, stride, panel_at(i), stride);
#pragma omp for schedule(dynamic)
      for (Index tile = 0; tile < blocks * blocks; ++tile) {
        const Index i = tile / blocks, j = tile % blocks;
        if (j <= i)
          cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows_of(i), rows_of(j), static_cast<int>(width), -1.0,
                      panel_at(i), stride, panel_at(j), stride, 1.0, panel_at(i) + width + j * kPanel, stride);
      }
    }
  }
  double reciprocal_condition = 0;
  if (LAPACKE_dpocon(LAPACK_COL_MAJOR, 'U', stride, A.data(), stride, norm, &reciprocal_condition) ==
      LAPACK_WORK_MEMORY_ERROR)
    check_lapack(LAPACK_WORK_MEMORY_ERROR, "the estimate of a condition number (dpocon)");
  if (inverse) {
    *inverse = identity(n);
    solve_lower(A, Transpose::no, *inverse);
  }
  return reciprocal_condition;
}

void CpuBackend::solve_lower(const Matrix& L, Transpose transpose, Matrix& B) {
  constexpr Index kSolvedRows = 128;
  const Index blocks = (B.rows + kSolvedRows - 1) / kSolvedRows;
  const int order = blas_int(L.rows, "order");
  const auto flag = transpose == Transpose::yes ? CblasNoTrans : CblasTrans;
  const BlasThreads guard(1);
#pragma omp parallel for num_threads(threads_for(B.size())) schedule(dynamic)
  for (Index block = 0; block < blocks; ++block) {
    const Index first = block * kSolvedRows, count = std::min(kSolvedRows, B.rows - first);
    cblas_dtrsm(CblasColMajor, CblasLeft, CblasUpper, flag, CblasNonUnit, order, static_cast<int>(count), 1.0, L.data(),
                order, B.data() + first * L.rows, order);
  }
}

}  // namespace ncollapse::cpu

namespace ncollapse {

DeviceInfo cpu_device(int threads) {
  DeviceInfo info;
  info.device = {DeviceType::cpu, 0};
  info.name = cpu::processor_name();
  info.memory_bytes = static_cast<Index>(sysconf(_SC_PHYS_PAGES)) * static_cast<Index>(sysconf(_SC_PAGE_SIZE));
  info.capability = std::string("OpenBLAS ") + openblas_get_corename();
  info.threads = threads > 0 ? threads : omp_get_max_threads();
  return info;
}

std::string better_blas_kernels() {
#if defined(__x86_64__)
  if (std::getenv("OPENBLAS_CORETYPE") != nullptr || std::string(openblas_get_corename()) != "Prescott") return {};
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return "SkylakeX";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return {};
}

std::shared_ptr<Backend> open_cpu_backend(const ContextOptions& options) {
  return std::make_shared<cpu::CpuBackend>(options);
}

}  // namespace ncollapse
