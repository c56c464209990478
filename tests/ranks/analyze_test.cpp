// analyze() over ranks that are threads: who gets the report, what is read by whom, and how ranks fail.
#include <set>

#include "tests/api/support.hpp"
#include "tests/io/array_writers.hpp"
#include "tests/ranks/thread_ranks.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::AnalysisRequest;
using ncollapse::Communicator;
using ncollapse::DataError;
using ncollapse::Error;
using ncollapse::ErrorKind;
using ncollapse::Progress;
using ncollapse::UsageError;

class AnalyzeRanks : public testing::Test {
 protected:
  AnalyzeRanks() {
    const Samples samples = make_samples({{20, 9, 1, 13}, 5, {0.2}, 1.0, 0.0, 4});
    rows_ = samples.rows();
    values_.assign(samples.values.begin(), samples.values.end());
    labels_ = samples.labels;
    write(values_, labels_);
    request_.features = folder_.path("x.npy");
    request_.labels = folder_.path("y.npy");
    request_.test_features = request_.features;
    request_.test_labels = request_.labels;
    request_.batch_rows = 4;
  }
  void write(const std::vector<double>& values, const std::vector<std::int64_t>& labels) const {
    const std::string rows = std::to_string(labels.size());
    folder_.write("x.npy", ncollapse::test::npy("<f8", "(" + rows + ", 5)", ncollapse::test::bytes_of(values)));
    folder_.write("y.npy", ncollapse::test::npy("<i8", "(" + rows + ",)", ncollapse::test::bytes_of(labels)));
  }
  /// What each rank throws; `change` may give it another request.
  std::vector<std::exception_ptr> run(ThreadRanks& ranks,
                                      const std::function<void(int rank, AnalysisRequest&)>& change = {}) {
    return ranks.run([&](const Communicator& rank) {
      AnalysisRequest request = request_;
      if (change) change(rank.rank(), request);
      const auto report = analyze(context_, request, rank);
      EXPECT_EQ(report.has_value(), rank.rank() == 0);
      if (report) report_ = *report;
    });
  }

  ncollapse::test::TemporaryDirectory folder_;
  Context context_{ncollapse::Device::parse("cpu")};
  Index rows_ = 0;
  std::vector<double> values_;
  std::vector<std::int64_t> labels_;
  AnalysisRequest request_;
  Report report_;
};

TEST_F(AnalyzeRanks, RankZeroGetsTheReportOfAll) {
  const Report alone = analyze(context_, request_);
  for (const int size : {1, 2, 5}) {
    ThreadRanks ranks(size);
    for (const auto& error : run(ranks)) EXPECT_EQ(message_of(error), "");
    EXPECT_TRUE(ranks.counts_agreed());
    expect_same_metrics(report_, alone, 1e-12, kZero);
    EXPECT_EQ(report_.counts, alone.counts);
  }
}

TEST_F(AnalyzeRanks, EveryRowIsReadOnceAPass) {
  std::map<std::string, std::vector<Index>> done;  // of each rank, by pass
  ThreadRanks ranks(3);
  const auto errors = run(ranks, [&](int rank, AnalysisRequest& request) {
    request.on_progress = [&, rank](const Progress& progress) {
      EXPECT_EQ(progress.rows_total, rows_);
      auto& rows = done[progress.pass];
      rows.resize(3);
      rows[at(rank)] = progress.rows_done;
    };
  });
  for (const auto& error : errors) EXPECT_EQ(message_of(error), "");
  EXPECT_EQ(done.size(), 3U);
  for (const auto& [pass, rows] : done) EXPECT_EQ(rows, (std::vector<Index>{15, 14, 14})) << pass;  // 43 rows
}

TEST_F(AnalyzeRanks, BadDataOfOneRankFailsAll) {
  values_.back() = std::numeric_limits<double>::infinity();
  write(values_, labels_);
  ThreadRanks ranks(4);
  const auto errors = run(ranks);
  EXPECT_THROW(std::rethrow_exception(errors[3]), DataError);
  EXPECT_NE(message_of(errors[3]).find("row 9, column 4"), std::string::npos) << message_of(errors[3]);
  for (const std::size_t rank : {0U, 1U, 2U}) {
    EXPECT_NE(message_of(errors[rank]).find("rank 3 of 4 failed while reading"), std::string::npos);
    try {
      std::rethrow_exception(errors[rank]);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::data);
    }
  }
}

TEST_F(AnalyzeRanks, AStopOfOneRankStopsAll) {
  ThreadRanks ranks(3);
  const auto errors = run(ranks, [](int rank, AnalysisRequest& request) {
    if (rank == 1) request.on_progress = [](const Progress&) { throw std::runtime_error("enough"); };
  });
  EXPECT_EQ(message_of(errors[1]), "enough");
  for (const std::size_t rank : {0U, 2U}) EXPECT_NE(message_of(errors[rank]).find("rank 1 of 3"), std::string::npos);
}

TEST_F(AnalyzeRanks, MissingFilesFailAll) {
  request_.bias = folder_.path("none.npy");
  ThreadRanks ranks(2);
  for (const auto& error : run(ranks)) EXPECT_THROW(std::rethrow_exception(error), Error);
}

TEST_F(AnalyzeRanks, OtherRequestsAreRefusedByAll) {
  const auto refused = [&](const std::function<void(AnalysisRequest&)>& change) {
    ThreadRanks ranks(3);
    for (const auto& error : run(ranks, [&](int rank, AnalysisRequest&request) {
           if (rank == 2) change(request);
         })) {
      EXPECT_THROW(std::rethrow_exception(error), UsageError);
      EXPECT_NE(message_of(error).find("rank 2 has"), std::string::npos) << message_of(error);
    }
  };
  refused([](AnalysisRequest& request) { request.rows = {0, 10}; });
  refused([](AnalysisRequest& request) { request.classes = 9; });
  refused([](AnalysisRequest& request) { request.convention = Convention::classavg; });
  refused([](AnalysisRequest& request) { request.precision = ncollapse::Precision::fast; });
  refused([](AnalysisRequest& request) { request.test_features = request.test_labels = {}; });
  refused([](AnalysisRequest& request) { request.ood_features = request.features; });
}

TEST_F(AnalyzeRanks, OneClassIsOneClassOnAllRanks) {
  std::fill(labels_.begin(), labels_.end(), 1);
  write(values_, labels_);
  ThreadRanks ranks(3);
  for (const auto& error : run(ranks)) EXPECT_NE(message_of(error).find("only one class"), std::string::npos);
}

}  // namespace
}  // namespace ncollapse_test
