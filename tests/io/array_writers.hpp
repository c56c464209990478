// Writes .npy, .npz and .safetensors files byte by byte, right or wrong as a test asks for, into a directory that lives
// as long as the test.
#pragma once

#include <unistd.h>
#include <zlib.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ncollapse::test {

using Bytes = std::string;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "ncollapse-io-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary directory");
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string path(const std::string& name) const { return path_ + "/" + name; }

  std::string write(const std::string& name, const Bytes& bytes) const {
    std::filesystem::remove(path(name));  // a file that is overwritten may wait for the disk when it is closed
    std::ofstream file(path(name), std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) throw std::runtime_error("cannot write " + path(name));
    return path(name);
  }

 private:
  std::string path_;
};

inline void append_number(Bytes& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes out(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(out.data(), values.data(), out.size());
  return out;
}

// --- .npy

/// A file with exactly this header text.
inline Bytes npy_with_header(const std::string& header, const Bytes& data, int major = 1) {
  Bytes out = "\x93NUMPY";
  out += static_cast<char>(major);
  out += '\0';
  append_number(out, header.size(), major == 1 ? 2 : 4);
  return out + header + data;
}

/// What NumPy writes: the header padded so that the data begins at a multiple of 64.
inline Bytes npy(const std::string& descr, const std::string& shape, const Bytes& data, bool fortran_order = false,
                 int major = 1) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': " + (fortran_order ? "True" : "False") +
                       ", 'shape': " + shape + ", }";
  const std::size_t before = major == 1 ? 10 : 12;
  header.resize((before + header.size() + 1 + 63) / 64 * 64 - before - 1, ' ');
  return npy_with_header(header + "\n", data, major);
}

// --- .npz

struct Member {
  std::string name;
  Bytes content;
  bool deflated = false;
  bool zip64_local = true;  ///< NumPy asks for a zip64 field in every local header
  int method = -1;          ///< what the headers say, when it is a lie
  std::uint64_t claimed_size = UINT64_MAX;
  std::uint16_t flags = 0;
};

inline Bytes deflate(const Bytes& content) {
  z_stream stream = {};
  if (deflateInit2(&stream, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK) throw std::runtime_error("zlib");
  Bytes out(deflateBound(&stream, content.size()) + 16, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  if (::deflate(&stream, Z_FINISH) != Z_STREAM_END) throw std::runtime_error("zlib");
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

inline Bytes zip(const std::vector<Member>& members) {
  Bytes out, directory;
  for (const Member& member : members) {
    const Bytes packed = member.deflated ? deflate(member.content) : member.content;
    const std::uint64_t size = member.claimed_size == UINT64_MAX ? member.content.size() : member.claimed_size;
    const auto crc =
        crc32(0, reinterpret_cast<const Bytef*>(member.content.data()), static_cast<uInt>(member.content.size()));
    const auto common = [&](Bytes& to, bool zip64) {  // the fields that both headers share, up to the name's length
      append_number(to, zip64 ? 45 : 20, 2);
      append_number(to, member.flags, 2);
      append_number(to, static_cast<std::uint64_t>(member.method >= 0 ? member.method : member.deflated ? 8 : 0), 2);
      append_number(to, 0x00210000, 4);  // 1980-01-01
      append_number(to, crc, 4);
      append_number(to, zip64 ? 0xffffffff : packed.size(), 4);
      append_number(to, zip64 ? 0xffffffff : size, 4);
      append_number(to, member.name.size(), 2);
    };
    const std::uint64_t at = out.size();
    out += "PK\x03\x04";
    common(out, member.zip64_local);
    append_number(out, member.zip64_local ? 20 : 0, 2);
    out += member.name;
    if (member.zip64_local) {
      append_number(out, 1, 2);
      append_number(out, 16, 2);
      append_number(out, size, 8);
      append_number(out, packed.size(), 8);
    }
    out += packed;

    const bool zip64 = size > 0xfffffffe;
    directory += "PK\x01\x02";
    append_number(directory, 45, 2);
    common(directory, zip64);
    append_number(directory, zip64 ? 20 : 0, 2);
    append_number(directory, 0, 6);  // no comment, disk 0, no attributes inside
    append_number(directory, 0, 4);
    append_number(directory, at, 4);
    directory += member.name;
    if (zip64) {
      append_number(directory, 1, 2);
      append_number(directory, 16, 2);
      append_number(directory, size, 8);
      append_number(directory, packed.size(), 8);
    }
  }
  const std::uint64_t directory_at = out.size();
  out += directory + "PK\x05\x06";
  append_number(out, 0, 4);
  append_number(out, members.size(), 2);
  append_number(out, members.size(), 2);
  append_number(out, directory.size(), 4);
  append_number(out, directory_at, 4);
  append_number(out, 0, 2);
  return out;
}

// --- .safetensors

inline Bytes safetensors_with_header(const std::string& header, const Bytes& data) {
  Bytes out;
  append_number(out, header.size(), 8);
  return out + header + data;
}

struct TensorBytes {
  std::string key, dtype, shape;  ///< shape as JSON: "[2, 3]"
  Bytes data;
};

/// `odd` moves the data to an odd offset, which no element type of more than one byte is aligned for.
inline Bytes safetensors(const std::vector<TensorBytes>& tensors, bool odd = false) {
  std::string header = R"({"__metadata__": {"format": "pt"})";
  Bytes data;
  for (const TensorBytes& tensor : tensors) {
    header += ", \"" + tensor.key + R"(": {"dtype": ")" + tensor.dtype + R"(", "shape": )" + tensor.shape +
              R"(, "data_offsets": [)" + std::to_string(data.size()) + ", " +
              std::to_string(data.size() + tensor.data.size()) + "]}";
    data += tensor.data;
  }
  header += "}";
  while (header.size() % 8 != (odd ? 1U : 0U)) header += ' ';
  return safetensors_with_header(header, data);
}

}  // namespace ncollapse::test
