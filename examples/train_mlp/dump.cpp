#include "dump.hpp"

#include <cerrno>
#include <fstream>
#include <system_error>

#include <ncollapse/error.hpp>

namespace train_mlp {

void write_npy(const std::string& path, const at::Tensor& tensor) {
  const at::Tensor array = tensor.detach().cpu().contiguous();
  TORCH_CHECK(array.scalar_type() == at::kFloat || array.scalar_type() == at::kLong, "write_npy: type");
  std::string shape;
  for (const auto size : array.sizes()) shape += std::to_string(size) + (array.dim() == 1 ? "," : ", ");
  if (array.dim() == 2) shape.resize(shape.size() - 2);
  std::string header = "{'descr': '" + std::string(array.scalar_type() == at::kFloat ? "<f4" : "<i8") +
                       "', 'fortran_order': False, 'shape': (" + shape + "), }";
  constexpr std::size_t kPrefix = 10, kAlignment = 64;  // the array begins at a multiple of 64 bytes
  header.append((kAlignment - (kPrefix + header.size() + 1) % kAlignment) % kAlignment, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << std::string("\x93NUMPY\x01\x00", 8) << static_cast<char>(header.size() % 256)
       << static_cast<char>(header.size() / 256) << header;
  file.write(static_cast<const char*>(array.data_ptr()), static_cast<std::streamsize>(array.nbytes()));
  if (!file.flush())
    throw ncollapse::DataError(path +
                               ": cannot be written: " + std::error_code(errno, std::generic_category()).message());
}

}  // namespace train_mlp
