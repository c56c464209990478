// Header: "\x93NUMPY", major, minor, header length (2 bytes for version 1, else 4, little endian), then for example
//   {'descr': '<f4', 'fortran_order': False, 'shape': (50000, 512), }
// padded with blanks. NumPy evaluates that text as a Python literal, so other writers vary order, blanks and commas;
// the parser below takes every such variation of the three known keys and nothing else.
#include "host/io/npy.hpp"

#include <algorithm>
#include <string>

namespace ncollapse::io {

namespace {

constexpr std::string_view kSignature = "\x93NUMPY";
constexpr Index kLongestHeader = Index{1} << 20;  // a plain array needs about 100 bytes

class HeaderParser {
 public:
  HeaderParser(const std::string& name, std::string_view text) : name_(name), text_(text) {}

  ArrayInfo parse() {
    ArrayInfo info;
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!take('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !has_descr) {
        has_descr = true;
        info.type = descr();
      } else if (key == "fortran_order" && !has_order) {
        has_order = true;
        info.fortran_order = boolean();
      } else if (key == "shape" && !has_shape) {
        has_shape = true;
        info.shape = shape();
      } else {
        fail(name_, "broken .npy header: unexpected or repeated key " + in_quotes(key));
      }
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    skip_blanks();
    if (at_ != text_.size()) wrong("nothing more");
    if (!has_descr) missing("descr");
    if (!has_order) missing("fortran_order");
    if (!has_shape) missing("shape");
    return info;
  }

 private:
  [[noreturn]] void wrong(const std::string& wanted) const {
    fail(name_, "broken .npy header: expected " + wanted + " at character " + std::to_string(at_) + " of " +
                    in_quotes(text_.substr(0, text_.find_last_not_of(" \n") + 1)));
  }
  [[noreturn]] void missing(const std::string& key) const {
    fail(name_, "broken .npy header: no '" + key + "' in " + in_quotes(text_));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_blanks() {
    while (at_ < text_.size() && std::string_view(" \t\r\n\f").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(char c) {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    skip_blanks();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  void expect(char c) {
    if (!take(c)) wrong(std::string("'") + c + "'");
  }

  std::string_view string() {
    skip_blanks();
    if (std::string_view("uUbB").find(peek()) != std::string_view::npos && peek() != '\0') ++at_;  // Python 2 writers
    const char quote = peek();
    if (quote != '\'' && quote != '"') wrong("a string");
    const std::size_t begin = at_ + 1, end = text_.find(quote, begin);
    if (end == std::string_view::npos) wrong("a closed string");
    at_ = end + 1;
    return text_.substr(begin, end - begin);
  }

  bool boolean() {
    if (take_word("True")) return true;
    if (take_word("False")) return false;
    wrong("True or False");
  }

  Index extent() {
    skip_blanks();
    if (peek() == '-') fail(name_, "broken .npy header: negative dimension in the shape of " + in_quotes(text_));
    if (peek() < '0' || peek() > '9') wrong("a dimension");
    Index value = 0;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      if (__builtin_mul_overflow(value, Index{10}, &value) || __builtin_add_overflow(value, peek() - '0', &value)) {
        fail(name_, "broken .npy header: a dimension does not fit 64 bits in " + in_quotes(text_));
      }
    }
    if (peek() == 'L') ++at_;  // a long integer of Python 2
    return value;
  }

  std::vector<Index> shape() {
    std::vector<Index> extents;
    expect('(');
    while (!take(')')) {
      extents.push_back(extent());
      if (!take(',')) {
        expect(')');
        break;
      }
    }
    return extents;
  }

  ElementType descr() {
    skip_blanks();
    if (peek() == '[' || peek() == '(') {
      fail(name_, "holds a structured array, not numbers",
           "save one field: np.save('field.npy', np.load('" + name_ + "')['field'])");
    }
    const std::string_view text = string();
    if (text == "bfloat16") return ElementType::bf16;
    const bool has_order = !text.empty() && std::string_view("<>=|").find(text[0]) != std::string_view::npos;
    const std::string_view code = text.substr(has_order ? 1 : 0);

    // NumPy has no bfloat16: arrays of the ml_dtypes extension are saved as raw pairs of bytes, "V2".
    constexpr std::pair<std::string_view, ElementType> kCodes[] = {
        {"f8", ElementType::f64},    {"f4", ElementType::f32}, {"f2", ElementType::f16}, {"V2", ElementType::bf16},
        {"i8", ElementType::i64},    {"i4", ElementType::i32}, {"i2", ElementType::i16}, {"i1", ElementType::i8},
        {"u8", ElementType::u64},    {"u4", ElementType::u32}, {"u2", ElementType::u16}, {"u1", ElementType::u8},
        {"b1", ElementType::boolean}};
    const auto* found = std::ranges::find(kCodes, code, &std::pair<std::string_view, ElementType>::first);
    if (found == std::end(kCodes)) unsupported(text, code);
    if (text[0] == '>' && size_of(found->second) > 1) {
      fail(name_, "element type " + in_quotes(text) + " is big endian; only little endian can be read",
           "convert it: a = np.load('" + name_ + "'); np.save('little.npy', a.astype(a.dtype.newbyteorder('<')))");
    }
    return found->second;
  }

  [[noreturn]] void unsupported(std::string_view text, std::string_view code) const {
    const char kind = code.empty() ? '\0' : code[0];
    const std::string what = kind == 'O'                  ? " (pickled Python objects)"
                             : kind == 'c'                ? " (complex numbers)"
                             : kind == 'S' || kind == 'U' ? " (text)"
                             : kind == 'M' || kind == 'm' ? " (dates)"
                                                          : "";
    fail(name_, "element type " + in_quotes(text) + what + " is not supported",
         kind == 'O' ? "make it one numeric array first, such as np.stack(list(a)).astype('float32')"
                     : "convert it, such as a.astype('float32') for features or a.astype('int64') for labels");
  }

  const std::string& name_;
  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

ArrayInfo read_npy_header(ByteSource& source) {
  const std::string& name = source.name();
  unsigned char start[12] = {};  // version 1 uses 10 of them
  const Index held = std::min<Index>(source.size(), sizeof(start));
  source.read(0, held, reinterpret_cast<std::byte*>(start));
  const std::string_view signature(reinterpret_cast<const char*>(start),
                                   std::min(kSignature.size(), static_cast<std::size_t>(held)));
  if (signature != kSignature.substr(0, signature.size())) {
    fail(name, "is not a .npy array: it begins with " + in_quotes(signature) + " instead of " + in_quotes(kSignature));
  }
  const int major = start[6], minor = start[7];
  if (held >= 8 && (major < 1 || major > 3 || minor != 0)) {
    fail(name, ".npy format version " + std::to_string(major) + "." + std::to_string(minor) + " is not known",
         "versions 1.0, 2.0 and 3.0 can be read");
  }
  const Index text_at = major > 1 ? 12 : 10;
  if (held < text_at) {
    fail(name, "truncated .npy header: " + std::to_string(source.size()) + " bytes, but the header begins with " +
                   std::to_string(text_at));
  }
  Index length = start[8] | Index{start[9]} << 8;
  if (major > 1) length |= Index{start[10]} << 16 | Index{start[11]} << 24;
  if (length > kLongestHeader) {
    fail(name, "broken .npy header: its length is given as " + std::to_string(length) + " bytes, more than the " +
                   std::to_string(kLongestHeader) + " that are plausible");
  }
  if (length > source.size() - text_at) {
    fail(name, "truncated .npy header: " + std::to_string(length) + " bytes are promised, " +
                   std::to_string(source.size() - text_at) + " are there");
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  source.read(text_at, length, reinterpret_cast<std::byte*>(text.data()));
  ArrayInfo info = HeaderParser(name, text).parse();
  info.offset = text_at + length;
  return info;
}

}  // namespace ncollapse::io
