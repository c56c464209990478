#include "softmax.hpp"

namespace {

// One thread a row: K is small.
__global__ void softmax_rows(float* logits, const float* bias, const std::int64_t* labels, std::int64_t rows,
                             std::int64_t classes, float* losses) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  float* z = logits + row * classes;
  float largest = z[0] + bias[0];
  for (std::int64_t k = 0; k < classes; ++k) largest = fmaxf(largest, z[k] += bias[k]);
  float sum = 0;
  for (std::int64_t k = 0; k < classes; ++k) sum += expf(z[k] - largest);
  losses[row] = (logf(sum) + largest - z[labels[row]]) / rows;
  for (std::int64_t k = 0; k < classes; ++k) z[k] = (expf(z[k] - largest) / sum - (k == labels[row] ? 1 : 0)) / rows;
}

}  // namespace

cudaError_t softmax_cross_entropy(cudaStream_t stream, float* logits, const float* bias, const std::int64_t* labels,
                                  std::int64_t rows, std::int64_t classes, float* losses) {
  constexpr int block = 128;
  if (rows == 0) return cudaSuccess;  // a grid of 0 blocks is an error
  const auto grid = static_cast<unsigned>((rows + block - 1) / block);
  softmax_rows<<<grid, block, 0, stream>>>(logits, bias, labels, rows, classes, losses);
  return cudaGetLastError();
}
