// ArrayFile on good files: every format, element type and memory order must give back the very bits that were written,
// for row blocks anywhere, in any order; and a file much larger than the memory allowed must be readable.
#include "ncollapse/array_file.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <limits>
#include <numeric>
#include <random>

#include "ncollapse/error.hpp"
#include "tests/io/array_writers.hpp"

namespace ncollapse {
namespace {

using test::Bytes;
using test::bytes_of;
using test::TemporaryDirectory;

Bytes random_bytes(std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(count));
  Bytes out(count, '\0');
  for (char& c : out) c = static_cast<char>(random() & 0xff);  // NaN payloads and subnormals among them
  return out;
}

Bytes to_fortran(const Bytes& rows_first, std::size_t rows, std::size_t cols, std::size_t size) {
  Bytes out(rows_first.size(), '\0');
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < cols; ++c) {
      std::memcpy(&out[(c * rows + r) * size], &rows_first[(r * cols + c) * size], size);
    }
  }
  return out;
}

Bytes matrix_bytes(const MatrixView& view) {
  EXPECT_EQ(view.row_stride(), view.cols);
  EXPECT_EQ(view.space, MemorySpace::host);
  if (view.rows == 0) return {};
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(size_of(view.dtype)), 0U);
  return Bytes(static_cast<const char*>(view.data),
               static_cast<std::size_t>(view.rows * view.cols * size_of(view.dtype)));
}

std::vector<std::int64_t> label_values(const LabelView& view) {
  std::vector<std::int64_t> out;
  for (Index i = 0; i < view.size; ++i) {
    switch (view.type) {
      case LabelType::i64: out.push_back(static_cast<const std::int64_t*>(view.data)[i]); break;
      case LabelType::i32: out.push_back(static_cast<const std::int32_t*>(view.data)[i]); break;
      case LabelType::u8: out.push_back(static_cast<const std::uint8_t*>(view.data)[i]); break;
    }
  }
  return out;
}

// --- matrices

struct MatrixCase {
  std::string storage;
  Dtype dtype;
  bool fortran_order;

  std::string text() const {
    return storage + "_" + std::string(to_string(dtype)) + (fortran_order ? "_fortran" : "_c");
  }
  friend void PrintTo(const MatrixCase& matrix, std::ostream* out) { *out << matrix.text(); }
};

class Matrices : public testing::TestWithParam<MatrixCase> {
 protected:
  static constexpr std::size_t kRows = 257, kCols = 67;  // more than a page, a tile and a cache line, and no multiple

  std::string write(const Bytes& values) const {
    const auto& [storage, dtype, fortran_order] = GetParam();
    const std::string descr = dtype == Dtype::f64   ? "<f8"
                              : dtype == Dtype::f32 ? "<f4"
                              : dtype == Dtype::f16 ? "<f2"
                                                    : "<V2";
    const std::string tensor = dtype == Dtype::f64   ? "F64"
                               : dtype == Dtype::f32 ? "F32"
                               : dtype == Dtype::f16 ? "F16"
                                                     : "BF16";
    const Bytes data =
        fortran_order ? to_fortran(values, kRows, kCols, static_cast<std::size_t>(size_of(dtype))) : values;
    const std::string shape = "(257, 67)";
    const Bytes other = test::npy("<i8", "(3,)", bytes_of<std::int64_t>({0, 1, 2}));
    if (storage == "npy1") return directory.write("f.npy", test::npy(descr, shape, data, fortran_order, 1));
    if (storage == "npy2") return directory.write("f.npy", test::npy(descr, shape, data, fortran_order, 2));
    if (storage == "npy3") return directory.write("f.npy", test::npy(descr, shape, data, fortran_order, 3));
    if (storage == "npy_unaligned") {
      std::string header = "{'shape':(257,67),'fortran_order':" + std::string(fortran_order ? "True" : "False") +
                           ",'descr':'" + descr + "'}";
      while (header.size() % 2 == 0) header += ' ';
      return directory.write("f.npy", test::npy_with_header(header, data));
    }
    if (storage == "npz_stored" || storage == "npz_deflated") {
      const bool deflated = storage == "npz_deflated";
      return directory.write("f.npz",
                             test::zip({{"labels.npy", other, deflated},
                                        {"features.npy", test::npy(descr, shape, data, fortran_order), deflated}}));
    }
    return directory.write("f.safetensors",
                           test::safetensors({{"labels", "U8", "[3]", "abc"}, {"features", tensor, "[257, 67]", data}},
                                             storage == "safetensors_unaligned"));
  }

  TemporaryDirectory directory;
};

TEST_P(Matrices, GiveBackEveryBitOfEveryWindow) {
  const Dtype dtype = GetParam().dtype;
  const auto row_bytes = kCols * static_cast<std::size_t>(size_of(dtype));
  const Bytes values = random_bytes(kRows * row_bytes);
  ArrayFile array = ArrayFile::open(write(values), ArrayRole::features);
  EXPECT_EQ(array.rows(), Index{kRows});
  EXPECT_EQ(array.cols(), Index{kCols});
  EXPECT_EQ(array.rank(), 2);
  EXPECT_EQ(array.dtype_name(), to_string(dtype));
  EXPECT_EQ(array.row_bytes(), static_cast<Index>(row_bytes));

  const std::pair<std::size_t, std::size_t> windows[] = {{0, 64},  {64, 64},  {128, 64}, {192, 64}, {256, 1},
                                                         {0, 257}, {1, 1},    {100, 57}, {255, 2},  {3, 0},
                                                         {257, 0}, {17, 131}, {16, 33},  {0, 1},    {250, 7}};
  for (const auto& [first, count] : windows) {
    const MatrixView view = array.read_matrix(static_cast<Index>(first), static_cast<Index>(count));
    EXPECT_EQ(view.dtype, dtype);
    EXPECT_EQ(view.rows, static_cast<Index>(count));
    EXPECT_EQ(view.cols, Index{kCols});
    EXPECT_TRUE(matrix_bytes(view) == values.substr(first * row_bytes, count * row_bytes)) << first << " + " << count;
  }
}

std::vector<MatrixCase> matrix_cases() {
  std::vector<MatrixCase> cases;
  for (const char* storage : {"npy1", "npy2", "npy3", "npy_unaligned", "npz_stored", "npz_deflated", "safetensors",
                              "safetensors_unaligned"}) {
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
      cases.push_back({storage, dtype, false});
      if (std::string(storage).starts_with("np")) cases.push_back({storage, dtype, true});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Formats, Matrices, testing::ValuesIn(matrix_cases()),
                         [](const auto& instance) { return instance.param.text(); });

TEST(ArrayFile, HandCheckedFortranOrder) {
  const TemporaryDirectory directory;
  // [[1, 2, 3], [4, 5, 6]] column by column
  const auto path = directory.write("f.npy", test::npy("<f4", "(2, 3)", bytes_of<float>({1, 4, 2, 5, 3, 6}), true));
  ArrayFile array = ArrayFile::open(path, ArrayRole::features);
  EXPECT_EQ(matrix_bytes(array.read_matrix(0, 2)), bytes_of<float>({1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(matrix_bytes(array.read_matrix(1, 1)), bytes_of<float>({4, 5, 6}));
}

TEST(ArrayFile, FortranOrderOfLongColumns) {
  const TemporaryDirectory directory;
  constexpr std::size_t kRows = 4096, kCols = 20;
  const Bytes values = random_bytes(kRows * kCols * 4);
  for (const bool deflated : {false, true}) {
    const Bytes file = test::npy("<f4", "(4096, 20)", to_fortran(values, kRows, kCols, 4), true);
    const auto path = directory.write("f.npz", test::zip({{"x.npy", file, deflated}}));
    ArrayFile array = ArrayFile::open(path, ArrayRole::features);
    for (std::size_t first = 0; first < kRows; first += 1024) {
      EXPECT_TRUE(matrix_bytes(array.read_matrix(static_cast<Index>(first), 1024)) ==
                  values.substr(first * kCols * 4, 1024 * kCols * 4));
    }
  }
}

TEST(ArrayFile, HeadersOfOtherWriters) {
  const TemporaryDirectory directory;
  const Bytes data = bytes_of<float>({1, 2, 3, 4, 5, 6});
  for (const char* header : {
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
           "{\"shape\":(2,3),\"descr\":\"<f4\",\"fortran_order\":False}",
           "  {  'fortran_order'\t:\n False , 'shape' : ( 2 , 3 , ) , 'descr' : '<f4' , }  \n\n",
           "{'descr': u'=f4', 'fortran_order': False, 'shape': (2L, 3L)}",
           "{b'descr': b'f4', b'fortran_order': False, b'shape': (2, 3)}",
       }) {
    for (const int major : {1, 2, 3}) {
      ArrayFile array =
          ArrayFile::open(directory.write("a.npy", test::npy_with_header(header, data, major)), ArrayRole::weights);
      EXPECT_EQ(matrix_bytes(array.read_matrix(0, 2)), data) << header;
    }
  }
}

TEST(ArrayFile, Bfloat16UnderBothNames) {
  const TemporaryDirectory directory;
  const Bytes data = bytes_of<std::uint16_t>({0x3f80, 0x7fc1, 0x8001, 0xff80});
  for (const char* descr : {"<V2", "|V2", "bfloat16"}) {
    ArrayFile array = ArrayFile::open(directory.write("a.npy", test::npy(descr, "(2, 2)", data)), ArrayRole::features);
    const MatrixView view = array.read_matrix(0, 2);
    EXPECT_EQ(view.dtype, Dtype::bf16);
    EXPECT_EQ(matrix_bytes(view), data);
  }
}

TEST(ArrayFile, BytesBehindTheArrayAreIgnored) {
  const TemporaryDirectory directory;
  const Bytes data = bytes_of<float>({1, 2});
  const Bytes file = test::npy("<f4", "(1, 2)", data) + "more";
  ArrayFile plain = ArrayFile::open(directory.write("a.npy", file), ArrayRole::features);
  EXPECT_EQ(matrix_bytes(plain.read_matrix(0, 1)), data);
  ArrayFile zipped = ArrayFile::open(directory.write("a.npz", test::zip({{"x.npy", file, true}})), ArrayRole::features);
  EXPECT_EQ(matrix_bytes(zipped.read_matrix(0, 1)), data);
}

TEST(ArrayFile, NoRows) {
  const TemporaryDirectory directory;
  for (const bool fortran_order : {false, true}) {
    const auto path = directory.write("a.npy", test::npy("<f4", "(0, 5)", "", fortran_order));
    ArrayFile array = ArrayFile::open(path, ArrayRole::features);
    EXPECT_EQ(array.rows(), 0);
    EXPECT_EQ(array.cols(), 5);
    EXPECT_EQ(array.read_matrix(0, 0).rows, 0);
  }
  for (const char* descr : {"<i8", "<u2"}) {
    const auto path = directory.write("y.npy", test::npy(descr, "(0,)", ""));
    ArrayFile labels = ArrayFile::open(path, ArrayRole::labels);
    EXPECT_EQ(labels.read_labels(0, 0).size, 0);
  }
}

TEST(ArrayFile, BiasIsAColumn) {
  const TemporaryDirectory directory;
  const Bytes data = bytes_of<double>({1, 2, 3});
  for (const auto& [shape, rank] : {std::pair{"(3,)", 1}, {"(3, 1)", 2}, {"(1, 3)", 2}}) {
    for (const bool fortran_order : {false, true}) {
      const auto path = directory.write("b.npy", test::npy("<f8", shape, data, fortran_order));
      ArrayFile bias = ArrayFile::open(path, ArrayRole::bias);
      EXPECT_EQ(bias.rows(), 3);
      EXPECT_EQ(bias.cols(), 1);
      EXPECT_EQ(bias.rank(), rank);
      EXPECT_EQ(matrix_bytes(bias.read_matrix(0, 3)), data);
      EXPECT_EQ(matrix_bytes(bias.read_matrix(1, 2)), data.substr(8));
    }
  }
}

TEST(ArrayFile, MovesAndStaysUsable) {
  const TemporaryDirectory directory;
  const Bytes data = bytes_of<float>({1, 2, 3, 4});
  ArrayFile first = ArrayFile::open(directory.write("a.npy", test::npy("<f4", "(2, 2)", data)), ArrayRole::features);
  ArrayFile second = std::move(first);
  EXPECT_EQ(matrix_bytes(second.read_matrix(0, 2)), data);
  second = ArrayFile::open(directory.write("b.npy", test::npy("<f4", "(1, 2)", data)), ArrayRole::features);
  EXPECT_EQ(second.rows(), 1);
}

// --- labels

template <class T>
void check_labels(const std::string& descr, const std::string& tensor, LabelType expected) {
  SCOPED_TRACE(descr);
  const TemporaryDirectory directory;
  std::vector<T> values = {0, 1, 7, std::numeric_limits<T>::max(), std::numeric_limits<T>::min(), 100};
  if constexpr (sizeof(T) == 8) {
    if (std::is_unsigned_v<T>) values[3] = static_cast<T>(std::numeric_limits<std::int64_t>::max());
  }
  const std::vector<std::int64_t> wanted(values.begin(), values.end());
  const Bytes data = bytes_of(values);
  std::vector<std::string> paths;
  for (const char* shape : {"(6,)", "(6, 1)", "(1, 6)"}) {
    for (const bool fortran_order : {false, true}) {
      paths.push_back(
          directory.write("y" + std::to_string(paths.size()) + ".npy", test::npy(descr, shape, data, fortran_order)));
    }
  }
  const Bytes unaligned = test::npy_with_header("{'descr':'" + descr + "','fortran_order':False,'shape':(6,)} ", data);
  paths.push_back(directory.write("odd.npy", unaligned));
  paths.push_back(directory.write("s.npz", test::zip({{"y.npy", unaligned, false}})));
  paths.push_back(directory.write("d.npz", test::zip({{"y.npy", unaligned, true}})));
  paths.push_back(directory.write("y.safetensors", test::safetensors({{"y", tensor, "[6]", data}}, true)));
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    ArrayFile labels = ArrayFile::open(path, ArrayRole::labels);
    ASSERT_EQ(labels.rows(), 6);
    EXPECT_EQ(labels.cols(), 1);
    EXPECT_EQ(labels.row_bytes(), Index{sizeof(T)});
    const LabelView all = labels.read_labels(0, 6);
    EXPECT_EQ(all.type, expected);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(all.data) % static_cast<std::uintptr_t>(size_of(all.type)), 0U);
    EXPECT_EQ(label_values(all), wanted);
    EXPECT_EQ(label_values(labels.read_labels(1, 3)), std::vector(wanted.begin() + 1, wanted.begin() + 4));
    EXPECT_EQ(label_values(labels.read_labels(5, 1)), std::vector(wanted.begin() + 5, wanted.end()));
    EXPECT_EQ(label_values(labels.read_labels(0, 2)), std::vector(wanted.begin(), wanted.begin() + 2));
    EXPECT_EQ(labels.read_labels(6, 0).size, 0);
  }
}

TEST(Labels, EveryIntegerType) {
  check_labels<std::int64_t>("<i8", "I64", LabelType::i64);
  check_labels<std::int32_t>("<i4", "I32", LabelType::i32);
  check_labels<std::int16_t>("<i2", "I16", LabelType::i64);
  check_labels<std::int8_t>("|i1", "I8", LabelType::i64);
  check_labels<std::uint64_t>("<u8", "U64", LabelType::i64);
  check_labels<std::uint32_t>("<u4", "U32", LabelType::i64);
  check_labels<std::uint16_t>("<u2", "U16", LabelType::i64);
  check_labels<std::uint8_t>("|u1", "U8", LabelType::u8);
}

TEST(Labels, Booleans) {
  const TemporaryDirectory directory;
  const Bytes data = {0, 1, 1, 0};
  for (const auto& path : {directory.write("y.npy", test::npy("|b1", "(4,)", data)),
                           directory.write("y.safetensors", test::safetensors({{"y", "BOOL", "[4]", data}}))}) {
    ArrayFile labels = ArrayFile::open(path, ArrayRole::labels);
    EXPECT_EQ(labels.dtype_name(), "bool");
    EXPECT_EQ(label_values(labels.read_labels(0, 4)), (std::vector<std::int64_t>{0, 1, 1, 0}));
  }
}

TEST(Labels, OneByteMayBeOfAnyByteOrder) {
  const TemporaryDirectory directory;
  ArrayFile labels = ArrayFile::open(directory.write("y.npy", test::npy(">u1", "(2,)", "\x03\x04")), ArrayRole::labels);
  EXPECT_EQ(label_values(labels.read_labels(0, 2)), (std::vector<std::int64_t>{3, 4}));
}

// --- which array

class Keys : public testing::Test {
 protected:
  /// A .safetensors file of small arrays with these keys; the bytes do not matter.
  std::string write(const std::vector<std::string>& keys) const {
    std::vector<test::TensorBytes> tensors;
    for (const std::string& key : keys) tensors.push_back({key, "F32", "[2, 2]", Bytes(16, '\0')});
    return directory.write("a.safetensors", test::safetensors(tensors));
  }
  std::string chosen(const std::vector<std::string>& keys, ArrayRole role) const {
    const std::string name = ArrayFile::open(write(keys), role).name();
    return name.substr(name.rfind(':') + 1);
  }

  TemporaryDirectory directory;
};

TEST_F(Keys, Guessed) {
  EXPECT_EQ(chosen({"whatever"}, ArrayRole::features), "whatever");
  EXPECT_EQ(chosen({"labels", "features"}, ArrayRole::features), "features");
  EXPECT_EQ(chosen({"x", "H", "zzz"}, ArrayRole::features), "H");  // order of the list, not of the file
  EXPECT_EQ(chosen({"Embeddings", "ids"}, ArrayRole::features), "Embeddings");
  EXPECT_EQ(chosen({"val.feats", "val.labels"}, ArrayRole::features), "val.feats");
  EXPECT_EQ(chosen({"conv1.weight", "fc.weight"}, ArrayRole::weights), "fc.weight");
  EXPECT_EQ(chosen({"module.conv1.weight", "module.fc.weight"}, ArrayRole::weights), "module.fc.weight");
  EXPECT_EQ(chosen({"model.layers.0.weight", "model.layers.1.weight", "lm_head.weight"}, ArrayRole::weights),
            "lm_head.weight");
  EXPECT_EQ(chosen({"net.bias2", "head.out.weight"}, ArrayRole::weights), "head.out.weight");  // the only suffix
  EXPECT_EQ(chosen({"W", "w"}, ArrayRole::weights), "w");
  EXPECT_EQ(chosen({"W", "b2"}, ArrayRole::weights), "W");
}

TEST_F(Keys, Named) {
  const std::string path = write({"a", "b:0", "features"});
  EXPECT_EQ(ArrayFile::open(path + ":a", ArrayRole::features).name(), path + ":a");
  EXPECT_EQ(ArrayFile::open(path + ":b:0", ArrayRole::features).name(), path + ":b:0");
  EXPECT_EQ(ArrayFile::open(path, ArrayRole::features).name(), path + ":features");
}

TEST_F(Keys, AFileWhoseNameHasAColon) {
  const Bytes one = test::npy("<f4", "(1, 1)", bytes_of<float>({1}));
  const Bytes two = test::npy("<f4", "(1, 1)", bytes_of<float>({2}));
  const std::string whole = directory.write("a:x", one);
  EXPECT_EQ(matrix_bytes(ArrayFile::open(whole, ArrayRole::features).read_matrix(0, 1)), bytes_of<float>({1}));
  directory.write("a", test::zip({{"x.npy", two}}));  // now "a:x" could also be the array x of the file a
  EXPECT_EQ(matrix_bytes(ArrayFile::open(whole, ArrayRole::features).read_matrix(0, 1)), bytes_of<float>({1}));
  const std::string zipped = directory.write("b:c.npz", test::zip({{"x.npy", two}}));
  EXPECT_EQ(matrix_bytes(ArrayFile::open(zipped + ":x", ArrayRole::features).read_matrix(0, 1)), bytes_of<float>({2}));
}

TEST_F(Keys, MembersOfAnArchive) {
  const Bytes one = test::npy("<f4", "(1, 1)", bytes_of<float>({1}));
  const Bytes two = test::npy("<f4", "(1, 1)", bytes_of<float>({2}));
  const auto path =
      directory.write("a.npz", test::zip({{"readme.txt", "hello"}, {"p/q.npy", one}, {"feats.npy", two, true}}));
  EXPECT_EQ(array_names(path), (std::vector<std::string>{"p/q", "feats"}));
  for (const char* key : {":p/q", ":p/q.npy"}) {
    ArrayFile array = ArrayFile::open(path + key, ArrayRole::features);
    EXPECT_EQ(array.name(), path + ":p/q");
    EXPECT_EQ(matrix_bytes(array.read_matrix(0, 1)), bytes_of<float>({1}));
  }
  EXPECT_EQ(matrix_bytes(ArrayFile::open(path, ArrayRole::features).read_matrix(0, 1)), bytes_of<float>({2}));
}

TEST_F(Keys, Listed) {
  EXPECT_EQ(array_names(write({"z", "a", "m"})), (std::vector<std::string>{"z", "a", "m"}));
  EXPECT_EQ(array_names(directory.write("a.npy", test::npy("<f4", "(1, 1)", "abcd"))), std::vector<std::string>{""});
  EXPECT_EQ(array_names(directory.write("e.npz", test::zip({}))), std::vector<std::string>{});
}

TEST_F(Keys, ContentsBeforeExtension) {
  const Bytes array = test::npy("<f4", "(1, 1)", bytes_of<float>({5}));
  for (const char* name : {"a.pt", "b.npz", "c", "d.csv"}) {
    ArrayFile opened = ArrayFile::open(directory.write(name, array), ArrayRole::features);
    EXPECT_EQ(matrix_bytes(opened.read_matrix(0, 1)), bytes_of<float>({5}));
  }
  const auto archive = directory.write("e.npy", test::zip({{"k.npy", array}}));
  EXPECT_EQ(ArrayFile::open(archive, ArrayRole::features).name(), archive + ":k");
  const auto tensors = directory.write("f.bin", test::safetensors({{"t", "F32", "[1, 1]", "abcd"}}));
  EXPECT_EQ(ArrayFile::open(tensors, ArrayRole::features).name(), tensors + ":t");
}

TEST_F(Keys, AnExoticTensorDoesNotHideItsNeighbours) {
  const auto path = directory.write(
      "a.safetensors", test::safetensors({{"q", "F8_E4M3", "[4]", "abcd"}, {"features", "F32", "[1, 1]", "abcd"}}));
  EXPECT_EQ(ArrayFile::open(path, ArrayRole::features).name(), path + ":features");
}

// --- larger than memory

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitizerNeedsAddressSpace = true;
#else
constexpr bool kSanitizerNeedsAddressSpace = false;
#endif

Index address_space_bytes() {
  std::ifstream file("/proc/self/statm");
  Index pages = 0;
  file >> pages;
  return pages * ::sysconf(_SC_PAGESIZE);
}

/// Reads row blocks spread over the whole file and finds the number written in each; 0 when all is well.
int read_blocks(const std::string& path, Index rows, Index cols, Index block, Index step) {
  try {
    ArrayFile array = ArrayFile::open(path, ArrayRole::features);
    if (array.rows() != rows || array.cols() != cols) return 2;
    for (Index first = 0; first + block <= rows; first += step) {
      const MatrixView view = array.read_matrix(first, block);
      const float* values = static_cast<const float*>(view.data);
      for (Index i = 1; i < block * cols; i += 1024) {
        if (values[i] != 0) return 3;
      }
      if (values[0] != static_cast<float>(first + 1)) return 4;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 5;
  }
  return 0;
}

TEST(LargeFile, EightGigabytesInALittleAddressSpace) {
  const TemporaryDirectory directory;
  constexpr Index kRows = 2'097'152, kCols = 1024, kBlock = 4096, kStep = kRows / 32;  // 32 blocks of 16 MiB
  const Bytes header = test::npy("<f4", "(2097152, 1024)", "");
  const std::string path = directory.write("large.npy", header);
  const auto data_at = static_cast<off_t>(header.size());
  ASSERT_EQ(::truncate(path.c_str(), data_at + kRows * kCols * 4), 0) << "sparse files are needed here";
  {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    for (Index first = 0; first < kRows; first += kStep) {
      const auto mark = static_cast<float>(first + 1);
      file.seekp(data_at + first * kCols * 4);
      file.write(reinterpret_cast<const char*>(&mark), sizeof(mark));
    }
    ASSERT_TRUE(file.flush());
  }
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // Less than all blocks together, so that a window left mapped shows.
    const auto limit = static_cast<rlim_t>(address_space_bytes()) + (rlim_t{256} << 20);
    const rlimit space = {limit, limit};
    if (!kSanitizerNeedsAddressSpace && ::setrlimit(RLIMIT_AS, &space) != 0) ::_exit(6);
    const Index before = address_space_bytes();
    const int result = read_blocks(path, kRows, kCols, kBlock, kStep);
    const Index grown = address_space_bytes() - before;
    ::_exit(result == 0 && !kSanitizerNeedsAddressSpace && grown > (Index{64} << 20) ? 7 : result);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(LargeFile, ABatchThatDoesNotFitIsAnExceptionNotACrash) {
  if (kSanitizerNeedsAddressSpace) GTEST_SKIP() << "the sanitizer needs its address space";
  const TemporaryDirectory directory;
  const Bytes header = test::npy("<f4", "(2097152, 1024)", "");
  const std::string path = directory.write("large.npy", header);
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(header.size()) + (off_t{8} << 30)), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto limit = static_cast<rlim_t>(address_space_bytes()) + (rlim_t{256} << 20);
    const rlimit space = {limit, limit};
    if (::setrlimit(RLIMIT_AS, &space) != 0) ::_exit(6);
    try {
      ArrayFile::open(path, ArrayRole::features).read_matrix(0, 2097152);
      ::_exit(1);
    } catch (const std::bad_alloc&) {
      ::_exit(0);
    } catch (...) {
      ::_exit(2);
    }
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace ncollapse
