// Where the bytes of an array come from: a file, or a member of an archive. Formats describe an array inside a source;
// everything about rows, element types and memory order is done once, above it (array_file.cpp).
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "ncollapse/types.hpp"

namespace ncollapse::io {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  const std::string& name() const { return name_; }  ///< for messages
  Index size() const { return size_; }               ///< bytes, as found when it was opened

  /// Copies `count` bytes that begin at `offset`; 0 <= offset, offset + count <= size(). Throws DataError when they
  /// cannot be had. A source may be much faster when offsets never go back.
  virtual void read(Index offset, Index count, std::byte* to) = 0;

  /// The same bytes in place, their address a multiple of `alignment` (a power of two, at most 8), valid until the next
  /// call of map; null when this source cannot do that, and then read() is the way.
  virtual const std::byte* map([[maybe_unused]] Index offset, [[maybe_unused]] Index count,
                               [[maybe_unused]] Index alignment) {
    return nullptr;
  }

 protected:
  explicit ByteSource(std::string name, Index size = 0) : name_(std::move(name)), size_(size) {}

  std::string name_;
  Index size_;
};

}  // namespace ncollapse::io
