// LibTorch tensors as views, without a copy. Not part of ncollapse.hpp: for programs that link ncollapse::torch.
//
//   find_package(ncollapse COMPONENTS torch)
//   target_link_libraries(app ncollapse::torch)
//
//   const ncollapse::Context context = ncollapse::context_for(features);
//   ncollapse::Accumulator moments(context, {.classes = K, .dim = features.size(1)});
//   moments.add(ncollapse::view(features), ncollapse::label_view(labels));
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <sstream>
#include <string>

#include "ncollapse/context.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/types.hpp"

// Only a LibTorch that was built for CUDA has the first of these (the rest of its CUDA headers is always there).
#if __has_include(<c10/cuda/impl/cuda_cmake_macros.h>) && __has_include(<cuda_runtime_api.h>)
#include <c10/cuda/CUDAStream.h>
#define NCOLLAPSE_TORCH_CUDA 1
#else
#define NCOLLAPSE_TORCH_CUDA 0
#endif

namespace ncollapse {

namespace torch_detail {

/// "a CPUFloatType tensor of shape [3, 2]", for messages.
inline std::string describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << "a " << tensor.toString() << " tensor of shape " << tensor.sizes();
  return text.str();
}

inline MemorySpace checked_space(const at::Tensor& tensor) {
  if (!tensor.defined()) throw UsageError("the tensor is undefined");
  if (tensor.layout() != at::kStrided) throw UsageError(describe(tensor) + " is not dense", "pass tensor.to_dense()");
  if (tensor.is_neg()) throw UsageError(describe(tensor) + " is a lazily negated view", "pass tensor.resolve_neg()");
  if (tensor.is_cpu()) return MemorySpace::host;
  if (tensor.is_cuda()) return MemorySpace::device;
  throw UsageError(describe(tensor) + " lies on " + tensor.device().str() + ", only cpu and cuda can be read");
}

}  // namespace torch_detail

/// A tensor [rows x cols], or [cols] as one row (a bias), of float64, float32, float16 or bfloat16 on the CPU or a GPU,
/// as a view: nothing is copied, and the tensor's storage has to live as long as the view. The elements of a row have
/// to be adjacent and rows must not overlap; rows may be further apart than they are long (a slice of columns). Throws
/// UsageError for every other tensor, saying what would make it right. Does not wait for the device.
inline MatrixView view(const at::Tensor& tensor) {
  const MemorySpace space = torch_detail::checked_space(tensor);
  if (tensor.dim() != 1 && tensor.dim() != 2)
    throw UsageError(torch_detail::describe(tensor) + " is not a matrix", "flatten each sample: tensor.flatten(1)");
  Dtype dtype = Dtype::f32;
  switch (tensor.scalar_type()) {
    case at::kDouble: dtype = Dtype::f64; break;
    case at::kFloat: dtype = Dtype::f32; break;
    case at::kHalf: dtype = Dtype::f16; break;
    case at::kBFloat16: dtype = Dtype::bf16; break;
    default:
      throw UsageError(torch_detail::describe(tensor) + " holds neither float64, float32, float16 nor bfloat16",
                       "convert it: tensor.to(torch::kFloat)");
  }
  const Index rows = tensor.dim() == 2 ? tensor.size(0) : 1, cols = tensor.size(-1);
  // The stride of a dimension of one element means nothing.
  const Index stride = rows > 1 ? tensor.stride(0) : cols;
  if ((cols > 1 && tensor.stride(-1) != 1) || stride < cols)
    throw UsageError(torch_detail::describe(tensor) + " with strides " + c10::str(tensor.strides()) +
                         " has rows that are not contiguous",
                     "keep tensor.contiguous() in a variable as long as the view, and pass that");
  return {tensor.data_ptr(), dtype, rows, cols, stride, space};
}

/// Labels [rows], contiguous, of int64, int32 or uint8 on the CPU or a GPU, as a view: nothing is copied, and the
/// tensor's storage has to live as long as the view. Throws UsageError for every other tensor, saying what would make
/// it right.
inline LabelView label_view(const at::Tensor& tensor) {
  const MemorySpace space = torch_detail::checked_space(tensor);
  if (tensor.dim() != 1)
    throw UsageError(
        torch_detail::describe(tensor) + " is not a vector of labels",
        tensor.dim() == 2 && tensor.size(1) == 1 ? "pass tensor.squeeze(1)" : "for one-hot rows pass tensor.argmax(1)");
  LabelType type = LabelType::i64;
  switch (tensor.scalar_type()) {
    case at::kLong: type = LabelType::i64; break;
    case at::kInt: type = LabelType::i32; break;
    case at::kByte: type = LabelType::u8; break;
    default:
      throw UsageError(torch_detail::describe(tensor) + " holds neither int64, int32 nor uint8 labels",
                       "convert it: tensor.to(torch::kLong)");
  }
  if (!tensor.is_contiguous())
    throw UsageError(torch_detail::describe(tensor) + " is not contiguous",
                     "keep tensor.contiguous() in a variable as long as the view, and pass that");
  return {tensor.data_ptr(), type, tensor.numel(), space};
}

/// A Context on the tensor's device. On a GPU it works in the order of LibTorch's current stream there, so what is
/// queued on the tensor is seen; a stream other than the default one has to outlive the context. On the CPU it uses
/// `threads` threads (0: as many as LibTorch). Throws UsageError for a tensor on another kind of device, DeviceError
/// when the library, or this program, was built without CUDA and the tensor lies on a GPU.
inline Context context_for(const at::Tensor& tensor, int threads = 0) {
  if (torch_detail::checked_space(tensor) == MemorySpace::host)
    return Context({DeviceType::cpu, 0}, {.threads = threads > 0 ? threads : at::get_num_threads()});
#if NCOLLAPSE_TORCH_CUDA
  const auto index = tensor.device().index();
  return Context({DeviceType::cuda, index}, {.cuda_stream = c10::cuda::getCurrentCUDAStream(index).stream()});
#else
  throw DeviceError("the tensor lies on a GPU, but this program was compiled without CUDA",
                    "compile against a LibTorch with CUDA, with the CUDA toolkit's headers in reach");
#endif
}

}  // namespace ncollapse
