#include "host/cpu/parallel_blas.hpp"

#include <cblas.h>
#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <string>

#include "ncollapse/error.hpp"

extern "C" void openblas_set_num_threads(int threads);
extern "C" int openblas_get_num_threads();

namespace ncollapse::cpu {

namespace {

constexpr Index kParallelFlops = Index{1} << 20;  // below that, waking threads costs more than the product

const double* at(const Operand& A, Index row, Index col) {
  return A.transposed ? A.data + col * A.stride + row : A.data + row * A.stride + col;
}

CBLAS_TRANSPOSE flag(bool transposed) { return transposed ? CblasTrans : CblasNoTrans; }

void tile_product(double alpha, const Operand& A, const Operand& B, Index i, Index j, Index height, Index width,
                  Index depth, double beta, double* C, Index stride) {
  cblas_dgemm(CblasRowMajor, flag(A.transposed), flag(B.transposed), static_cast<int>(height), static_cast<int>(width),
              static_cast<int>(depth), alpha, at(A, i, 0), static_cast<int>(A.stride), at(B, 0, j),
              static_cast<int>(B.stride), beta, C + i * stride + j, static_cast<int>(stride));
}

}  // namespace

// The side of square tiles over `size`: as large as lets every thread have one (a triangle of c x c tiles is c^2/2 of
// them), since BLAS spends on copying its operands what a larger tile saves; above kLargestTile that no longer counts,
// and more tiles share the work more evenly.
Index tile_of(Index size, int threads) {
  constexpr Index kLargestTile = 512, kGranule = 16;
  const auto count = static_cast<Index>(std::ceil(std::sqrt(2.0 * threads)));
  const Index side = ((size + count - 1) / count + kGranule - 1) / kGranule * kGranule;
  return std::clamp(side, kGranule, kLargestTile);
}

int blas_int(Index size, const char* what) {
  if (size < 0 || size > std::numeric_limits<int>::max())
    throw UsageError(std::string(what) + " = " + std::to_string(size) + " does not fit the BLAS interface");
  return static_cast<int>(size);
}

void multiply(int threads, const Operand& A, const Operand& B, Index rows, Index cols, Index depth, double* C,
              Index stride) {
  for (const Index size : {A.stride, B.stride, stride, depth}) blas_int(size, "a matrix's side");
  const Index high = tile_of(rows, threads), wide = 2 * tile_of(cols, threads);
  const Index down = (rows + high - 1) / high, across = (cols + wide - 1) / wide;
  const int team = team_of(rows * cols * depth < kParallelFlops ? 1 : threads);
  const BlasThreads guard(1);
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (Index tile = 0; tile < down * across; ++tile) {
    const Index i = tile / across * high, j = tile % across * wide;
    tile_product(1.0, A, B, i, j, std::min(high, rows - i), std::min(wide, cols - j), depth, 0.0, C, stride);
  }
}

namespace {

// Calls body(row, column, height, width) for the tiles of a lower triangle [n x n], whose entries take `depth` terms.
template <class Body>
void for_lower_tiles(int threads, Index n, Index depth, const Body& body) {
  const Index side = tile_of(n, threads), count = (n + side - 1) / side;
  const int team = team_of(n * n * depth < kParallelFlops ? 1 : threads);
  const BlasThreads guard(1);
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (Index tile = 0; tile < count * count; ++tile) {
    const Index i = tile / count * side, j = tile % count * side;
    if (j <= i) body(i, j, std::min(side, n - i), std::min(side, n - j));
  }
}

}  // namespace

void add_gram_lower(int threads, double alpha, const Operand& A, Index n, Index depth, double beta, double* C) {
  for (const Index size : {A.stride, n, depth}) blas_int(size, "a matrix's side");
  const Operand B{A.data, A.stride, !A.transposed};
  for_lower_tiles(threads, n, depth, [&](Index i, Index j, Index height, Index width) {
    if (i == j)
      cblas_dsyrk(CblasRowMajor, CblasLower, flag(A.transposed), static_cast<int>(height), static_cast<int>(depth),
                  alpha, at(A, i, 0), static_cast<int>(A.stride), beta, C + i * n + i, static_cast<int>(n));
    else
      tile_product(alpha, A, B, i, j, height, width, depth, beta, C, n);
  });
}

void add_single_gram_lower(int threads, const float* A, Index n, Index depth, const double* scale, float* tiles,
                           double* C) {
  const int stride = blas_int(n, "a matrix's side"), terms = blas_int(depth, "a matrix's side");
  const Index side = tile_of(n, threads);
  for_lower_tiles(threads, n, depth, [&](Index i, Index j, Index height, Index width) {
    float* product = tiles + omp_get_thread_num() * side * side;
    if (i == j)
      cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, static_cast<int>(height), terms, 1.0f, A + i, stride, 0.0f,
                  product, static_cast<int>(width));
    else
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<int>(height), static_cast<int>(width), terms,
                  1.0f, A + i, stride, A + j, stride, 0.0f, product, static_cast<int>(width));
    for (Index r = 0; r < height; ++r) {
      double* row = C + (i + r) * n + j;
      const Index columns = i == j ? r : width;
      for (Index c = 0; c < columns; ++c)
        row[c] += static_cast<double>(product[r * width + c]) * (scale[i + r] * scale[j + c]);
    }
  });
}

namespace {

// BLAS has one number of threads for the whole process. Never destroyed: a program may compute while it ends.
struct Shared {
  std::mutex door, mutex;
  std::condition_variable left;
  int holders = 0, threads = 0;
  int before = 0;  // what the first holder found and the last one restores
};
Shared* blas = nullptr;
thread_local int depth = 0;  // a scope inside another one keeps its number

std::atomic<bool> team_used = false, team_lost = false;

// In a child nobody holds anything, and nobody leaves: other threads of its parent were not copied.
void forked() {
  blas = new Shared;
  depth = 0;
  team_lost = team_lost || team_used;
}

void watch_forks() {
  static const int status = [] {
    blas = new Shared;
    return pthread_atfork(nullptr, nullptr, forked);
  }();
  if (status != 0) throw MemoryError("out of memory: a handler of forks was wanted");
}

}  // namespace

int team_of(int threads) {
  if (threads == 1) return 1;
  watch_forks();
  if (team_lost)
    throw DeviceError("this process was forked from one that had computed on several threads, and has none of them",
                      "fork before anything is computed, or open the context with threads = 1");
  team_used = true;
  return threads;
}

BlasThreads::BlasThreads(int threads) {
  watch_forks();
  if (depth++ > 0) return;
  const std::lock_guard door(blas->door);  // who waits for its number in here is not overtaken
  std::unique_lock lock(blas->mutex);
  blas->left.wait(lock, [&] { return blas->holders == 0 || blas->threads == threads; });
  if (blas->holders++ > 0) return;
  blas->before = openblas_get_num_threads();
  blas->threads = threads;
  openblas_set_num_threads(threads);
}

BlasThreads::~BlasThreads() {
  if (--depth > 0) return;
  const std::lock_guard lock(blas->mutex);
  if (--blas->holders > 0) return;
  openblas_set_num_threads(blas->before);
  blas->left.notify_one();
}

}  // namespace ncollapse::cpu
