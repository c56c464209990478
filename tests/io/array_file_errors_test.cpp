// ArrayFile on everything that is not as it should be: one DataError that names the file, says what is wrong with the
// numbers at hand, and hints at what would be right.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "ncollapse/array_file.hpp"
#include "ncollapse/error.hpp"
#include "tests/io/array_writers.hpp"

namespace ncollapse {
namespace {

using test::Bytes;
using test::bytes_of;

class ArrayFileErrors : public testing::Test {
 protected:
  using Parts = std::vector<std::string>;

  template <class Action>
  static void expect_data_error(Action action, const Parts& parts, const std::string& hint = "") {
    try {
      action();
      ADD_FAILURE() << "no error; expected: " << testing::PrintToString(parts);
    } catch (const DataError& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.kind(), ErrorKind::data);
      for (const std::string& part : parts) {
        EXPECT_NE(message.find(part), Bytes::npos) << "no \"" << part << "\" in: " << message;
      }
      EXPECT_NE(error.hint().find(hint), Bytes::npos) << "no \"" << hint << "\" in hint: " << error.hint();
    }
  }

  /// Opening fails, and the message begins with the path or path:key.
  static void expect_refused(const std::string& spec, ArrayRole role, Parts parts, const std::string& hint = "") {
    parts.insert(parts.begin(), spec.substr(0, spec.find(':')));
    expect_data_error([&] { ArrayFile::open(spec, role); }, parts, hint);
  }

  void npy_refused(const std::string& header, const Parts& parts, const std::string& hint = "") const {
    SCOPED_TRACE(header);
    const auto path = directory.write("a.npy", test::npy_with_header(header, Bytes(64, '\0')));
    expect_refused(path, ArrayRole::features, parts, hint);
  }

  void safetensors_refused(const std::string& header, const Parts& parts, std::size_t data_bytes = 64) const {
    SCOPED_TRACE(header);
    const auto path = directory.write("a.safetensors", test::safetensors_with_header(header, Bytes(data_bytes, '\0')));
    expect_refused(path, ArrayRole::features, parts);
  }

  test::TemporaryDirectory directory;
};

// --- the file itself

TEST_F(ArrayFileErrors, NoSuchFile) {
  expect_refused(directory.path("none.npy"), ArrayRole::features, {"no such file"});
  expect_refused(directory.path("none.npz") + ":features", ArrayRole::features, {"no such file", "none.npz'"},
                 "path:key");
  expect_refused("", ArrayRole::features, {"no such file"});
  expect_refused(":", ArrayRole::features, {"no such file"});
  expect_data_error([&] { array_names(directory.path("none.npz")); }, {"none.npz", "no such file"});
}

TEST_F(ArrayFileErrors, NotARegularFile) {
  expect_refused(directory.path(""), ArrayRole::features, {"is a directory"});
  const auto pipe = directory.path("pipe.npy");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_refused(pipe, ArrayRole::features, {"not a regular file"}, "save it to a file");
  expect_refused("/dev/null", ArrayRole::features, {"not a regular file"});
}

TEST_F(ArrayFileErrors, NotReadable) {
  const auto path = directory.write("a.npy", test::npy("<f4", "(1, 1)", "abcd"));
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  if (::access(path.c_str(), R_OK) == 0) GTEST_SKIP() << "this user may read everything";
  expect_refused(path, ArrayRole::features, {"cannot be opened", "ermission denied"});
}

TEST_F(ArrayFileErrors, EmptyFile) {
  for (const char* name : {"a.npy", "a.npz", "a.safetensors", "a"}) {
    expect_refused(directory.write(name, ""), ArrayRole::features, {"is empty (0 bytes)"});
  }
}

TEST_F(ArrayFileErrors, ForeignFormatsByExtension) {
  const std::pair<const char*, const char*> cases[] = {
      {"x.pt", "torch.load("},      {"x.pth", "torch.load("}, {"x.ckpt", "torch.load("}, {"x.pkl", "pickle.load("},
      {"x.pickle", "pickle.load("}, {"x.h5", "h5py.File("},   {"x.HDF5", "h5py.File("},  {"x.mat", "scipy.io.loadmat("},
      {"x.csv", "np.loadtxt("},     {"x.tsv", "np.loadtxt("}, {"x.txt", "np.loadtxt("},  {"x.parquet", "pandas"},
      {"x.npy.gz", "gunzip"}};
  for (const auto& [name, hint] : cases) {
    const auto path = directory.write(name, "1,2,3\n4,5,6\n");
    expect_refused(path, ArrayRole::features, {"cannot be read"}, hint);
    expect_refused(path, ArrayRole::features, {"cannot be read"}, path);  // the command is ready to be pasted
    expect_data_error([&] { array_names(path); }, {path, "cannot be read"}, hint);
  }
}

TEST_F(ArrayFileErrors, ForeignFormatsByContent) {
  using namespace std::string_literals;
  for (const char* name : {"a.npy", "a.npz", "a.safetensors", "a.dat", "a"}) {
    expect_refused(directory.write(name, "\x89HDF\r\n\x1a\n and more"), ArrayRole::features, {"HDF5"}, "h5py");
    expect_refused(directory.write(name, "\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94."s), ArrayRole::features, {"pickle"},
                   "pickle.load");
    expect_refused(directory.write(name, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02"s),
                   ArrayRole::features, {"PyTorch"}, "torch.load");
    expect_refused(directory.write(name, "MATLAB 5.0 MAT-file, Platform"), ArrayRole::features, {"MATLAB"}, "loadmat");
    expect_refused(directory.write(name, test::zip({{"archive/data.pkl", "x"}, {"archive/data/0", "y"}})),
                   ArrayRole::features, {"PyTorch"}, "torch.load");
  }
  expect_data_error(
      [&] {
        array_names(directory.write("m.bin", test::zip({{"archive/data.pkl", "x"}})));
      },
      {"m.bin", "PyTorch"}, "torch.load");
}

TEST_F(ArrayFileErrors, UnknownFormat) {
  expect_refused(directory.write("a.dat", "\x01\x02hello"), ArrayRole::features, {"not known", "'\\x01\\x02hello'"},
                 ".npy, .npz and .safetensors");
  expect_refused(directory.write("a.npy", "hello world, this is text"), ArrayRole::features,
                 {"is not a .npy array", "'hello '", "\\x93NUMPY"});
  expect_refused(directory.write("a.npz", "hello world, this is text"), ArrayRole::features,
                 {"not a complete zip archive"});
  expect_refused(directory.write("a.safetensors", "hello world, this is text"), ArrayRole::features,
                 {"not a .safetensors file"});
}

// --- .npy headers

TEST_F(ArrayFileErrors, TruncatedNpyHeader) {
  const Bytes whole = test::npy("<f4", "(2, 2)", bytes_of<float>({1, 2, 3, 4}));
  const auto refused_after = [&](std::size_t bytes, const Parts& parts) {
    SCOPED_TRACE(bytes);
    expect_refused(directory.write("a.npy", whole.substr(0, bytes)), ArrayRole::features, parts);
  };
  for (const std::size_t bytes : {1, 5, 6, 7, 8, 9}) {
    refused_after(bytes, {"truncated .npy header", std::to_string(bytes) + " bytes", "10"});
  }
  refused_after(10, {"truncated .npy header", "118 bytes are promised, 0 are there"});
  refused_after(100, {"truncated .npy header", "118 bytes are promised, 90 are there"});
  const Bytes second = test::npy("<f4", "(2, 2)", "", false, 2);
  expect_refused(directory.write("a.npy", second.substr(0, 11)), ArrayRole::features,
                 {"truncated .npy header", "11 bytes", "12"});
}

TEST_F(ArrayFileErrors, NpyVersion) {
  Bytes file = test::npy("<f4", "(1, 1)", "abcd");
  for (const auto& [major, minor] : {std::pair{0, 0}, {4, 0}, {1, 1}, {255, 255}}) {
    file[6] = static_cast<char>(major);
    file[7] = static_cast<char>(minor);
    expect_refused(directory.write("a.npy", file), ArrayRole::features,
                   {"version " + std::to_string(major) + "." + std::to_string(minor)}, "1.0, 2.0 and 3.0");
  }
}

TEST_F(ArrayFileErrors, NpyHeaderLengthBeyondReason) {
  Bytes file = test::npy("<f4", "(1, 1)", "abcd", false, 2);
  file[8] = file[9] = file[10] = file[11] = '\xff';
  expect_refused(directory.write("a.npy", file), ArrayRole::features, {"broken .npy header", "4294967295"});
}

TEST_F(ArrayFileErrors, BrokenNpyHeaders) {
  const std::string good = "'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)";
  npy_refused("", {"broken .npy header", "expected '{'"});
  npy_refused("{" + good, {"broken .npy header", "expected '}'"});
  npy_refused("{" + good + "} x", {"expected nothing more"});
  npy_refused("{" + good + "}}", {"expected nothing more"});
  npy_refused("{}", {"no 'descr'"});
  npy_refused("{'descr': '<f4', 'shape': (2, 2)}", {"no 'fortran_order'"});
  npy_refused("{'descr': '<f4', 'fortran_order': False}", {"no 'shape'"});
  npy_refused("{" + good + ", 'extra': 1}", {"unexpected or repeated key 'extra'"});
  npy_refused("{" + good + ", 'descr': '<f8'}", {"unexpected or repeated key 'descr'"});
  npy_refused("{descr: '<f4'}", {"expected a string"});
  npy_refused("{'descr' '<f4'}", {"expected ':'"});
  npy_refused("{'descr: <f4}", {"expected a closed string"});
  npy_refused("{'descr': '<f4'; 'shape': (2, 2)}", {"expected '}'"});
  npy_refused("{'descr': 4}", {"expected a string"});
  npy_refused("{'fortran_order': 0}", {"expected True or False"});
  npy_refused("{'fortran_order': true}", {"expected True or False"});
  npy_refused("{'shape': 2, 2}", {"expected '('"});
  npy_refused("{'shape': [2, 2]}", {"expected '('"});
  npy_refused("{'shape': (2, 2}", {"expected ')'"});
  npy_refused("{'shape': (2.5, 2)}", {"expected ')'"});
  npy_refused("{'shape': (,)}", {"expected a dimension"});
  npy_refused("{'shape': (None, 2)}", {"expected a dimension"});
  npy_refused("{'shape': (-1, 2)}", {"negative dimension"});
  npy_refused("{'shape': (9223372036854775808, 2)}", {"does not fit 64 bits"});
  npy_refused("{'shape': (99999999999999999999999, 2)}", {"does not fit 64 bits"});
  npy_refused(std::string("{'descr'\0: '<f4'}", 17), {"expected ':'", "\\x00"});
  npy_refused(std::string(5000, '('), {"broken .npy header"});
}

TEST_F(ArrayFileErrors, NpyShapesThatOverflow) {
  for (const char* shape : {"(4611686018427387904, 2)", "(3037000500, 3037000500)", "(9223372036854775807, 1)",
                            "(0, 4611686018427387904)", "(4611686018427387904, 0)"}) {
    const std::string extents(shape);
    npy_refused("{'descr': '<f4', 'fortran_order': False, 'shape': " + extents + "}",
                {extents, "does not fit 64 bits"});
  }
}

TEST_F(ArrayFileErrors, NpyElementTypes) {
  const auto header = [](const std::string& descr) {
    return "{'descr': " + descr + ", 'fortran_order': False, 'shape': (2, 2)}";
  };
  npy_refused(header("'>f4'"), {"'>f4'", "big endian"}, "newbyteorder('<')");
  npy_refused(header("'>i8'"), {"'>i8'", "big endian"}, "newbyteorder('<')");
  npy_refused(header("'|O'"), {"'|O'", "pickled Python objects"}, "np.stack");
  npy_refused(header("'<c8'"), {"'<c8'", "complex"}, "astype");
  npy_refused(header("'<U7'"), {"'<U7'", "text"});
  npy_refused(header("'|S3'"), {"'|S3'", "text"});
  npy_refused(header("'<M8[ns]'"), {"'<M8[ns]'", "dates"});
  npy_refused(header("'<f16'"), {"'<f16'", "not supported"}, "astype('float32')");
  npy_refused(header("'|V1'"), {"'|V1'", "not supported"});
  npy_refused(header("''"), {"''", "not supported"});
  npy_refused(header("'<'"), {"'<'", "not supported"});
  npy_refused(header("[('a', '<f4'), ('b', '<i8')]"), {"structured"}, "['field']");
  npy_refused(header("('<f4', (3,))"), {"structured"});
}

TEST_F(ArrayFileErrors, TruncatedNpyData) {
  const auto path = directory.write("a.npy", test::npy("<f4", "(1000, 10)", Bytes(39'999, '\0')));
  expect_refused(path, ArrayRole::features, {"truncated", "(1000, 10)", "f32", "40000 bytes", "39999 are there"},
                 "cut off");
  expect_refused(directory.write("b.npy", test::npy("<i8", "(3,)", "")), ArrayRole::labels,
                 {"truncated", "(3,)", "i64", "24 bytes", "0 are there"});
}

// --- shapes and types against roles

TEST_F(ArrayFileErrors, Rank) {
  const auto with_shape = [&](const std::string& shape) {
    return directory.write("a.npy", test::npy("<f4", shape, Bytes(256, '\0')));
  };
  for (const ArrayRole role : {ArrayRole::features, ArrayRole::weights, ArrayRole::bias, ArrayRole::labels}) {
    expect_refused(with_shape("()"), role, {"shape ()"});
    expect_refused(with_shape("(2, 3, 4)"), role, {"3 dimensions", "(2, 3, 4)"}, "reshape");
    expect_refused(with_shape("(1, 1, 1, 1, 1, 1, 1, 1)"), role, {"8 dimensions"});
  }
  expect_refused(with_shape("(6,)"), ArrayRole::features, {"features", "2 dimensions", "(6,)"}, "reshape(-1, d)");
  expect_refused(with_shape("(6,)"), ArrayRole::weights, {"weights", "2 dimensions", "(6,)"}, "bias?");
  expect_refused(with_shape("(2, 3)"), ArrayRole::bias, {"bias must be a vector", "(2, 3)"});
  expect_refused(with_shape("(3, 0)"), ArrayRole::features, {"rows without values", "(3, 0)"});
  const auto one_hot = directory.write("y.npy", test::npy("<i8", "(4, 2)", Bytes(64, '\0')));
  expect_refused(one_hot, ArrayRole::labels, {"labels must be a vector", "(4, 2)"}, "argmax(1)");
}

TEST_F(ArrayFileErrors, TypeAgainstRole) {
  const auto floats = directory.write("f.npy", test::npy("<f4", "(4,)", Bytes(16, '\0')));
  expect_refused(floats, ArrayRole::labels, {"f32", "labels must be integers"}, "labels.astype('int64')");
  const auto halves = directory.write("h.npy", test::npy("<V2", "(4,)", Bytes(8, '\0')));
  expect_refused(halves, ArrayRole::labels, {"bf16", "labels must be integers"});
  const auto integers = directory.write("i.npy", test::npy("<i8", "(2, 2)", Bytes(32, '\0')));
  expect_refused(integers, ArrayRole::features, {"i64", "features must be"}, "features.astype('float32')");
  expect_refused(integers, ArrayRole::weights, {"i64", "weights must be"}, "weights.astype('float32')");
  const auto flags = directory.write("b.npy", test::npy("|b1", "(2,)", Bytes(2, '\0')));
  expect_refused(flags, ArrayRole::bias, {"bool", "bias must be"}, "bias.astype('float32')");
}

TEST_F(ArrayFileErrors, LabelsBeyondSigned64Bits) {
  const auto path = directory.write("y.npy", test::npy("<u8", "(4,)", bytes_of<std::uint64_t>({1, 2, 3, 1ULL << 63})));
  ArrayFile labels = ArrayFile::open(path, ArrayRole::labels);
  EXPECT_EQ(labels.read_labels(0, 3).size, 3);
  expect_data_error([&] { labels.read_labels(2, 2); }, {path, "9223372036854775808", "row 3"});
}

TEST_F(ArrayFileErrors, WrongCalls) {
  const auto path = directory.write("a.npy", test::npy("<f4", "(10, 2)", Bytes(80, '\0')));
  ArrayFile array = ArrayFile::open(path, ArrayRole::features);
  for (const auto& [first, count] :
       {std::pair<Index, Index>{-1, 2}, {0, 11}, {10, 1}, {11, 0}, {5, -1}, {INT64_MAX, INT64_MAX}, {5, INT64_MAX}}) {
    EXPECT_THROW(array.read_matrix(first, count), UsageError) << first << " + " << count;
  }
  EXPECT_THROW(array.read_labels(0, 1), UsageError);
  const auto labels = directory.write("y.npy", test::npy("<i8", "(3,)", Bytes(24, '\0')));
  EXPECT_THROW(ArrayFile::open(labels, ArrayRole::labels).read_matrix(0, 1), UsageError);
}

// --- keys

TEST_F(ArrayFileErrors, Keys) {
  const auto npy = directory.write("a.npy", test::npy("<f4", "(1, 1)", "abcd"));
  expect_refused(npy + ":features", ArrayRole::features, {"one array", "no key 'features'"}, "leave ':features' out");

  std::vector<test::TensorBytes> tensors;
  for (int i = 10; i < 23; ++i) tensors.push_back({"layer" + std::to_string(i) + ".weight", "F32", "[1, 1]", "abcd"});
  const auto many = directory.write("many.safetensors", test::safetensors(tensors));
  expect_refused(many, ArrayRole::weights,
                 {"which array are the weights?", "layer10.weight", "layer19.weight", "and 3 more"},
                 many + ":layer10.weight");
  expect_refused(many, ArrayRole::features, {"which array are the features?"}, "path:key");
  expect_refused(many + ":nothing", ArrayRole::weights, {"no array 'nothing'", "layer10.weight", "and 3 more"},
                 "path:key");
  expect_refused(many + ":", ArrayRole::weights, {"no array ''"});

  const Bytes array = test::npy("<f4", "(1, 1)", "abcd");
  const auto two = directory.write("two.npz", test::zip({{"arr_0.npy", array}, {"arr_1.npy", array}}));
  expect_refused(two, ArrayRole::labels, {"which array are the labels?", "'arr_0', 'arr_1'"}, two + ":arr_0");
  expect_refused(directory.write("none.npz", test::zip({})), ArrayRole::features, {"holds no arrays"});
  expect_refused(directory.write("text.npz", test::zip({{"a.txt", "hello"}})), ArrayRole::features,
                 {"holds no arrays"});
  expect_refused(directory.write("none.safetensors", test::safetensors({})), ArrayRole::features, {"holds no arrays"});
}

// --- .npz

TEST_F(ArrayFileErrors, BrokenArchives) {
  const Bytes array = test::npy("<f4", "(1000, 10)", Bytes(40'000, 'a'));
  const Bytes whole = test::zip({{"x.npy", array, true}, {"y.npy", array}});
  for (const std::size_t bytes : {std::size_t{4}, std::size_t{100}, whole.size() / 2, whole.size() - 1}) {
    expect_refused(directory.write("a.npz", whole.substr(0, bytes)), ArrayRole::features, {"zip archive"}, "cut off");
  }
  const auto inner = directory.write("i.npz", test::zip({{"x.npy", array.substr(0, 20'000), true}}));
  expect_refused(inner, ArrayRole::features, {"i.npz:x", "truncated", "40000 bytes", "19872 are there"});
  const auto text = directory.write("t.npz", test::zip({{"x.npy", "this is no array"}}));
  expect_refused(text, ArrayRole::features, {"t.npz:x", "is not a .npy array"});
  const auto empty = directory.write("e.npz", test::zip({{"x.npy", ""}}));
  expect_refused(empty, ArrayRole::features, {"e.npz:x", "truncated .npy header", "0 bytes"});
}

TEST_F(ArrayFileErrors, ArchivesThatCannotBeRead) {
  const Bytes array = test::npy("<f4", "(2, 2)", Bytes(16, 'a'));
  test::Member bzip2{"x.npy", array};
  bzip2.method = 12;
  expect_refused(directory.write("b.npz", test::zip({bzip2})), ArrayRole::features, {"b.npz:x", "method 12"},
                 "np.savez");
  test::Member encrypted{"x.npy", array};
  encrypted.flags = 1;
  expect_refused(directory.write("e.npz", test::zip({encrypted})), ArrayRole::features, {"e.npz:x", "encrypted"},
                 "password");
}

TEST_F(ArrayFileErrors, ArchivesWithTwoMembersOfOneName) {
  const Bytes array = test::npy("<f4", "(1, 1)", "abcd"), other = test::npy("<f4", "(1, 1)", "efgh");
  const auto path = directory.write("d.npz", test::zip({{"x.npy", array}, {"y.npy", array}, {"x.npy", other}}));
  expect_refused(path + ":x", ArrayRole::features, {"d.npz", "two members", "'x.npy'"});
}

TEST_F(ArrayFileErrors, ArchivesThatLieAboutSizes) {
  const Bytes array = test::npy("<f4", "(1000000000, 1000)", Bytes(16, 'a'));
  for (const bool deflated : {false, true}) {
    test::Member member{"x.npy", array, deflated};
    member.claimed_size = array.size() + 4'000'000'000'000;
    const auto path = directory.write("a.npz", test::zip({member}));
    expect_refused(path, ArrayRole::features, {"a.npz", std::to_string(member.claimed_size)});
  }
  // A lie small enough to be believed at first shows where the data ends.
  test::Member member{"x.npy", test::npy("<f4", "(1000, 10)", Bytes(39'000, 'a')), true};
  member.claimed_size = member.content.size() + 1'000;
  ArrayFile array_file = ArrayFile::open(directory.write("l.npz", test::zip({member})), ArrayRole::features);
  EXPECT_EQ(array_file.read_matrix(0, 500).rows, 500);
  expect_data_error([&] { array_file.read_matrix(500, 500); }, {"l.npz:x", "damaged", "39128", "40128"});
  EXPECT_EQ(array_file.read_matrix(0, 500).rows, 500);  // what is there can still be read
}

TEST_F(ArrayFileErrors, DamagedMembers) {
  for (const bool deflated : {false, true}) {
    Bytes values(40'000, '\0');
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<char>(i * i % 251);
    Bytes file = test::zip({{"x.npy", test::npy("<f4", "(1000, 10)", values), deflated}});
    file[file.size() / 2] = static_cast<char>(file[file.size() / 2] ^ 0x10);
    ArrayFile array = ArrayFile::open(directory.write("a.npz", file), ArrayRole::features);
    expect_data_error(
        [&] {
          for (Index first = 0; first < 1000; first += 100) array.read_matrix(first, 100);
        },
        {"a.npz:x", "damaged at byte", "40128"});
  }
}

// A seek leaves the archive's own checksum aside; what is stored and damaged is found all the same.
TEST_F(ArrayFileErrors, DamagedMembersThatAreReadOutOfOrder) {
  Bytes values(400'000, '\0');
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<char>(i * i % 251);
  Bytes file = test::zip({{"x.npy", test::npy("<f4", "(10000, 10)", values), false}});
  const auto read = [&](const Bytes& bytes) {
    ArrayFile array = ArrayFile::open(directory.write("a.npz", bytes), ArrayRole::features);
    for (Index first = 10000 - 100; first >= 0; first -= 100) array.read_matrix(first, 100);
  };
  EXPECT_NO_THROW(read(file));
  file[file.size() / 2] = static_cast<char>(file[file.size() / 2] ^ 0x10);
  expect_data_error([&] { read(file); }, {"a.npz:x", "damaged at byte", "400128"});
}

// --- .safetensors

TEST_F(ArrayFileErrors, SafetensorsHeaderLength) {
  const Bytes whole = test::safetensors({{"features", "F32", "[2, 2]", Bytes(16, '\0')}});
  expect_refused(directory.write("a.safetensors", whole.substr(0, 5)), ArrayRole::features,
                 {"truncated .safetensors header", "5 bytes"});
  expect_refused(
      directory.write("a.safetensors", whole.substr(0, 20)), ArrayRole::features,
      {"truncated .safetensors header", std::to_string(whole.size() - 8 - 16) + " bytes are promised, 12 are there"});
  Bytes huge = whole;
  huge[7] = '\x7f';
  expect_refused(directory.write("a.safetensors", huge), ArrayRole::features,
                 {"header of 9151314442816847", "100000000"});
  Bytes negative = whole;
  for (std::size_t i = 0; i < 8; ++i) negative[i] = '\xff';
  expect_refused(directory.write("a.safetensors", negative), ArrayRole::features, {"18446744073709551615"});
}

TEST_F(ArrayFileErrors, SafetensorsJson) {
  safetensors_refused("", {"not JSON"});
  safetensors_refused("{", {"not JSON"});
  safetensors_refused(R"({"a": })", {"not JSON"});
  safetensors_refused("{\"\xff\xfe\": 1}", {"not JSON"});
  safetensors_refused("[1, 2]", {"not a JSON object"});
  safetensors_refused("null", {"not a JSON object"});
  safetensors_refused(R"({"a": 5})", {"tensor 'a'", "not an object"});
  safetensors_refused(std::string(100'000, '['), {"nested too deeply"});
  safetensors_refused(R"({"a":{"b":{"c":{"d":{"e":1}}}}})", {"nested too deeply"});
  const std::string one = R"({"dtype":"F32","shape":[2,2],"data_offsets":[0,16]})";
  safetensors_refused(R"({"a":)" + one + R"(,"a":)" + one + "}", {"two tensors", "'a'"});
}

TEST_F(ArrayFileErrors, SafetensorsEntries) {
  const auto entry = [](const std::string& fields) { return R"({"features":{)" + fields + "}}"; };
  safetensors_refused(entry(R"("shape":[2,2],"data_offsets":[0,16])"), {"'features'", "dtype"});
  safetensors_refused(entry(R"("dtype":3,"shape":[2,2],"data_offsets":[0,16])"), {"'features'", "dtype"});
  for (const char* shape : {"", R"("shape":4,)", R"("shape":[2,-2],)", R"("shape":[2,2.0],)", R"("shape":["2",2],)",
                            R"("shape":[18446744073709551615,2],)", R"("shape":[1e3],)", R"("shape":null,)"}) {
    safetensors_refused(entry(R"("dtype":"F32",)" + std::string(shape) + R"("data_offsets":[0,16])"),
                        {"'features'", "shape"});
  }
  for (const char* offsets :
       {"[]", "[0]", "[0,16,16]", "[16,0]", "[-16,0]", "[0.5,16]", "{}", "[0,\"16\"]", "[0,18446744073709551615]"}) {
    safetensors_refused(entry(R"("dtype":"F32","shape":[2,2],"data_offsets":)" + std::string(offsets)),
                        {"'features'", "data_offsets"});
  }
  safetensors_refused(entry(R"("dtype":"F32","shape":[2,2],"data_offsets":[0,12])"),
                      {"'features'", "(2, 2)", "F32", "16 bytes", "span 12"});
  safetensors_refused(entry(R"("dtype":"BF16","shape":[2,2],"data_offsets":[0,16])"), {"8 bytes", "span 16"});
  safetensors_refused(entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"),
                      {"(4294967296, 4294967296)", "does not fit 64 bits"});
  safetensors_refused(entry(R"("dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4])"), {"'F8_E4M3'", "not supported"});
  safetensors_refused(entry(R"("dtype":"F32","shape":[],"data_offsets":[0,4])"), {"shape ()"});
}

TEST_F(ArrayFileErrors, SafetensorsTruncatedData) {
  safetensors_refused(R"({"features":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}})",
                      {"'features'", "ends at byte 64", "holds 63 bytes"}, 63);
  // The tensor asked for is whole, but the file is not: better said now than by a later reader.
  safetensors_refused(R"({"features":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},)"
                      R"("z":{"dtype":"F32","shape":[4,4],"data_offsets":[4,68]}})",
                      {"'z'", "ends at byte 68", "holds 64 bytes"});
}

TEST_F(ArrayFileErrors, SafetensorsOverlap) {
  safetensors_refused(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                      R"("features":{"dtype":"F32","shape":[2,2],"data_offsets":[12,28]}})",
                      {"'a' and 'features' overlap", "byte 12"});
}

// --- files that change under the reader

TEST_F(ArrayFileErrors, TruncatedAfterOpening) {
  const Bytes values(1'000'000, '\0');
  const std::pair<const char*, Bytes> files[] = {
      {"c.npy", test::npy("<f4", "(25000, 10)", values)},
      {"f.npy", test::npy("<f4", "(25000, 10)", values, true)},
      {"t.safetensors", test::safetensors({{"features", "F32", "[25000, 10]", values}})},
      {"o.safetensors", test::safetensors({{"features", "F32", "[25000, 10]", values}}, true)}};
  for (const auto& [name, bytes] : files) {
    SCOPED_TRACE(name);
    const auto path = directory.write(name, bytes);
    ArrayFile array = ArrayFile::open(path, ArrayRole::features);
    EXPECT_EQ(array.read_matrix(0, 100).rows, 100);
    ASSERT_EQ(::truncate(path.c_str(), 500'000), 0);
    const Parts parts = {name, "has changed since it was opened", std::to_string(bytes.size()), "500000"};
    expect_data_error([&] { array.read_matrix(20'000, 100); }, parts);
    expect_data_error([&] { array.read_matrix(0, 25'000); }, parts);
    ASSERT_EQ(::truncate(path.c_str(), 0), 0);
    expect_data_error([&] { array.read_matrix(0, 1); }, {name, "has changed since it was opened"});
  }
}

TEST_F(ArrayFileErrors, ArchiveTruncatedAfterOpening) {
  Bytes values(4'000'000, '\0');
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<char>(i * i % 8191);
  for (const bool deflated : {false, true}) {
    const auto path =
        directory.write("a.npz", test::zip({{"x.npy", test::npy("<f4", "(100000, 10)", values), deflated}}));
    ArrayFile array = ArrayFile::open(path, ArrayRole::features);
    EXPECT_EQ(array.read_matrix(0, 100).rows, 100);
    ASSERT_EQ(::truncate(path.c_str(), 100'000 / (deflated ? 100 : 1)), 0);
    expect_data_error([&] { array.read_matrix(0, 100'000); }, {"a.npz:x", "damaged"});
  }
}

}  // namespace
}  // namespace ncollapse
