// nccl_communicator: on the host stand-in with several ranks; on a GPU, with NCCL itself, with one.
#include <cuda_runtime.h>

#include "host/backend.hpp"
#include "ncollapse/nccl.hpp"
#include "tests/api/support.hpp"
#include "tests/ranks/thread_ranks.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::Communicator;
using ncollapse::DeviceError;
using ncollapse::Statistics;
using ncollapse::UsageError;

class Stream {
 public:
  Stream() { cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Nccl : public OnDevice {
 protected:
  int device() const { return context().info().device.index; }
};
INSTANTIATE_TEST_SUITE_P(Devices, Nccl, testing::Values("cuda"),
                         [](const testing::TestParamInfo<std::string>& parameter) { return parameter.param; });

TEST_P(Nccl, NoCommunicatorIsRefused) { EXPECT_THROW(ncollapse::nccl_communicator(nullptr, nullptr), UsageError); }

#ifdef NCOLLAPSE_NCCL_SHIM

TEST_P(Nccl, RanksEndInTheWhole) {
  const Samples samples = make_samples({{25, 1, 17, 0, 9}, 7, {0.2, 0.5}, 1.0, 0.3, 5});
  const ClassMoments whole = moments_of(context(), samples);
  std::vector<std::optional<ClassMoments>> moments(3);
  ThreadRanks ranks(3);
  const auto errors = ranks.run([&](const Communicator& rank) {
    const Stream stream;
    ncclComm nccl{rank.rank(), rank.size(), device(), rank.callbacks().sum_doubles, rank.callbacks().sum_integers};
    std::vector<Index> rows;
    for (Index i = rank.rank(); i < samples.rows(); i += 2) rows.push_back(i);  // the third has no part of its own
    if (rank.rank() == 2) rows.clear();
    Accumulator accumulator(context(), options_for(samples));
    add_samples(accumulator, reordered(samples, rows), 4);
    accumulator.reduce(ncollapse::nccl_communicator(&nccl, stream));
    moments[at(rank.rank())].emplace(accumulator.finish());
  });
  for (const auto& error : errors) EXPECT_EQ(message_of(error), "");
  EXPECT_TRUE(ranks.counts_agreed());
  for (const auto& one : moments) {
    ASSERT_TRUE(one.has_value());
    expect_same_bits(*one, *moments.front());
    EXPECT_EQ(one->counts(), whole.counts());
    for (Index k = 0; k < whole.classes(); ++k)
      expect_close(one->within_variances()[at(k)], whole.within_variances()[at(k)], 1e-12, 0);
    const auto got = one->within_scatter(), want = whole.within_scatter();
    for (std::size_t i = 0; i < got.size(); ++i) expect_close(got[i], want[i], 0, 1e-12 * want[0]);
  }
}

TEST_P(Nccl, CountsThatFillMoreThanOnePiece) {
  const Index K = (Index{4} << 20) / 8 + 3;
  std::vector<std::vector<Index>> counts(2);
  ThreadRanks ranks(2);
  const auto errors = ranks.run([&](const Communicator& rank) {
    const Stream stream;
    ncclComm nccl{rank.rank(), rank.size(), device(), rank.callbacks().sum_doubles, rank.callbacks().sum_integers};
    Accumulator accumulator(context(), {K, 1, ncollapse::Statistics::means, {}});
    add_samples(accumulator, {K, 1, {1, 2, 3}, {0, K - 4, K - 1}});
    accumulator.reduce(ncollapse::nccl_communicator(&nccl, stream));
    counts[at(rank.rank())] = accumulator.finish().counts();
  });
  for (const auto& error : errors) EXPECT_EQ(message_of(error), "");
  for (const auto& found : counts) {
    ASSERT_EQ(static_cast<Index>(found.size()), K);
    for (Index k = 0; k < K; ++k) ASSERT_EQ(found[at(k)], k == 0 || k == K - 4 || k == K - 1 ? 2 : 0) << k;
  }
}

TEST_P(Nccl, WhatNcclReportsLaterIsAnError) {
  const Stream stream;
  ncclComm nccl{0, 2, device(), [](double*, Index) {}, [](Index*, Index) {}};
  const Communicator communicator = ncollapse::nccl_communicator(&nccl, stream);
  nccl.later = ncclRemoteError;
  Accumulator accumulator(context(), {2, 3, Statistics::means, {}});
  try {
    accumulator.reduce(communicator);
    ADD_FAILURE() << "no error";
  } catch (const DeviceError& e) {
    EXPECT_EQ(std::string(e.what()), "ncclAllReduce: another rank has failed");
  }
}

TEST_P(Nccl, ACommunicatorThatDoesNotBlockIsWaitedFor) {
  for (const ncclResult_t end : {ncclSuccess, ncclRemoteError}) {
    const Stream stream;
    ncclComm nccl{0, 2, device(), [](double*, Index) {}, [](Index*, Index) {}, ncclSuccess, 3};  // being made
    const auto communicator = ncollapse::nccl_communicator(&nccl, stream);
    EXPECT_EQ(nccl.unfinished, 0);
    nccl.later = end;
    nccl.unfinished = 5;
    const auto value = context().backend()->matrix(1, 1);
    const auto sum = [&] { communicator.callbacks().sum_doubles(value.data(), 1); };
    if (end == ncclSuccess)
      EXPECT_NO_THROW(sum());
    else
      EXPECT_THROW(sum(), DeviceError);
    EXPECT_EQ(nccl.unfinished, 0);
  }
}

TEST_P(Nccl, TheContextHasToBeOnAGpu) {
  const Stream stream;
  ncclComm nccl{0, 2, device(), [](double*, Index) {}, [](Index*, Index) {}};
  Accumulator accumulator(Context(ncollapse::Device::parse("cpu")), {2, 3, Statistics::means, {}});
  EXPECT_THROW(accumulator.reduce(ncollapse::nccl_communicator(&nccl, stream)), UsageError);
}

#else

TEST_P(Nccl, OneRankSumsInPlace) {
  ncclComm_t nccl = nullptr;
  const int here = device();
  ASSERT_EQ(ncclCommInitAll(&nccl, 1, &here), ncclSuccess);
  const Stream stream;
  const Communicator alone = ncollapse::nccl_communicator(nccl, stream);
  EXPECT_EQ(alone.rank(), 0);
  EXPECT_EQ(alone.size(), 1);
  // With one rank the library sends nothing, so the callbacks are called here.
  double* memory = nullptr;
  const double value = 2.5;
  double back = 0;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&memory), sizeof(double)), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(memory, &value, sizeof(double), cudaMemcpyHostToDevice), cudaSuccess);
  alone.callbacks().sum_doubles(memory, 1);
  ASSERT_EQ(cudaMemcpy(&back, memory, sizeof(double), cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(back, value);
  cudaFree(memory);
  ncclCommDestroy(nccl);
}

#endif

}  // namespace
}  // namespace ncollapse_test
