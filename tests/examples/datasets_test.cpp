// The readers of train_mlp, on small files in the real formats, whole and broken.
#include <gtest/gtest.h>

#include <cmath>

#include <ncollapse/error.hpp>

#include "examples/train_mlp/datasets.hpp"
#include "tests/io/array_writers.hpp"

namespace {

using ncollapse::test::Bytes;
using ncollapse::test::TemporaryDirectory;
using train_mlp::Dataset;
using train_mlp::Index;
using train_mlp::Options;

constexpr std::size_t kCifarPixels = 3072;

Bytes cifar_record(int label, int first_pixel) {
  Bytes record(1, static_cast<char>(label));
  for (std::size_t j = 0; j < kCifarPixels; ++j) record += static_cast<char>((first_pixel + 7 * j) % 256);
  return record;
}

Bytes big_endian(std::uint32_t value) {
  Bytes bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xff);
  return bytes;
}

struct IdxPair {
  Bytes images, labels;
};

// Image i has the pixels 10 i + 0, 1, 2, ... of `height` rows of `width`.
IdxPair idx_pair(const std::vector<int>& labels, int height, int width) {
  const auto count = static_cast<std::uint32_t>(labels.size());
  IdxPair pair{big_endian(0x803) + big_endian(count) + big_endian(static_cast<std::uint32_t>(height)) +
                   big_endian(static_cast<std::uint32_t>(width)),
               big_endian(0x801) + big_endian(count)};
  for (std::size_t i = 0; i < labels.size(); ++i) {
    for (int j = 0; j < height * width; ++j) pair.images += static_cast<char>(10 * i + static_cast<std::size_t>(j));
    pair.labels += static_cast<char>(labels[i]);
  }
  return pair;
}

Bytes gzipped(const Bytes& bytes) {
  const TemporaryDirectory folder;
  const std::string path = folder.path("x.gz");
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
  std::ifstream input(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(input), {}};
}

void write_idx(const TemporaryDirectory& folder, const std::string& prefix, const IdxPair& pair, bool gzip = false) {
  const auto write = [&](const std::string& name, const Bytes& bytes) {
    folder.write(prefix + name + (gzip ? ".gz" : ""), gzip ? gzipped(bytes) : bytes);
  };
  write("-images-idx3-ubyte", pair.images);
  write("-labels-idx1-ubyte", pair.labels);
}

Options options_for(const TemporaryDirectory& folder, const std::string& dataset, std::vector<Index> counts) {
  Options options;
  options.dataset = dataset;
  options.data = folder.path("");
  options.counts = std::move(counts);
  return options;
}

std::string complaint(const Options& options) {
  try {
    train_mlp::load_dataset(options);
  } catch (const ncollapse::Error& error) {
    return error.what();
  }
  return "no error";
}

#define EXPECT_COMPLAINT(options, text)                  \
  do {                                                   \
    const std::string got = complaint(options);          \
    EXPECT_NE(got.find(text), std::string::npos) << got; \
  } while (false)

TEST(Cifar, TheFirstImagesOfEachClassAreTaken) {
  const TemporaryDirectory folder;
  folder.write("data_batch_1.bin",
               cifar_record(1, 10) + cifar_record(0, 20) + cifar_record(9, 30) + cifar_record(1, 40));
  folder.write("data_batch_2.bin", cifar_record(0, 50) + cifar_record(1, 60));
  folder.write("test_batch.bin", cifar_record(1, 5) + cifar_record(4, 6) + cifar_record(0, 7));
  const Dataset data = train_mlp::load_dataset(options_for(folder, "cifar10", {2, 2}));
  EXPECT_EQ(data.train.labels, (std::vector<std::int64_t>{1, 0, 1, 0}));
  EXPECT_EQ(data.test.labels, (std::vector<std::int64_t>{1, 0}));
  ASSERT_EQ(data.train.dim, 3072);
  ASSERT_EQ(data.train.values.size(), 4 * kCifarPixels);
  // Each colour's 1024 pixels have mean 0 and variance 1, and the test images are measured by the same scale.
  for (std::size_t colour = 0; colour < 3; ++colour) {
    double sum = 0, squares = 0, raw_sum = 0, raw_squares = 0;
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t j = colour * 1024; j < (colour + 1) * 1024; ++j) {
        const double x = data.train.values[i * kCifarPixels + j];
        const double raw = static_cast<unsigned char>(cifar_record(0, std::vector<int>{10, 20, 40, 50}[i])[j + 1]);
        sum += x, squares += x * x, raw_sum += raw, raw_squares += raw * raw;
      }
    EXPECT_NEAR(sum / 4096, 0, 1e-6);
    EXPECT_NEAR(squares / 4096, 1, 1e-6);
    const double mean = raw_sum / 4096, scale = 1 / std::sqrt(raw_squares / 4096 - mean * mean);
    const double first = static_cast<unsigned char>(cifar_record(0, 5)[colour * 1024 + 1]);
    EXPECT_NEAR(data.test.values[colour * 1024], (first - mean) * scale, 1e-5);
  }
}

TEST(Cifar, BrokenFilesAreNamed) {
  const TemporaryDirectory folder;
  const Options options = options_for(folder, "cifar10", {1, 1});
  EXPECT_COMPLAINT(options, "holds no data_batch_1.bin");
  const Bytes good = cifar_record(0, 1) + cifar_record(1, 2);
  folder.write("data_batch_1.bin", good);
  EXPECT_COMPLAINT(options, "test_batch.bin: cannot be opened");
  folder.write("test_batch.bin", good);
  EXPECT_EQ(complaint(options), "no error");
  EXPECT_COMPLAINT(options_for(folder, "cifar10", {1, 2}), "class 1 has 1 image, but 2 are asked for");
  EXPECT_COMPLAINT(options_for(folder, "cifar10", std::vector<Index>(11, 1)), "11 classes, cifar10 has 10");
  folder.write("data_batch_1.bin", good.substr(0, good.size() - 1));
  EXPECT_COMPLAINT(options, "data_batch_1.bin: ends within record 1");
  folder.write("data_batch_1.bin", good + cifar_record(10, 3));
  EXPECT_COMPLAINT(options, "record 2 has the label 10");
  folder.write("data_batch_1.bin", "");
  EXPECT_COMPLAINT(options, "is empty");
  folder.write("data_batch_1.bin", good);
  folder.write("test_batch.bin", cifar_record(7, 1));
  EXPECT_COMPLAINT(options, "holds no image of the first 2 classes");
}

TEST(Idx, PlainAndGzipAreTheSame) {
  const IdxPair train = idx_pair({1, 0, 2, 1, 0}, 2, 3), test = idx_pair({0, 1}, 2, 3);
  const TemporaryDirectory plain, gzip;
  write_idx(plain, "train", train);
  write_idx(plain, "t10k", test);
  write_idx(gzip, "train", train, true);
  write_idx(gzip, "t10k", test, true);
  const Dataset a = train_mlp::load_dataset(options_for(plain, "mnist", {1, 2}));
  const Dataset b = train_mlp::load_dataset(options_for(gzip, "mnist", {1, 2}));
  EXPECT_EQ(a.train.labels, (std::vector<std::int64_t>{1, 0, 1}));  // images 0, 1 and 3
  EXPECT_EQ(a.train.dim, 6);
  // Pixels 10 i + j of the images 0, 1, 3: mean 13.33 + 2.5.
  const double mean = 40.0 / 3 + 2.5, variance = (0 + 100 + 900) / 3.0 - 1600.0 / 9 + 35.0 / 12;
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 6; ++j)
      EXPECT_NEAR(a.train.values[6 * i + j], (10.0 * std::vector<int>{0, 1, 3}[i] + j - mean) / std::sqrt(variance),
                  1e-5);
  EXPECT_EQ(a.train.values, b.train.values);
  EXPECT_EQ(a.test.values, b.test.values);
  EXPECT_EQ(a.test.labels, b.test.labels);
}

TEST(Idx, EmnistImagesComeOutUpright) {
  const IdxPair pair = idx_pair({0, 1, 2}, 2, 3);
  const TemporaryDirectory folder;
  for (const std::string part : {"-train", "-test"}) {
    write_idx(folder, "emnist-balanced" + part, pair);
    write_idx(folder, "emnist-letters" + part, idx_pair({1, 2, 1}, 2, 3), true);
  }
  write_idx(folder, "train", pair);
  write_idx(folder, "t10k", pair);
  Options options = options_for(folder, "emnist", {1, 1});
  const Dataset upright = train_mlp::load_dataset(options),
                stored = train_mlp::load_dataset(options_for(folder, "mnist", {1, 1}));
  ASSERT_EQ(upright.train.rows, 2);
  for (std::size_t i = 0; i < 2; ++i)
    for (std::size_t row = 0; row < 2; ++row)
      for (std::size_t col = 0; col < 3; ++col)
        EXPECT_EQ(upright.train.values[6 * i + col * 2 + row], stored.train.values[6 * i + row * 3 + col]);
  options.emnist_split = "letters";
  options.counts = {2, 1};
  EXPECT_EQ(train_mlp::load_dataset(options).train.labels, (std::vector<std::int64_t>{0, 1, 0}));
  write_idx(folder, "emnist-letters-train", idx_pair({1, 0, 2}, 2, 3), true);
  EXPECT_COMPLAINT(options, "label 1 is 0");
  options.emnist_split = "digits";
  EXPECT_COMPLAINT(options, "emnist-digits-train-images-idx3-ubyte: is missing");
}

TEST(Idx, BrokenFilesAreNamed) {
  const TemporaryDirectory folder;
  const Options options = options_for(folder, "mnist", {1, 1});
  EXPECT_COMPLAINT(options, "train-images-idx3-ubyte: is missing, plain as well as .gz");
  const IdxPair good = idx_pair({0, 1}, 2, 3);
  write_idx(folder, "train", good);
  write_idx(folder, "t10k", good);
  EXPECT_EQ(complaint(options), "no error");
  EXPECT_COMPLAINT(options_for(folder, "mnist", {1, 3}), "class 1 has 1 image, but 3 are asked for");
  const auto with = [&](const Bytes& images, const Bytes& labels) {
    write_idx(folder, "train", {images, labels});
    return complaint(options);
  };
  const auto has = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_TRUE(has(with(good.labels, good.labels), "is not an IDX file of images"));
  EXPECT_TRUE(has(with(good.images, good.images), "is not an IDX file of labels"));
  EXPECT_TRUE(has(with(good.images, idx_pair({0, 1, 1}, 2, 3).labels), "holds 2 images, but"));
  EXPECT_TRUE(has(with(good.images.substr(0, 27), good.labels), "ends within image 1"));
  EXPECT_TRUE(has(with(good.images.substr(0, 6), good.labels), "ends within its header"));
  EXPECT_TRUE(has(with(good.images + "x", good.labels), "longer than its header says"));
  EXPECT_TRUE(has(with(good.images, good.labels.substr(0, 9)), "ends within label 1"));
  Bytes huge = good.images;
  huge.replace(8, 4, big_endian(0x7fffffff));
  EXPECT_TRUE(has(with(huge, good.labels), "its images have 2147483647 x 3 pixels"));
  write_idx(folder, "train", good);
  write_idx(folder, "t10k", idx_pair({0, 1}, 2, 2));
  EXPECT_COMPLAINT(options, "training images have 6 pixels, test images 4");
  // A gzip stream that was cut off, or damaged.
  const TemporaryDirectory zipped;
  write_idx(zipped, "train", good, true);
  write_idx(zipped, "t10k", good, true);
  const Options zipped_options = options_for(zipped, "mnist", {1, 1});
  EXPECT_EQ(complaint(zipped_options), "no error");
  const Bytes whole = gzipped(good.images);
  zipped.write("train-images-idx3-ubyte.gz", whole.substr(0, whole.size() - 12));
  EXPECT_COMPLAINT(zipped_options, "truncated");
  Bytes damaged = whole;
  damaged[damaged.size() - 6] ^= 0x55;  // in the checksum
  zipped.write("train-images-idx3-ubyte.gz", damaged);
  EXPECT_NE(complaint(zipped_options), "no error");
}

TEST(Gaussian, IsMadeFromItsSeed) {
  Options options;
  options.dataset = "gaussian";
  options.gaussian_dim = 5;
  options.counts = {4, 3, 1};
  const Dataset data = train_mlp::load_dataset(options), again = train_mlp::load_dataset(options);
  EXPECT_EQ(data.train.rows, 8);
  EXPECT_EQ(data.train.dim, 5);
  EXPECT_EQ(data.train.labels, (std::vector<std::int64_t>{0, 0, 0, 0, 1, 1, 1, 2}));
  EXPECT_EQ(data.test.rows, 60);
  EXPECT_EQ(data.train.values, again.train.values);
  options.seed = 2;
  EXPECT_NE(data.train.values, train_mlp::load_dataset(options).train.values);
}

}  // namespace
