#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Cross-entropy and its gradient. On entry logits [rows x classes] are without the bias; on return they hold the
/// gradient of the mean loss, and losses [rows] what each row adds to the mean. All pointers to device memory, work is
/// queued on the stream.
cudaError_t softmax_cross_entropy(cudaStream_t stream, float* logits, const float* bias, const std::int64_t* labels,
                                  std::int64_t rows, std::int64_t classes, float* losses);
