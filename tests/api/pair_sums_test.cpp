// Statistics over pairs of rows on the CPU, in double and with products in single precision, against plain arithmetic.
#include "tests/cuda/pair_sums.hpp"

#include "host/moments.hpp"

namespace ncollapse::test {
namespace {

/// Two roundings of rows, sums of so many terms, and what double adds: host/cpu/pairs.cpp.
double single_error(Index dim) { return static_cast<double>(std::min<Index>(dim, 4096) + 4) * 0x1p-24; }

class CpuPairSums : public testing::TestWithParam<int> {
 protected:
  std::shared_ptr<Backend> backend_ = open_cpu_backend({.threads = GetParam()});
};
INSTANTIATE_TEST_SUITE_P(Threads, CpuPairSums, testing::Values(1, 3));

std::vector<std::pair<Index, Index>> shapes() {
  std::vector<std::pair<Index, Index>> list{{2, 1}, {2, 3}, {9, 1}, {33, 17}, {40, 5}, {31, 257}};
  if (!kSmall) list.insert(list.end(), {{300, 17}, {150, 64}});
  return list;
}

TEST_P(CpuPairSums, Exact) {
  for (const auto& [rows, d] : shapes()) {
    SCOPED_TRACE(testing::Message() << rows << " x " << d);
    const Grid A = Grid::random(rows, d, 21);
    PairQuery query;
    expect_pairs(*backend_, A, query);
    query.offsets = Grid::random(1, rows, 22).values;
    query.variances.assign(static_cast<std::size_t>(rows), 0.5);
    expect_pairs(*backend_, A, query);
  }
  PairQuery query;
  const Grid A = degenerate_rows();
  query.variances.assign(static_cast<std::size_t>(A.rows), 0.5);
  expect_pairs(*backend_, A, query);
}

TEST_P(CpuPairSums, FastKeepsItsBound) {
  expect_fast_pairs(*backend_, shapes(), single_error);
  EXPECT_LE(single_error(Index{1} << 30), kFastError);
}

// Products of more than 4096 terms are added in double.
TEST_P(CpuPairSums, FastInPieces) {
  PairQuery query;
  query.variances.assign(5, 0.5);
  expect_pairs(*backend_, Grid::random(5, 8195, 30), query, single_error(8195));
}

TEST_P(CpuPairSums, FastRepeatsItsBits) { expect_same_pair_bits(*backend_, kSmall ? 50 : 300, 17); }

// Tiles depend on the number of rows alone.
TEST(CpuPairs, ThreadsDoNotChangeBits) {
  const Grid A = Grid::random(kSmall ? 70 : 290, 13, 31);
  PairQuery query;
  for (Index j = 0; j < A.rows; ++j) query.norms.push_back(static_cast<double>(size(A, j)));
  query.gram_norm = query.frame_norm = 3;
  query.variances.assign(static_cast<std::size_t>(A.rows), 0.5);
  for (const bool fast : {false, true}) {
    query.fast = fast;
    const auto one = open_cpu_backend({.threads = 1}), three = open_cpu_backend({.threads = 3});
    const PairSums a = one->pair_sums(A.on(*one), query), b = three->pair_sums(A.on(*three), query);
    EXPECT_EQ(a.cos_square_sum, b.cos_square_sum);
    EXPECT_EQ(a.log_sum, b.log_sum);
    EXPECT_EQ(a.cdnv_sum, b.cdnv_sum);
    EXPECT_EQ(a.nearest_squared, b.nearest_squared);
  }
}

}  // namespace
}  // namespace ncollapse::test
