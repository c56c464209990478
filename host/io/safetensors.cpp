// JSON header:  {"fc.weight": {"dtype": "BF16", "shape": [10, 512], "data_offsets": [0, 10240]}, "__metadata__": {...}}
// with offsets counted from the end of the header; data is little endian, row-major. The file may come from anywhere,
// so nothing in it is believed: the length is held against the size of the file and a cap, nesting is cut off while
// parsing, repeated names are refused (parsers disagree about which one counts), and ranges may neither leave the data
// nor overlap.
#include "host/io/safetensors.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

namespace ncollapse::io {

namespace {

using Json = nlohmann::json;

constexpr Index kLengthBytes = 8;
constexpr Index kLongestHeader = 100'000'000;  // the cap of the format's own reader

const std::pair<std::string_view, ElementType>* find_type(std::string_view dtype) {
  static constexpr std::pair<std::string_view, ElementType> kTypes[] = {
      {"F64", ElementType::f64},     {"F32", ElementType::f32}, {"F16", ElementType::f16}, {"BF16", ElementType::bf16},
      {"I64", ElementType::i64},     {"I32", ElementType::i32}, {"I16", ElementType::i16}, {"I8", ElementType::i8},
      {"U64", ElementType::u64},     {"U32", ElementType::u32}, {"U16", ElementType::u16}, {"U8", ElementType::u8},
      {"BOOL", ElementType::boolean}};
  const auto* found = std::ranges::find(kTypes, dtype, &std::pair<std::string_view, ElementType>::first);
  return found == std::end(kTypes) ? nullptr : found;
}

Json parse(const std::string& name, const std::string& text) {
  std::set<std::string> seen;
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    constexpr int kDeepest = 3;  // tensor name, field, array
    if (depth > kDeepest) fail(name, "broken .safetensors header: it is nested too deeply");
    if (event == Json::parse_event_t::key && depth == 1 && !seen.insert(value.get<std::string>()).second) {
      fail(name, "broken .safetensors header: two tensors are called " + in_quotes(value.get<std::string>()));
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::exception& error) {
    // Its text may quote bytes of the file, and those may be anything.
    fail(name, "broken .safetensors header: not JSON: " + in_quotes(error.what()));
  }
}

/// A list of non-negative 64-bit integers, or nothing.
std::optional<std::vector<Index>> index_list(const Json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end() || !found->is_array()) return std::nullopt;
  std::vector<Index> list;
  for (const Json& item : *found) {
    if (!item.is_number_unsigned() || item.get<std::uint64_t>() > std::uint64_t{INT64_MAX}) return std::nullopt;
    list.push_back(item.get<Index>());
  }
  return list;
}

Tensor tensor_of(const std::string& name, const std::string& key, const Json& entry, Index data_at, Index data_bytes) {
  const auto broken = [&](const std::string& what) { fail(name, "tensor " + in_quotes(key) + ": " + what); };
  if (!entry.is_object()) broken("its entry in the header is not an object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) broken("its entry has no \"dtype\" text");
  const auto shape = index_list(entry, "shape");
  if (!shape) broken("its \"shape\" is not a list of integers from 0 to 2^63 - 1");
  const auto range = index_list(entry, "data_offsets");
  if (!range || range->size() != 2 || (*range)[0] > (*range)[1]) {
    broken("its \"data_offsets\" are not a pair of begin and end");
  }
  const Index begin = (*range)[0], end = (*range)[1];
  if (end > data_bytes) {
    broken("its data ends at byte " + std::to_string(end) + ", but the file holds " + std::to_string(data_bytes) +
           " bytes of data (truncated?)");
  }
  Tensor tensor{key, dtype->get<std::string>(), *shape, data_at + begin, end - begin};
  if (const auto* type = find_type(tensor.dtype)) {
    const auto bytes = dense_bytes(tensor.shape, size_of(type->second));
    if (!bytes) broken("shape " + shape_text(tensor.shape) + " does not fit 64 bits");
    if (*bytes != tensor.bytes) {
      broken("shape " + shape_text(tensor.shape) + " of " + tensor.dtype + " takes " + std::to_string(*bytes) +
             " bytes, but its data_offsets span " + std::to_string(tensor.bytes));
    }
  }
  return tensor;
}

}  // namespace

std::vector<Tensor> read_safetensors_header(ByteSource& source) {
  const std::string& name = source.name();
  if (source.size() < kLengthBytes) {
    fail(name, "truncated .safetensors header: " + std::to_string(source.size()) + " bytes, but " +
                   std::to_string(kLengthBytes) + " are needed for the header's length alone");
  }
  unsigned char raw[kLengthBytes];
  source.read(0, kLengthBytes, reinterpret_cast<std::byte*>(raw));
  std::uint64_t length = 0;
  for (Index i = kLengthBytes; i-- > 0;) length = length << 8 | raw[i];
  if (length > std::uint64_t{kLongestHeader}) {
    fail(name, "is not a .safetensors file, or its header is broken: a header of " + std::to_string(length) +
                   " bytes is promised, more than the " + std::to_string(kLongestHeader) + " that are plausible");
  }
  const Index data_at = kLengthBytes + static_cast<Index>(length);
  if (data_at > source.size()) {
    fail(name, "truncated .safetensors header: " + std::to_string(length) + " bytes are promised, " +
                   std::to_string(source.size() - kLengthBytes) + " are there");
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  source.read(kLengthBytes, static_cast<Index>(length), reinterpret_cast<std::byte*>(text.data()));
  const Json header = parse(name, text);
  if (!header.is_object()) fail(name, "broken .safetensors header: not a JSON object");

  std::vector<Tensor> tensors;
  for (const auto& [key, entry] : header.items()) {
    if (key != "__metadata__") tensors.push_back(tensor_of(name, key, entry, data_at, source.size() - data_at));
  }
  // An empty tensor may share its offset with a neighbour: it comes first.
  std::ranges::stable_sort(tensors, {}, [](const Tensor& t) { return std::pair(t.offset, t.bytes); });
  for (std::size_t i = 1; i < tensors.size(); ++i) {
    const Tensor &left = tensors[i - 1], &right = tensors[i];
    if (left.offset + left.bytes > right.offset) {
      fail(name, "broken .safetensors header: tensors " + in_quotes(left.key) + " and " + in_quotes(right.key) +
                     " overlap at byte " + std::to_string(right.offset - data_at) + " of the data");
    }
  }
  return tensors;
}

ArrayInfo array_info(const Tensor& tensor, const std::string& name) {
  const auto* type = find_type(tensor.dtype);
  if (type == nullptr) {
    fail(name, "element type " + in_quotes(tensor.dtype) + " is not supported",
         "save it as F32, F16, BF16 or F64 (labels: I8 to I64, U8 to U64 or BOOL)");
  }
  return {type->second, tensor.shape, false, tensor.offset};
}

}  // namespace ncollapse::io
