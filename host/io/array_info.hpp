// What a header says about an array, and the few helpers every reader needs: checked sizes and the text of errors.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ncollapse/error.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse::io {

/// Element types that can be read: floats as features and weights, the others as labels.
enum class ElementType { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean };

constexpr std::string_view to_string(ElementType type) {
  constexpr std::string_view kNames[] = {"f64", "f32", "f16", "bf16", "i64", "i32", "i16",
                                         "i8",  "u64", "u32", "u16",  "u8",  "bool"};
  return kNames[static_cast<int>(type)];
}

constexpr Index size_of(ElementType type) {
  constexpr Index kSizes[] = {8, 4, 2, 2, 8, 4, 2, 1, 8, 4, 2, 1, 1};
  return kSizes[static_cast<int>(type)];
}

/// An array in a ByteSource, as its header describes it.
struct ArrayInfo {
  ElementType type = ElementType::f32;
  std::vector<Index> shape;
  bool fortran_order = false;  ///< first index fastest
  Index offset = 0;            ///< bytes from the start of the source to the first element
};

[[noreturn]] inline void fail(const std::string& name, const std::string& what, std::string hint = {}) {
  throw DataError(name + ": " + what, std::move(hint));
}

/// Text of unknown origin, for a message: printable, in quotes, and short.
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  std::string out = "'";
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    constexpr char kHex[] = "0123456789abcdef";
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out + (text.size() > kLongest ? "...'" : "'");
}

/// A shape the way Python writes it: (3, 4), (3,), ().
inline std::string shape_text(const std::vector<Index>& shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

/// Bytes of a dense array; nothing when a product of extents leaves 64 bits. Extents of 0 count as 1 on the way, so
/// that (0, 2^62) is refused too: its row size could not be computed.
inline std::optional<Index> dense_bytes(const std::vector<Index>& shape, Index element_bytes) {
  Index bytes = element_bytes;
  bool empty = false;
  for (const Index extent : shape) {
    empty = empty || extent == 0;
    if (extent != 0 && __builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return empty ? 0 : bytes;
}

}  // namespace ncollapse::io
