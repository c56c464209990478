#include "cuda/device.hpp"
#include "cuda/scatter.hpp"

namespace ncollapse::cuda {
namespace {

constexpr int kLargestExponent = 1000;         // so that every power of two below is a normal number, and its inverse
constexpr int kMostBelow = 4, kMostAbove = 5;  // a chunk's own exponents, of those that were expected

/// Of a column with this sum of squares.
__device__ int exponent_of(double squares, double rows) {
  const double rms = sqrt(squares / rows);
  const int exponent = rms > 0 && rms < HUGE_VAL ? ilogb(rms) : 0;
  return max(-kLargestExponent, min(exponent, kLargestExponent));
}

/// A block takes kBlock columns, and counts all samples.
__global__ void expect_exponents(const double* T, const Index* counts, Index classes, Index dim, int* expected) {
  double samples = 0;
  NCOLLAPSE_UNROLLED_BY_8
  for (Index k = threadIdx.x; k < classes; k += kBlock) samples += static_cast<double>(counts[k]);
  samples = block_sum(samples, shared_memory<double>());
  const Index col = thread_id();
  if (col < dim) expected[col] = samples > 0 ? exponent_of(T[col * dim + col], samples) : kUnknownExponent;
}

/// A block takes kWarp columns; its warps share the runs, then the shares are added in order.
__global__ void fold_columns(const double* column_squares, Index runs, Index dim, Index rows, double* squares,
                             int* exponents) {
  double* shared = shared_memory<double>();
  const Index col = static_cast<Index>(blockIdx.x) * kWarp + lane_id();
  double sum = 0;
  if (col < dim) {
    const Index share = warp_in_block();
    for (Index run = share * runs / kWarps; run < (share + 1) * runs / kWarps; ++run)
      sum += column_squares[run * dim + col];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (warp_in_block() != 0 || col >= dim) return;
  double total = 0;
  for (int share = 0; share < kWarps; ++share) total += shared[share * kWarp + lane_id()];
  squares[col] = total;
  exponents[col] = exponent_of(total, static_cast<double>(rows));
}

/// One block.
__global__ void choose_exponents(const double* squares, Index dim, const BatchRecord* record, int* exponents,
                                 int* expected, int* misfit) {
  const bool shut = record->shut != 0, unknown = expected[0] == kUnknownExponent;
  double misfits = shut || unknown ? 1 : 0;
  for (Index col = threadIdx.x; col < dim; col += kBlock) {
    const int ahead = exponents[col] - expected[col];
    if (squares[col] != 0 && (ahead < -kMostBelow || ahead > kMostAbove)) misfits += 1;
  }
  misfits = block_sum(misfits, shared_memory<double>());  // all have read expected[0]
  if (threadIdx.x == 0) *misfit = misfits > 0 ? 1 : 0;
  for (Index col = threadIdx.x; col < dim && !shut; col += kBlock) {
    if (misfits == 0)
      exponents[col] = expected[col];
    else if (unknown || squares[col] != 0)
      expected[col] = exponents[col];
  }
}

template <class P>
__global__ void promote(const P* partial, Index slices, Index dim, Index padded, const int* exponents,
                        const double* squares, const BatchRecord* record, double* T) {
  if (record->shut) return;
  for (Index at = thread_id(); at < dim * dim; at += thread_count()) {
    const Index i = at / dim, j = at % dim;
    if (j > i) continue;
    if (squares && i == j) {
      T[at] += squares[i];
      continue;
    }
    double sum = 0;
    for (Index s = 0; s < slices; ++s) sum += static_cast<double>(partial[(s * padded + i) * padded + j]);
    T[at] += exponents ? sum * power_of_two(exponents[i]) * power_of_two(exponents[j]) : sum;
  }
}

}  // namespace

void launch_expect_exponents(cudaStream_t stream, const double* T, const Index* counts, Index classes, Index dim,
                             int* expected) {
  launch(stream, {(dim + kBlock - 1) / kBlock, 1, kWarps * sizeof(double)}, expect_exponents, T, counts, classes, dim,
         expected);
}

void launch_choose_exponents(cudaStream_t stream, const double* squares, Index dim, const BatchRecord* record,
                             int* exponents, int* expected, int* misfit) {
  launch(stream, {1, 1, kWarps * sizeof(double)}, choose_exponents, squares, dim, record, exponents, expected, misfit);
}

void launch_fold_columns(cudaStream_t stream, const double* column_squares, Index runs, Index dim, Index rows,
                         double* squares, int* exponents) {
  launch(stream, {(dim + kWarp - 1) / kWarp, 1, kBlock * static_cast<Index>(sizeof(double))}, fold_columns,
         column_squares, runs, dim, rows, squares, exponents);
}

template <class P>
void launch_promote(cudaStream_t stream, const P* partial, Index slices, Index dim, Index padded, const int* exponents,
                    const double* squares, const BatchRecord* record, double* T) {
  launch(stream, {blocks_for(dim * dim)}, promote<P>, partial, slices, dim, padded, exponents, squares, record, T);
}
template void launch_promote(cudaStream_t, const float*, Index, Index, Index, const int*, const double*,
                             const BatchRecord*, double*);
template void launch_promote(cudaStream_t, const double*, Index, Index, Index, const int*, const double*,
                             const BatchRecord*, double*);

}  // namespace ncollapse::cuda
