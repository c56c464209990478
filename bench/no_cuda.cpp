// In place of vendor_cuda.cu in a build without CUDA.
#include "bench/vendor.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse::bench {

std::unique_ptr<Vendor> open_cuda_vendor(int) { throw DeviceError(cuda_unavailable_reason()); }

}  // namespace ncollapse::bench
