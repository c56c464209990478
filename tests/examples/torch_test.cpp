// Tensors as views.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <ncollapse/ncollapse.hpp>
#include <ncollapse/torch.hpp>

namespace {

using ncollapse::Dtype;
using ncollapse::LabelType;
using ncollapse::MemorySpace;

// The hint too: both are what a user reads.
template <class Call>
std::string complaint(const Call& call) {
  try {
    call();
  } catch (const ncollapse::UsageError& error) {
    return std::string(error.what()) + " | " + error.hint();
  }
  return "no error";
}

#define EXPECT_COMPLAINT(call, text)                     \
  do {                                                   \
    const std::string got = complaint([&] { call; });    \
    EXPECT_NE(got.find(text), std::string::npos) << got; \
  } while (false)

TEST(TorchViews, AMatrixIsSeenWhereItLies) {
  const std::pair<at::ScalarType, Dtype> types[] = {
      {at::kDouble, Dtype::f64}, {at::kFloat, Dtype::f32}, {at::kHalf, Dtype::f16}, {at::kBFloat16, Dtype::bf16}};
  for (const auto& [type, dtype] : types) {
    const at::Tensor tensor = at::zeros({3, 5}, type);
    const ncollapse::MatrixView view = ncollapse::view(tensor);
    EXPECT_EQ(view.data, tensor.data_ptr());
    EXPECT_EQ(view.dtype, dtype);
    EXPECT_EQ(view.rows, 3);
    EXPECT_EQ(view.cols, 5);
    EXPECT_EQ(view.row_stride(), 5);
    EXPECT_EQ(view.space, MemorySpace::host);
  }
}

TEST(TorchViews, RowsMayBeFurtherApartThanTheyAreLong) {
  const at::Tensor whole = at::zeros({4, 10});
  const at::Tensor columns = whole.slice(1, 2, 5), rows = whole.slice(0, 0, 4, 2);
  EXPECT_EQ(ncollapse::view(columns).data, whole.data_ptr<float>() + 2);
  EXPECT_EQ(ncollapse::view(columns).stride, 10);
  EXPECT_EQ(ncollapse::view(columns).cols, 3);
  EXPECT_EQ(ncollapse::view(rows).rows, 2);
  EXPECT_EQ(ncollapse::view(rows).stride, 20);
}

TEST(TorchViews, AwkwardShapes) {
  const ncollapse::MatrixView bias = ncollapse::view(at::zeros({7}));
  EXPECT_EQ(bias.rows, 1);
  EXPECT_EQ(bias.cols, 7);
  EXPECT_EQ(ncollapse::view(at::zeros({0, 4})).rows, 0);
  // One row of a transposed matrix has a stride of its own; one column is contiguous whatever its stride.
  EXPECT_EQ(ncollapse::view(at::zeros({1, 4}).as_strided({1, 4}, {1, 1})).row_stride(), 4);
  const ncollapse::MatrixView column = ncollapse::view(at::zeros({3, 4}).slice(1, 1, 2));
  EXPECT_EQ(column.cols, 1);
  EXPECT_EQ(column.row_stride(), 4);
}

TEST(TorchViews, WhatCannotBeSeenSaysWhy) {
  const at::Tensor matrix = at::zeros({3, 5});
  EXPECT_COMPLAINT(ncollapse::view(at::Tensor()), "undefined");
  EXPECT_COMPLAINT(ncollapse::view(at::zeros({3, 5}, at::kInt)), "to(torch::kFloat)");
  EXPECT_COMPLAINT(ncollapse::view(at::zeros({3, 5}, at::kComplexFloat)), "to(torch::kFloat)");
  EXPECT_COMPLAINT(ncollapse::view(at::zeros({2, 3, 5})), "flatten(1)");
  EXPECT_COMPLAINT(ncollapse::view(at::zeros({})), "not a matrix");
  EXPECT_COMPLAINT(ncollapse::view(matrix.t()), "contiguous()");
  EXPECT_COMPLAINT(ncollapse::view(matrix[0].expand({3, 5})), "contiguous()");
  EXPECT_COMPLAINT(ncollapse::view(matrix.to_sparse()), "to_dense()");
  EXPECT_COMPLAINT(ncollapse::view(at::zeros({3, 5}, at::TensorOptions(at::kMeta))), "only cpu and cuda");
  const at::Tensor negated = at::imag(at::zeros({3, 5}, at::kComplexFloat).conj());
  ASSERT_TRUE(negated.is_neg());
  EXPECT_COMPLAINT(ncollapse::view(negated), "resolve_neg()");
}

TEST(TorchViews, Labels) {
  const std::pair<at::ScalarType, LabelType> types[] = {
      {at::kLong, LabelType::i64}, {at::kInt, LabelType::i32}, {at::kByte, LabelType::u8}};
  for (const auto& [type, label_type] : types) {
    const at::Tensor tensor = at::arange(4, type);
    const ncollapse::LabelView view = ncollapse::label_view(tensor);
    EXPECT_EQ(view.data, tensor.data_ptr());
    EXPECT_EQ(view.type, label_type);
    EXPECT_EQ(view.size, 4);
    EXPECT_EQ(ncollapse::label_at(view, 3), 3);
  }
  EXPECT_COMPLAINT(ncollapse::label_view(at::zeros({4})), "to(torch::kLong)");
  EXPECT_COMPLAINT(ncollapse::label_view(at::zeros({4, 2}, at::kLong)), "argmax(1)");
  EXPECT_COMPLAINT(ncollapse::label_view(at::zeros({4, 1}, at::kLong)), "squeeze(1)");
  EXPECT_COMPLAINT(ncollapse::label_view(at::arange(8, at::kLong).slice(0, 0, 8, 2)), "contiguous()");
}

TEST(TorchViews, TensorsAreMeasured) {
  at::manual_seed(1);
  const at::Tensor labels = at::arange(60).remainder(3);
  const at::Tensor features = at::randn({3, 8}).index_select(0, labels) + 0.1 * at::randn({60, 8});
  const ncollapse::Context context = ncollapse::context_for(features, 1);
  EXPECT_EQ(context.info().device, ncollapse::Device{});
  EXPECT_EQ(context.info().threads, 1);
  ncollapse::Accumulator moments(context, {.classes = 3, .dim = 8});
  moments.add(ncollapse::view(features), ncollapse::label_view(labels));
  const std::vector<double> means = moments.finish().means();
  for (int k = 0; k < 3; ++k) {
    const at::Tensor want = features.index({labels == k}).to(at::kDouble).mean(0);
    for (int j = 0; j < 8; ++j) EXPECT_NEAR(means[k * 8 + j], want[j].item<double>(), 1e-13);
  }
}

TEST(TorchViews, TensorsOnAGpuAreMeasuredThere) {
  if (!at::hasCUDA()) GTEST_SKIP() << "cuda: this LibTorch sees no GPU";
  if (!ncollapse::cuda_unavailable_reason().empty()) GTEST_SKIP() << "cuda: " << ncollapse::cuda_unavailable_reason();
  const at::Tensor labels = at::arange(60, at::kCUDA).remainder(3);
  const at::Tensor features = at::randn({60, 8}, at::kCUDA);
  EXPECT_EQ(ncollapse::view(features).space, MemorySpace::device);
  const ncollapse::Context context = ncollapse::context_for(features);
  EXPECT_EQ(context.info().device.type, ncollapse::DeviceType::cuda);
  ncollapse::Accumulator moments(context, {.classes = 3, .dim = 8});
  moments.add(ncollapse::view(features), ncollapse::label_view(labels));
  const std::vector<double> means = moments.finish().means();
  const at::Tensor want = features.index({labels == 1}).to(at::kDouble).mean(0).cpu();
  for (int j = 0; j < 8; ++j) EXPECT_NEAR(means[8 + j], want[j].item<double>(), 1e-13);
}

}  // namespace
