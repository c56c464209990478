// From "path:key" to rows. The formats say where an array lies in which source of bytes; here that becomes row blocks:
// in place where the bytes lie row by row and aligned, else through one buffer of a batch's size. An array in Fortran
// order is gathered by tiles of a few columns, in the order of the file, so that a compressed member is read once per
// batch and every row of the batch is written a cache line at a time.
#include "ncollapse/array_file.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <tuple>
#include <utility>

#include "host/io/array_info.hpp"
#include "host/io/byte_source.hpp"
#include "host/io/file_source.hpp"
#include "host/io/npy.hpp"
#include "host/io/npz.hpp"
#include "host/io/safetensors.hpp"
#include "host/scratch.hpp"

namespace ncollapse {

namespace io {
namespace {

// --- which file, which format

bool exists(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0;
}

struct Spec {
  std::string path;
  std::optional<std::string> key;
};

/// Keys may hold ':' too (TensorFlow's "dense/kernel:0"), so the shortest key wins whose left side is a file.
Spec parse_spec(const std::string& spec) {
  if (exists(spec)) return {spec, std::nullopt};
  for (auto colon = spec.rfind(':'); colon != std::string::npos && colon != 0; colon = spec.rfind(':', colon - 1)) {
    if (exists(spec.substr(0, colon))) return {spec.substr(0, colon), spec.substr(colon + 1)};
  }
  if (const auto colon = spec.rfind(':'); colon != std::string::npos && colon != 0) {
    fail(spec, "no such file, nor is there a file '" + spec.substr(0, colon) + "'", "write path or path:key");
  }
  return {spec, std::nullopt};  // opening it will say what is wrong
}

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

/// Formats that are recognised to be refused, with Python that converts them; {in} and {out} stand for the paths.
struct ForeignFormat {
  std::string_view name, signature, extensions, python;
};

constexpr ForeignFormat kForeign[] = {
    {"a PyTorch file", "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", ".pt .pth .ckpt",
     "import torch, numpy as np; d = torch.load('{in}', map_location='cpu'); "
     "np.savez('{out}.npz', **(d if isinstance(d, dict) else {'data': d}))"},
    {"an HDF5 file", "\x89HDF\r\n\x1a\n", ".h5 .hdf5 .hdf",
     "import h5py, numpy as np; f = h5py.File('{in}'); np.savez('{out}.npz', **{k: f[k][()] for k in f})"},
    {"a MATLAB file", "MATLAB ", ".mat",
     "import scipy.io, numpy as np; d = scipy.io.loadmat('{in}'); "
     "np.savez('{out}.npz', **{k: v for k, v in d.items() if k[0] != '_'})"},
    {"a pickle", "\x80\x03", ".pkl .pickle",
     "import pickle, numpy as np; d = pickle.load(open('{in}', 'rb')); "
     "np.savez('{out}.npz', **(d if isinstance(d, dict) else {'data': d}))"},
    {"a text table", "", ".csv .tsv .txt",
     "import numpy as np; np.save('{out}.npy', np.loadtxt('{in}', delimiter=',', dtype='float32'))"},
    {"a Parquet file", "PAR1", ".parquet",
     "import pandas, numpy as np; np.save('{out}.npy', pandas.read_parquet('{in}').to_numpy('float32'))"},
    {"a gzip file", "\x1f\x8b", ".gz", ""},
};

[[noreturn]] void refuse(const std::string& path, const ForeignFormat& format) {
  std::string hint = "only .npy, .npz and .safetensors can be read; ";
  if (format.python.empty()) {
    hint += "unpack it first: gunzip -k '" + path + "'";
  } else {
    const auto dot = path.rfind('.');
    const bool has_extension = dot != std::string::npos && path.find('/', dot) == std::string::npos;
    std::string code(format.python);
    code.replace(code.find("{in}"), 4, path);
    code.replace(code.rfind("{out}"), 5, has_extension ? path.substr(0, dot) : path);
    hint += "convert it: python -c \"" + code + "\"";
  }
  fail(path, "is " + std::string(format.name) + ", which cannot be read", hint);
}

enum class Format { npy, npz, safetensors };

/// By the first bytes, then by the extension; so an error about a damaged file speaks of the format that was meant.
Format detect(FileSource& file) {
  std::array<char, 16> start = {};
  const Index held = std::min<Index>(file.size(), start.size());
  file.read(0, held, reinterpret_cast<std::byte*>(start.data()));
  const std::string_view bytes(start.data(), static_cast<std::size_t>(held));
  if (bytes.starts_with("\x93NUMPY")) return Format::npy;
  if (bytes.starts_with("PK\x03\x04") || bytes.starts_with("PK\x05\x06")) return Format::npz;  // the latter: no members
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(start[static_cast<std::size_t>(i)]);
  if (start[8] == '{' && length <= static_cast<std::uint64_t>(file.size())) return Format::safetensors;

  const std::string& path = file.name();
  const std::string name = lower(path.substr(path.rfind('/') + 1));
  const auto dot = name.rfind('.');
  const std::string extension = dot == std::string::npos ? "" : name.substr(dot);
  for (const ForeignFormat& format : kForeign) {
    if (!format.signature.empty() && bytes.starts_with(format.signature)) refuse(path, format);
  }
  // Pickles of protocol 2 to 5 begin with that number; a .npy, .npz or .safetensors file cannot.
  if (held >= 2 && bytes[0] == '\x80' && bytes[1] >= 2 && bytes[1] <= 5) refuse(path, kForeign[3]);
  if (extension == ".npy") return Format::npy;
  if (extension == ".npz") return Format::npz;
  if (extension == ".safetensors") return Format::safetensors;
  for (const ForeignFormat& format : kForeign) {
    const auto at = extension.empty() ? std::string_view::npos : format.extensions.find(extension);
    if (at == std::string_view::npos) continue;
    const auto end = at + extension.size();  // a whole word of the list
    if (end == format.extensions.size() || format.extensions[end] == ' ') refuse(path, format);
  }
  fail(path, "is of a kind that is not known: it begins with " + in_quotes(bytes.substr(0, 8)),
       "only .npy, .npz and .safetensors can be read");
}

// --- which array

std::string_view role_name(ArrayRole role) {
  constexpr std::string_view kNames[] = {"features", "labels", "weights", "bias"};
  return kNames[static_cast<int>(role)];
}

std::span<const std::string_view> usual_names(ArrayRole role) {
  static constexpr std::string_view kFeatures[] = {"features", "feats", "feature", "embeddings", "embedding",
                                                   "h",        "x",     "data",    "penultimate"};
  static constexpr std::string_view kLabels[] = {"labels", "label", "targets", "target", "y"};
  static constexpr std::string_view kWeights[] = {
      "weight",      "weights",        "w",      "fc.weight",    "classifier.weight",
      "head.weight", "lm_head.weight", "kernel", "linear.weight"};
  static constexpr std::string_view kBias[] = {"bias",         "b",          "fc.bias", "classifier.bias", "head.bias",
                                               "lm_head.bias", "linear.bias"};
  switch (role) {
    case ArrayRole::features: return kFeatures;
    case ArrayRole::labels: return kLabels;
    case ArrayRole::weights: return kWeights;
    case ArrayRole::bias: return kBias;
  }
  return {};
}

/// The only array; else the first usual name that is a key (whatever its case); else the first that ends exactly one
/// key after a dot. A name that ends several keys decides nothing: "weight" says little in a file of fifty layers.
std::optional<std::size_t> guess_key(const std::vector<std::string>& keys, ArrayRole role) {
  if (keys.size() == 1) return 0;
  for (const bool whole : {true, false}) {
    for (const std::string_view usual : usual_names(role)) {
      std::vector<std::size_t> fits;
      for (std::size_t i = 0; i < keys.size(); ++i) {
        if (whole ? lower(keys[i]) == usual : lower(keys[i]).ends_with("." + std::string(usual))) fits.push_back(i);
      }
      if (fits.size() == 1) return fits[0];
      for (const std::size_t i : fits) {  // "w" next to "W"
        if (keys[i] == usual) return i;
      }
    }
  }
  return std::nullopt;
}

std::string listed(const std::vector<std::string>& keys) {
  constexpr std::size_t kMost = 10;
  std::string out;
  for (std::size_t i = 0; i < std::min(keys.size(), kMost); ++i) out += (i == 0 ? "" : ", ") + in_quotes(keys[i]);
  return keys.size() > kMost ? out + " and " + std::to_string(keys.size() - kMost) + " more" : out;
}

std::size_t choose_key(const std::vector<std::string>& keys, const Spec& spec, ArrayRole role) {
  if (keys.empty()) fail(spec.path, "holds no arrays");
  if (spec.key) {
    auto found = std::ranges::find(keys, *spec.key);
    if (found == keys.end() && spec.key->ends_with(".npy")) {  // the name of the member of a .npz
      found = std::ranges::find(keys, spec.key->substr(0, spec.key->size() - 4));
    }
    if (found == keys.end()) {
      fail(spec.path, "has no array " + in_quotes(*spec.key) + "; it holds " + listed(keys),
           "write path:key with one of these keys");
    }
    return static_cast<std::size_t>(found - keys.begin());
  }
  const auto guess = guess_key(keys, role);
  if (!guess) {
    fail(spec.path, "which array are the " + std::string(role_name(role)) + "? It holds " + listed(keys),
         "write path:key, such as " + spec.path + ":" + keys.front());
  }
  return *guess;
}

// --- what the role can use

bool is_float(ElementType type) { return type <= ElementType::bf16; }

Dtype dtype_of(ElementType type) {
  switch (type) {
    case ElementType::f64: return Dtype::f64;
    case ElementType::f16: return Dtype::f16;
    case ElementType::bf16: return Dtype::bf16;
    default: return Dtype::f32;
  }
}

void check_type(const std::string& name, ElementType type, ArrayRole role) {
  const std::string what = "element type " + std::string(to_string(type)) + ", but ";
  if (role == ArrayRole::labels && is_float(type)) {
    fail(name, what + "labels must be integers", "convert them: labels.astype('int64')");
  }
  if (role != ArrayRole::labels && !is_float(type)) {
    fail(name, what + std::string(role_name(role)) + " must be f16, bf16, f32 or f64",
         "convert them: " + std::string(role_name(role)) + ".astype('float32')");
  }
}

/// Rows and columns as the role sees them: a vector is a column, also when it was saved as 1 x n.
std::pair<Index, Index> rows_and_cols(const std::string& name, const std::vector<Index>& shape, ArrayRole role) {
  const std::string text = shape_text(shape);
  if (shape.empty()) fail(name, "holds a single number (shape ()), not an array", "is it the right key?");
  if (shape.size() > 2) {
    fail(name, "has " + std::to_string(shape.size()) + " dimensions (shape " + text + "), at most 2 are possible",
         "make one row per sample: a.reshape(len(a), -1), or average over positions: a.mean((2, 3))");
  }
  if (role == ArrayRole::labels || role == ArrayRole::bias) {
    if (shape.size() == 1) return {shape[0], 1};
    if (shape[0] != 1 && shape[1] != 1) {
      fail(name, std::string(role_name(role)) + " must be a vector, but the shape is " + text,
           role == ArrayRole::labels ? "one-hot labels: labels.argmax(1)" : "is it the right key?");
    }
    return {shape[0] == 1 ? shape[1] : shape[0], 1};
  }
  const bool features = role == ArrayRole::features;
  if (shape.size() == 1) {
    fail(name, std::string(role_name(role)) + " must have 2 dimensions, but the shape is " + text,
         features ? "one row per sample: a.reshape(-1, d); or is this the array of labels?"
                  : "one row per class: a.reshape(K, -1); or is this the bias?");
  }
  if (shape[1] == 0) fail(name, "has rows without values (shape " + text + ")");
  return {shape[0], shape[1]};
}

// --- element by element

/// to[r * cols + c] = from[c * stride + r] for a tile of `count` rows and `tile` columns; strides in elements.
template <class T>
void transpose_tile(const std::byte* from, Index stride, std::byte* to, Index cols, Index count, Index tile) {
  const T* const source = reinterpret_cast<const T*>(from);
  T* const target = reinterpret_cast<T*>(to);
  for (Index r = 0; r < count; ++r) {
    for (Index c = 0; c < tile; ++c) target[r * cols + c] = source[c * stride + r];
  }
}

template <class T>
void widen(const std::string& name, const std::byte* from, Index first, Index count, std::int64_t* to) {
  for (Index i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, from + i * static_cast<Index>(sizeof(T)), sizeof(T));
    if constexpr (sizeof(T) == 8) {
      if (value > std::uint64_t{INT64_MAX}) {
        fail(name, "label " + std::to_string(value) + " at row " + std::to_string(first + i) +
                       " does not fit a signed 64-bit integer");
      }
    }
    to[i] = static_cast<std::int64_t>(value);
  }
}

}  // namespace
}  // namespace io

struct ArrayFile::Impl {
  std::string name;
  ArrayRole role;
  std::unique_ptr<io::ByteSource> source;
  io::ArrayInfo info;
  Index rows = 0, cols = 0;
  bool by_columns = false;  ///< Fortran order, and it matters
  Scratch<std::byte> batch, tile;
  Scratch<std::int64_t> labels;

  Index element_bytes() const { return io::size_of(info.type); }
  Index row_bytes() const { return cols * element_bytes(); }

  void check_range(Index first, Index count) const {
    if (first < 0 || count < 0 || first > rows || count > rows - first) {
      throw UsageError(name + ": " + std::to_string(count) + " rows from row " + std::to_string(first) +
                       " on were asked of an array of " + std::to_string(rows) + " rows");
    }
  }

  /// Rows in C order, aligned for their element type.
  const std::byte* read_rows(Index first, Index count) {
    check_range(first, count);
    const Index bytes = count * row_bytes();
    if (bytes == 0) return nullptr;
    if (by_columns) return gather_rows(first, count);
    const Index offset = info.offset + first * row_bytes();
    if (const std::byte* const window = source->map(offset, bytes, element_bytes())) return window;
    std::byte* const to = batch.reserve(bytes);
    source->read(offset, bytes, to);
    return to;
  }

  const std::byte* gather_rows(Index first, Index count) {
    constexpr Index kCacheLine = 64;
    const Index size = element_bytes(), tile_cols = kCacheLine / size;
    const Index stride = count + tile_cols;  // in elements; the gap keeps columns off one cache set when count is 2^k
    std::byte* const to = batch.reserve(count * row_bytes());
    std::byte* const scratch = tile.reserve(tile_cols * stride * size);
    for (Index col = 0; col < cols; col += tile_cols) {
      const Index width = std::min(tile_cols, cols - col);
      for (Index c = 0; c < width; ++c) {
        source->read(info.offset + ((col + c) * rows + first) * size, count * size, scratch + c * stride * size);
      }
      std::byte* const corner = to + col * size;
      switch (size) {
        case 8: io::transpose_tile<std::uint64_t>(scratch, stride, corner, cols, count, width); break;
        case 4: io::transpose_tile<std::uint32_t>(scratch, stride, corner, cols, count, width); break;
        default: io::transpose_tile<std::uint16_t>(scratch, stride, corner, cols, count, width); break;
      }
    }
    return to;
  }
};

ArrayFile::ArrayFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ArrayFile::~ArrayFile() = default;
ArrayFile::ArrayFile(ArrayFile&&) noexcept = default;
ArrayFile& ArrayFile::operator=(ArrayFile&&) noexcept = default;

ArrayFile ArrayFile::open(const std::string& text, ArrayRole role) {
  const io::Spec spec = io::parse_spec(text);
  auto impl = std::make_unique<Impl>();
  impl->name = spec.path;
  impl->role = role;
  auto file = std::make_unique<io::FileSource>(spec.path);
  switch (io::detect(*file)) {
    case io::Format::npy:
      if (spec.key && !spec.key->empty()) {
        io::fail(spec.path, "is a .npy file: it holds one array and has no key " + io::in_quotes(*spec.key),
                 "leave ':" + *spec.key + "' out");
      }
      impl->info = io::read_npy_header(*file);
      impl->source = std::move(file);
      break;
    case io::Format::npz: {
      const io::NpzArchive archive(spec.path);
      if (archive.keys().empty() && archive.is_pickle()) io::refuse(spec.path, io::kForeign[0]);
      const std::size_t key = io::choose_key(archive.keys(), spec, role);
      impl->source = archive.open(key);
      impl->name = impl->source->name();
      impl->info = io::read_npy_header(*impl->source);
      break;
    }
    case io::Format::safetensors: {
      const std::vector<io::Tensor> tensors = io::read_safetensors_header(*file);
      std::vector<std::string> keys;
      for (const io::Tensor& tensor : tensors) keys.push_back(tensor.key);
      const io::Tensor& tensor = tensors[io::choose_key(keys, spec, role)];
      impl->name += ":" + tensor.key;
      impl->info = io::array_info(tensor, impl->name);
      impl->source = std::move(file);
      break;
    }
  }

  const io::ArrayInfo& info = impl->info;
  const auto bytes = io::dense_bytes(info.shape, io::size_of(info.type));
  if (!bytes) io::fail(impl->name, "shape " + io::shape_text(info.shape) + " does not fit 64 bits");
  const Index held = impl->source->size() - info.offset;
  if (*bytes > held) {
    io::fail(impl->name,
             "truncated: shape " + io::shape_text(info.shape) + " of " + std::string(io::to_string(info.type)) +
                 " takes " + std::to_string(*bytes) + " bytes, but " + std::to_string(held) + " are there",
             "was it cut off while it was written or copied?");
  }
  std::tie(impl->rows, impl->cols) = io::rows_and_cols(impl->name, info.shape, role);
  io::check_type(impl->name, info.type, role);
  impl->by_columns = info.fortran_order && impl->rows > 1 && impl->cols > 1;
  return ArrayFile(std::move(impl));
}

const std::string& ArrayFile::name() const { return impl_->name; }
Index ArrayFile::rows() const { return impl_->rows; }
Index ArrayFile::cols() const { return impl_->cols; }
int ArrayFile::rank() const { return static_cast<int>(impl_->info.shape.size()); }
std::string ArrayFile::dtype_name() const { return std::string(io::to_string(impl_->info.type)); }
Index ArrayFile::row_bytes() const { return impl_->row_bytes(); }

MatrixView ArrayFile::read_matrix(Index first, Index count) {
  if (impl_->role == ArrayRole::labels) throw UsageError(impl_->name + ": labels cannot be read as a matrix");
  const std::byte* const data = impl_->read_rows(first, count);
  return {data, io::dtype_of(impl_->info.type), count, impl_->cols, impl_->cols, MemorySpace::host};
}

LabelView ArrayFile::read_labels(Index first, Index count) {
  using io::ElementType;
  if (impl_->role != ArrayRole::labels) {
    throw UsageError(impl_->name + ": " + std::string(io::role_name(impl_->role)) + " cannot be read as labels");
  }
  const std::byte* const from = impl_->read_rows(first, count);
  const ElementType type = impl_->info.type;
  if (type == ElementType::i64) return {from, LabelType::i64, count, MemorySpace::host};
  if (type == ElementType::i32) return {from, LabelType::i32, count, MemorySpace::host};
  if (type == ElementType::u8) return {from, LabelType::u8, count, MemorySpace::host};
  if (from == nullptr) return {nullptr, LabelType::i64, 0, MemorySpace::host};

  std::int64_t* const to = impl_->labels.reserve(count);
  switch (type) {
    case ElementType::u64: io::widen<std::uint64_t>(impl_->name, from, first, count, to); break;
    case ElementType::u32: io::widen<std::uint32_t>(impl_->name, from, first, count, to); break;
    case ElementType::u16: io::widen<std::uint16_t>(impl_->name, from, first, count, to); break;
    case ElementType::i16: io::widen<std::int16_t>(impl_->name, from, first, count, to); break;
    case ElementType::i8: io::widen<std::int8_t>(impl_->name, from, first, count, to); break;
    default:  // bool: any bit set is true
      for (Index i = 0; i < count; ++i) to[i] = from[i] != std::byte{0};
  }
  return {to, LabelType::i64, count, MemorySpace::host};
}

std::vector<std::string> array_names(const std::string& path) {
  io::FileSource file(path);
  switch (io::detect(file)) {
    case io::Format::npy: io::read_npy_header(file); return {""};
    case io::Format::npz: {
      const io::NpzArchive archive(path);
      if (archive.keys().empty() && archive.is_pickle()) io::refuse(path, io::kForeign[0]);
      return archive.keys();
    }
    case io::Format::safetensors: {
      std::vector<std::string> names;
      for (const io::Tensor& tensor : io::read_safetensors_header(file)) names.push_back(tensor.key);
      return names;
    }
  }
  return {};
}

}  // namespace ncollapse
