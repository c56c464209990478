#include "bench/matrix.hpp"

namespace ncollapse::bench {

std::string_view to_string(Sizes sizes) {
  switch (sizes) {
    case Sizes::equal: return "equal";
    case Sizes::zipf: return "zipf";
    case Sizes::power_law: return "power law";
    case Sizes::one_dominant: return "99% in one";
    case Sizes::one_to_999: return "1:999";
    case Sizes::singletons: return "singletons";
  }
  return "?";
}

const std::vector<Operation>& operations() {
  static const std::vector<Operation> all{
      {"sums", "class sums and variance traces: Accumulator::add, statistics traces"},
      {"scatter", "the same and the pooled scatter: Accumulator::add, statistics full"},
      {"scatter_fast", "the same in Precision::fast"},
      {"decisions", "nearest centre and classifier, exactly: DecisionCounter::add, rows far from their means"},
      {"decisions_collapsed", "the same where rows are near their means and need no scores"},
      {"pairs", "cosines, distances and CDNV over all pairs of class means"},
      {"pairs_fast", "the same in Precision::fast"},
      {"eigen", "symmetric eigenproblem with vectors, order min(K, d)"},
      {"svd", "thin singular value decomposition, K x d"},
      {"measure", "Accumulator::finish and every metric that needs no second pass"},
      {"end_to_end", "accumulate, finish, decide, measure"},
      {"add_overhead", "time of the host in one Accumulator::add of 64 rows (GPU only)"},
  };
  return all;
}

const std::vector<Case>& matrix() {
  using enum Sizes;
  using enum Dtype;
  // Decisions come last: they have samples of their own.
  const std::vector<std::string_view> all{"sums",       "scatter", "scatter_fast", "pairs",
                                          "pairs_fast", "measure", "end_to_end",   "decisions"};
  static const std::vector<Case> cases{
      {{"C1", 50'000, 10, 512, bf16, equal, false, 1.0},
       "CIFAR-10",
       {"sums", "scatter", "scatter_fast", "measure", "end_to_end", "add_overhead", "decisions",
        "decisions_collapsed"}},
      {{"C1-f32", 50'000, 10, 512, f32, equal, false, 1e-4},
       "CIFAR-10, collapsed",
       {"sums", "scatter", "end_to_end", "decisions", "decisions_collapsed"}},
      {{"I1", 1'281'167, 1000, 2048, bf16},
       "ImageNet",
       {"sums", "scatter", "scatter_fast", "pairs", "pairs_fast", "eigen", "svd", "measure", "end_to_end",
        "decisions_collapsed", "decisions"}},
      {{"I1-sorted", 1'281'167, 1000, 2048, bf16, equal, true}, "ImageNet, sorted by class", {"sums", "scatter"}},
      {{"I1-f32", 1'281'167, 1000, 2048, f32},
       "ImageNet in single precision",
       {"sums", "scatter", "scatter_fast", "decisions_collapsed", "decisions"}},
      {{"I2", 500'000, 8142, 2048, f16, power_law},
       "iNaturalist",
       {"sums", "scatter", "pairs", "pairs_fast", "decisions"}},
      {{"G1", 1'000'000, 50'257, 768, bf16, zipf}, "GPT-2's vocabulary", all},
      {{"L1", 1'000'000, 128'256, 4096, bf16, zipf},
       "a large language model's vocabulary",
       {"sums", "scatter", "scatter_fast", "pairs", "pairs_fast", "eigen", "decisions"}},
      {{"L2", 1'048'576, 128'256, 4096, bf16, zipf, false, 1e-2, 65'536},
       "the same in 16 batches",
       {"sums", "scatter"}},
      {{"S1", 4'000'000, 1000, 1024, bf16, one_dominant}, "99 % of the samples in one class", {"sums"}},
      {{"S1-equal", 4'000'000, 1000, 1024, bf16, equal}, "the same without skew", {"sums"}},
      {{"S2", 262'144, 262'144, 1024, f32, singletons}, "one sample a class", {"sums", "pairs", "pairs_fast"}},
      {{"W1", 1'000'000, 2, 8192, bf16, one_to_999},
       "two classes, wide",
       {"sums", "scatter", "scatter_fast", "decisions_collapsed", "decisions"}},
      {{"N1", 20'000'000, 262'144, 64, f32}, "many narrow classes", {"sums", "decisions"}},
      {{"P1", 1'000'000, 1000, 2048, bf16, equal, false, 1e-2, 0, true},
       "features in host memory (GPU only)",
       {"sums", "scatter"}},
  };
  return cases;
}

}  // namespace ncollapse::bench
