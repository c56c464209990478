// Small good files, damaged in thousands of seeded ways: each either reads or throws ncollapse::Error, nothing else.
// Meant to be run under AddressSanitizer and UndefinedBehaviorSanitizer too.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "ncollapse/array_file.hpp"
#include "ncollapse/error.hpp"
#include "tests/io/array_writers.hpp"

namespace ncollapse {
namespace {

using test::Bytes;

Bytes counting(std::size_t count) {
  Bytes out(count, '\0');
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<char>(i * 37 % 256);
  return out;
}

void damage(Bytes& file, std::mt19937& random) {
  const auto below = [&](std::size_t bound) { return bound == 0 ? 0 : random() % bound; };
  const auto somewhere = [&] {  // headers are where it matters; those of a zip are at its end
    const std::size_t near = std::min<std::size_t>(file.size(), 160);
    switch (below(3)) {
      case 0: return below(near);
      case 1: return file.size() - near + below(near);
      default: return below(file.size());
    }
  };
  constexpr char kTelling[] = {'\0', '\1', '\x7f', '\x80', '\xff', '0', '9',  '-',
                               '(',  ')',  '{',    '}',    '[',    ',', '\'', '"'};
  for (std::size_t times = 1 + below(4); times > 0 && !file.empty(); --times) {
    const std::size_t at = somewhere();
    switch (below(7)) {
      case 0: file[at] = static_cast<char>(file[at] ^ (1 << below(8))); break;
      case 1: file[at] = static_cast<char>(below(256)); break;
      case 2: file[at] = kTelling[below(sizeof(kTelling))]; break;
      case 3: file.insert(at, 1 + below(9), kTelling[below(sizeof(kTelling))]); break;
      case 4: file.erase(at, 1 + below(9)); break;
      case 5: file.insert(at, file.substr(somewhere(), 1 + below(12))); break;
      default:
        if (below(4) == 0) file.resize(at);
    }
  }
}

void read_all(const std::string& path, ArrayRole role) {
  ArrayFile array = ArrayFile::open(path, role);
  constexpr Index kBatches = 40;
  const Index rows = array.rows(), step = std::max<Index>(1, std::min<Index>(7, rows));
  const auto read = [&](Index first, Index count) {
    unsigned sum = 0;
    if (role == ArrayRole::labels) {
      const LabelView view = array.read_labels(first, count);
      const auto* bytes = static_cast<const unsigned char*>(view.data);
      for (Index i = 0; i < view.size * size_of(view.type); ++i) sum += bytes[i];
    } else {
      const MatrixView view = array.read_matrix(first, count);
      const auto* bytes = static_cast<const unsigned char*>(view.data);
      for (Index i = 0; i < view.rows * view.cols * size_of(view.dtype); ++i) sum += bytes[i];
    }
    volatile unsigned keep = sum;
    static_cast<void>(keep);
  };
  for (Index first = 0, batch = 0; first < rows && batch < kBatches; first += step, ++batch) {
    read(first, std::min(step, rows - first));
  }
  if (rows > 0) read(rows - 1, 1);
  if (rows > 1) read(0, 2);
}

struct Base {
  std::string name;
  Bytes file;

  friend void PrintTo(const Base& base, std::ostream* out) { *out << base.name; }
};

std::vector<Base> bases() {
  const Bytes features = test::npy("<f4", "(9, 3)", counting(108));
  const Bytes labels = test::npy("<u2", "(9,)", counting(18));
  return {{"c.npy", features},
          {"f.npy", test::npy("<f8", "(5, 11)", counting(440), true, 2)},
          {"y.npy", test::npy_with_header("{'descr':'<u8','fortran_order':False,'shape':(1,9)}",
                                          test::bytes_of<std::uint64_t>({0, 1, 2, 3, 4, 5, 6, 7, 8}), 3)},
          {"s.npz", test::zip({{"features.npy", features}, {"labels.npy", labels}})},
          {"d.npz", test::zip({{"features.npy", features, true, false}, {"labels.npy", labels, true}})},
          {"t.safetensors", test::safetensors({{"features", "BF16", "[6, 5]", counting(60)},
                                               {"labels", "I32", "[6]", counting(24)},
                                               {"fc.weight", "F32", "[2, 5]", counting(40)},
                                               {"fc.bias", "F64", "[2]", counting(16)}},
                                              true)}};
}

class Fuzz : public testing::TestWithParam<Base> {};

TEST_P(Fuzz, OnlyErrorsOfTheLibrary) {
  const test::TemporaryDirectory directory;
  const Base& base = GetParam();
  int accepted = 0, refused = 0;
  for (unsigned seed = 0; seed < 1500; ++seed) {
    std::mt19937 random(seed);
    Bytes file = base.file;
    if (seed > 0) damage(file, random);
    const auto path = directory.write(base.name, file);
    for (const ArrayRole role : {ArrayRole::features, ArrayRole::labels, ArrayRole::weights, ArrayRole::bias}) {
      try {
        read_all(path, role);
        ++accepted;
      } catch (const Error& error) {
        ++refused;
        ASSERT_NE(std::string(error.what()).find(base.name), Bytes::npos) << error.what();
        ASSERT_EQ(error.kind(), ErrorKind::data) << error.what();
      } catch (const std::exception& error) {
        FAIL() << "seed " << seed << ": " << error.what();
      }
    }
    try {
      array_names(path);
    } catch (const Error&) {
    } catch (const std::exception& error) {
      FAIL() << "seed " << seed << ": " << error.what();
    }
  }
  EXPECT_GT(accepted, 100);  // the damage is neither fatal nor harmless as a rule
  EXPECT_GT(refused, 1000);
}

INSTANTIATE_TEST_SUITE_P(Files, Fuzz, testing::ValuesIn(bases()), [](const auto& instance) {
  std::string name = instance.param.name;
  std::ranges::replace(name, '.', '_');
  return name;
});

}  // namespace
}  // namespace ncollapse
