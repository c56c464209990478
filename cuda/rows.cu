#include "cuda/device.hpp"
#include "cuda/rows.hpp"

namespace ncollapse::cuda {
namespace {

template <class T>
__global__ void convert(Rows<T> x, int log2, double* to) {
  const Index lanes = Index{1} << log2, lane = thread_id() & (lanes - 1);
  for (Index i = thread_id() >> log2; i < x.rows; i += thread_count() >> log2)
    for (Index col = lane * kPacket<T>; col < x.cols; col += lanes * kPacket<T>) {
      const Packet<T> packet = x.read(x.row(i), col);
      for (int v = 0; v < kPacket<T>; ++v)
        if (col + v < x.cols) to[i * x.cols + col + v] = to_double(packet.value[v]);
    }
}

__global__ void combine_rows(const double* a, const double* A, const double* b, const double* B, Index rows, Index cols,
                             double* out) {
  for (Index i = thread_id(); i < rows * cols; i += thread_count()) {
    const Index k = i / cols;
    out[i] = B ? a[k] * A[i] + b[k] * B[i] : a[k] * A[i];
  }
}

__global__ void select_rows(const double* A, const Index* index, Index rows, Index cols, double* out) {
  for (Index i = thread_id(); i < rows * cols; i += thread_count()) out[i] = A[index[i / cols] * cols + i % cols];
}

__global__ void subtract_centre(double* A, const double* centre, Index rows, Index cols) {
  for (Index i = thread_id(); i < rows * cols; i += thread_count()) A[i] -= centre[i % cols];
}

__global__ void row_dots(const double* A, const double* B, Index rows, Index cols, double* out) {
  for (Index k = warp_id(); k < rows; k += warp_count()) {
    double sum = 0;
    for (Index col = lane_id(); col < cols; col += kWarp) sum += A[k * cols + col] * B[k * cols + col];
    sum = warp_sum(sum);
    if (lane_id() == 0) out[k] = sum;
  }
}

__global__ void row_products(const double* A, const double* B, Index rows, Index cols, double* out) {
  for (Index k = warp_id(); k < rows; k += warp_count()) {
    double left = 0, right = 0, cross = 0;
    for (Index col = lane_id(); col < cols; col += kWarp) {
      const double a = A[k * cols + col], b = B[k * cols + col];
      left += a * a;
      right += b * b;
      cross += a * b;
    }
    left = warp_sum(left);
    right = warp_sum(right);
    cross = warp_sum(cross);
    if (lane_id() != 0) continue;
    out[k] = left;
    out[rows + k] = right;
    out[2 * rows + k] = cross;
  }
}

// Rows on their way at the same time. By itself the compiler takes 32 registers, and room for half of them.
constexpr int kAhead = 16;

Index rows_of_chunk(Index rows) { return std::max<Index>(16, (rows + 63) / 64); }

/// Block (x, y): kBlock columns of the rows of chunk y.
__global__ void __launch_bounds__(kBlock, 4)
    weighted_chunk_sums(const double* A, const double* w, Index rows, Index chunk, Index cols, double* partial) {
  const Index col = thread_id(), last = min((blockIdx.y + Index{1}) * chunk, rows);
  if (col >= cols) return;
  double sum = 0;
  Index k = blockIdx.y * chunk;
  for (; k + kAhead <= last; k += kAhead) {
    double value[kAhead];
    for (int i = 0; i < kAhead; ++i) value[i] = A[(k + i) * cols + col];
    for (int i = 0; i < kAhead; ++i) sum += (w ? w[k + i] : 1) * value[i];
  }
  for (; k < last; ++k) sum += (w ? w[k] : 1) * A[k * cols + col];
  partial[blockIdx.y * cols + col] = sum;
}

__global__ void add_chunks(const double* partial, Index chunks, Index cols, double* out) {
  const Index col = thread_id();
  if (col >= cols) return;
  double sum = 0;
  for (Index chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * cols + col];
  out[col] = sum;
}

/// A thread per group and column: neighbouring threads read neighbouring columns.
__global__ void __launch_bounds__(kBlock, 4)
    sum_group_rows(const double* A, const Index* begin, Index groups, Index cols, double* out) {
  for (Index i = thread_id(); i < groups * cols; i += thread_count()) {
    const Index group = i / cols, col = i % cols, last = begin[group + 1];
    double sum = 0;
    Index row = begin[group];
    for (; row + kAhead <= last; row += kAhead) {
      double value[kAhead];
      for (int n = 0; n < kAhead; ++n) value[n] = A[(row + n) * cols + col];
      for (int n = 0; n < kAhead; ++n) sum += value[n];
    }
    for (; row < last; ++row) sum += A[row * cols + col];
    out[i] = sum;
  }
}

/// Block (x, y): of group x the products of row 8 y + warp with itself and the rows behind it.
__global__ void group_grams(const double* A, const Index* begin, Index cols, double* parts) {
  constexpr int kAtOnce = 4;  // rows
  static_assert(kGroupParts * kWarps == kMostGroupRows);
  const Index first = begin[blockIdx.x], count = begin[blockIdx.x + 1] - first;
  const Index i = static_cast<Index>(blockIdx.y) * kWarps + warp_in_block();
  double total = 0;
  for (Index j = i; j < count && count <= kMostGroupRows; j += kAtOnce) {
    const double *mine = A + (first + i) * cols, *theirs = A + (first + j) * cols;
    double dot[kAtOnce] = {};
    for (Index col = lane_id(); col < cols; col += kWarp)
      for (int n = 0; n < kAtOnce; ++n)
        if (j + n < count) dot[n] += mine[col] * theirs[n * cols + col];
    for (int n = 0; n < kAtOnce; ++n) {
      const double product = warp_sum(dot[n]);
      total += (j + n == i ? 1 : 2) * product * product;
    }
  }
  total = block_sum(lane_id() == 0 ? total : 0, shared_memory<double>());
  if (threadIdx.x == 0) parts[blockIdx.x * kGroupParts + blockIdx.y] = total;
}

__global__ void inner_partials(const double* A, const double* B, Index size, double* partial) {
  double sum = 0;
  for (Index i = thread_id(); i < size; i += thread_count()) sum += A[i] * B[i];
  sum = block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

constexpr Index kTile = kWarp;

/// Block (x, y): the 32 x 32 tile in row x, column y <= x, through shared memory so that both sides are read and
/// written along rows. One more column keeps the transposed reads off each other's banks.
__global__ void mirror_tiles(double* A, Index n) {
  if (blockIdx.y > blockIdx.x) return;  // the whole block
  double* tile = shared_memory<double>();
  const Index row0 = blockIdx.x * kTile, col0 = blockIdx.y * kTile;
  for (Index r = warp_in_block(); r < kTile; r += kWarps)
    if (row0 + r < n && col0 + lane_id() < n) tile[r * (kTile + 1) + lane_id()] = A[(row0 + r) * n + col0 + lane_id()];
  __syncthreads();
  for (Index c = warp_in_block(); c < kTile; c += kWarps) {
    const Index i = col0 + c, j = row0 + lane_id();  // target row and column
    if (i < j && j < n) A[i * n + j] = tile[lane_id() * (kTile + 1) + c];
  }
}

__global__ void read_diagonal(const double* A, Index n, double* out) {
  for (Index i = thread_id(); i < n; i += thread_count()) out[i] = A[i * n + i];
}

__global__ void set_identity(double* A, Index n) {
  for (Index i = thread_id(); i < n * n; i += thread_count()) A[i] = i / n == i % n ? 1 : 0;
}

}  // namespace

void launch_convert(cudaStream_t stream, const FeatureBlock& from, double* to) {
  with_element(from.dtype, [&]<class T>(T) {
    const int log2 = lanes_log2<T>(from.cols);
    launch(stream, {blocks_for(from.rows << log2)}, convert<T>, rows_of<T>(from), log2, to);
  });
}

void launch_combine_rows(cudaStream_t stream, const double* a, const double* A, const double* b, const double* B,
                         Index rows, Index cols, double* out) {
  launch(stream, {blocks_for(rows * cols)}, combine_rows, a, A, b, B, rows, cols, out);
}

void launch_select_rows(cudaStream_t stream, const double* A, const Index* index, Index rows, Index cols, double* out) {
  launch(stream, {blocks_for(rows * cols)}, select_rows, A, index, rows, cols, out);
}

void launch_sum_groups(cudaStream_t stream, const double* A, const Index* begin, Index groups, Index cols,
                       double* out) {
  launch(stream, {blocks_for(groups * cols)}, sum_group_rows, A, begin, groups, cols, out);
}

void launch_group_grams(cudaStream_t stream, const double* A, const Index* begin, Index groups, Index cols,
                        double* parts) {
  launch(stream, {groups, kGroupParts, kWarps * sizeof(double)}, group_grams, A, begin, cols, parts);
}

void launch_centre_rows(cudaStream_t stream, double* A, const double* centre, Index rows, Index cols) {
  launch(stream, {blocks_for(rows * cols)}, subtract_centre, A, centre, rows, cols);
}

void launch_row_dots(cudaStream_t stream, const double* A, const double* B, Index rows, Index cols, double* out) {
  launch(stream, {blocks_for(rows, kWarps)}, row_dots, A, B, rows, cols, out);
}

void launch_row_products(cudaStream_t stream, const double* A, const double* B, Index rows, Index cols, double* out) {
  launch(stream, {blocks_for(rows, kWarps)}, row_products, A, B, rows, cols, out);
}

Index row_chunks(Index rows) { return (rows + rows_of_chunk(rows) - 1) / rows_of_chunk(rows); }

void launch_weighted_row_sum(cudaStream_t stream, const double* A, const double* w, Index rows, Index cols,
                             double* partial, double* out) {
  const Index chunks = row_chunks(rows);
  launch(stream, {blocks_for(cols), chunks}, weighted_chunk_sums, A, w, rows, rows_of_chunk(rows), cols, partial);
  launch(stream, {blocks_for(cols)}, add_chunks, partial, chunks, cols, out);
}

Index inner_parts(Index size) { return std::min<Index>(blocks_for(size, 4 * kBlock), 256); }

void launch_inner(cudaStream_t stream, const double* A, const double* B, Index size, double* partial) {
  launch(stream, {inner_parts(size), 1, kWarps * sizeof(double)}, inner_partials, A, B, size, partial);
}

void launch_mirror_lower(cudaStream_t stream, double* A, Index n) {
  const Index tiles = (n + kTile - 1) / kTile;
  launch(stream, {tiles, tiles, kTile * (kTile + 1) * static_cast<Index>(sizeof(double))}, mirror_tiles, A, n);
}

void launch_diagonal(cudaStream_t stream, const double* A, Index n, double* out) {
  launch(stream, {blocks_for(n)}, read_diagonal, A, n, out);
}

cudaError_t probe(int device) {
  int previous = 0;
  cudaError_t status = cudaGetDevice(&previous);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  cudaFuncAttributes attributes{};
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, set_identity);
  cudaSetDevice(previous);
  cudaGetLastError();  // clear it, or the next caller is blamed
  return status;
}

void launch_identity(cudaStream_t stream, double* A, Index n) {
  launch(stream, {blocks_for(n * n)}, set_identity, A, n);
}

}  // namespace ncollapse::cuda
