// The tools of the tests themselves: a comparison that cannot fail would hide everything.
#include "tests/api/support.hpp"

#include <gtest/gtest-spi.h>

#include <limits>

namespace ncollapse_test {
namespace {

TEST(Support, ComparisonsFailForWrongValuesAndForNan) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  expect_close(1.0 + 1e-12, 1.0, 1e-11, 0);
  expect_close(1e-14, 0.0, 1e-3, 1e-13);
  EXPECT_NONFATAL_FAILURE(expect_close(1.0 + 1e-10, 1.0, 1e-11, 0, "x"), "x: ");
  EXPECT_NONFATAL_FAILURE(expect_close(nan, 1.0, 1.0, 1.0), "nan");
  EXPECT_NONFATAL_FAILURE(expect_close(1.0, nan, 1.0, 1.0), "nan");
  EXPECT_NONFATAL_FAILURE(expect_close(std::numeric_limits<double>::infinity(), 1.0, 1.0, 1.0), "inf");
}

TEST(Support, BitsDifferWhereValuesDoNot) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(same_bits({1.0, nan}, {1.0, nan}));
  EXPECT_FALSE(same_bits({0.0}, {-0.0}));
  EXPECT_FALSE(same_bits({0.0}, {0.0, 0.0}));
}

TEST(Support, SixteenBitPatterns) {
  struct Case {
    Dtype dtype;
    double value;
    std::uint16_t bits;
  };
  for (const Case& c : {Case{Dtype::f16, 1.0, 0x3c00}, Case{Dtype::f16, -2.5, 0xc100}, Case{Dtype::f16, 65504, 0x7bff},
                        Case{Dtype::f16, 6.103515625e-5, 0x0400}, Case{Dtype::f16, 5.9604644775390625e-8, 0x0001},
                        Case{Dtype::f16, 0.333251953125, 0x3555}, Case{Dtype::bf16, 1.0, 0x3f80},
                        Case{Dtype::bf16, -3.140625, 0xc049}, Case{Dtype::bf16, 0.333984375, 0x3eab}}) {
    EXPECT_EQ(decode16(c.bits, c.dtype), c.value);
    const Encoded encoded = encode({c.value}, 1, 1, c.dtype);
    EXPECT_EQ(static_cast<unsigned>(encoded.bytes[0]) | static_cast<unsigned>(encoded.bytes[1]) << 8, c.bits)
        << c.value;
  }
  EXPECT_EQ(rounded(std::vector<double>{1.0 / 3}, Dtype::f16)[0], 0.333251953125);
  EXPECT_EQ(rounded(std::vector<double>{1.0 / 3}, Dtype::bf16)[0], 0.333984375);
  EXPECT_EQ(rounded(std::vector<double>{1.9999}, Dtype::f16)[0], 2.0);
}

TEST(Support, SplitsKeepEveryRowOnce) {
  const Samples all = make_samples({{5, 3, 0, 4}, 2, {1.0}, 1.0, 0.0, 1});
  const auto [first, second] = split(all, {2, 3, 0, 9});
  EXPECT_EQ(first.rows(), 9);
  EXPECT_EQ(second.rows(), 3);
  EXPECT_EQ(second.labels, (std::vector<std::int64_t>{0, 0, 0}));
}

}  // namespace
}  // namespace ncollapse_test
