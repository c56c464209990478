#include "datasets.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <random>

#include <ncollapse/error.hpp>

namespace train_mlp {

namespace {

using ncollapse::DataError;

constexpr Index kNoLimit = -1;

std::string quantity(Index count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

/// A file, plain or gzip (zlib tells them apart), read from its start to its end.
class File {
 public:
  explicit File(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (!file_) throw DataError(path + ": cannot be opened");
    gzbuffer(file_.get(), 1 << 17);
  }

  const std::string& path() const { return path_; }

  /// Throws DataError when fewer bytes are left.
  void read(std::uint8_t* to, unsigned bytes, const std::string& what) {
    if (read_some(to, bytes) != bytes) throw DataError(path_ + ": ends within " + what, "is the download complete?");
  }

  /// False at the end of the file; throws DataError where it ends within `what`.
  bool read_or_end(std::uint8_t* to, unsigned bytes, const std::string& what) {
    const unsigned got = read_some(to, bytes);
    if (got != 0 && got != bytes) throw DataError(path_ + ": ends within " + what, "is the download complete?");
    return got == bytes;
  }

  std::uint32_t read_big_endian() {
    std::array<std::uint8_t, 4> bytes{};
    read(bytes.data(), 4, "its header");
    return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
  }

  void expect_end() {
    std::uint8_t byte = 0;
    if (read_some(&byte, 1) != 0) throw DataError(path_ + ": is longer than its header says");
  }

 private:
  unsigned read_some(std::uint8_t* to, unsigned bytes) {
    const int got = gzread(file_.get(), to, bytes);
    int code = Z_OK;
    const char* why = gzerror(file_.get(), &code);
    if (code == Z_BUF_ERROR) throw DataError(path_ + ": the gzip stream is truncated", "is the download complete?");
    if (got < 0 || code != Z_OK)
      throw DataError(path_ + ": cannot be read: " + (code == Z_ERRNO ? "input/output error" : why));
    return static_cast<unsigned>(got);
  }

  struct Close {
    void operator()(gzFile file) const { gzclose(file); }
  };
  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
};

/// Collects the first samples of every class.
class Collector {
 public:
  Collector(const std::vector<Index>& limits, Index dim) : limits_(limits), found_(limits.size(), 0) {
    samples_.dim = dim;
  }

  /// Classes beyond those asked for are left out.
  void add(std::int64_t label, const std::vector<std::uint8_t>& pixels) {
    if (label >= static_cast<std::int64_t>(limits_.size())) return;
    const auto k = static_cast<std::size_t>(label);
    if (limits_[k] != kNoLimit && found_[k] == limits_[k]) return;
    ++found_[k];
    ++samples_.rows;
    samples_.labels.push_back(label);
    samples_.values.insert(samples_.values.end(), pixels.begin(), pixels.end());
  }

  /// `where` names the files.
  Samples finish(const std::string& where) {
    for (std::size_t k = 0; k < limits_.size(); ++k)
      if (found_[k] < limits_[k])
        throw DataError(where + ": class " + std::to_string(k) + " has " + quantity(found_[k], "image") + ", but " +
                            std::to_string(limits_[k]) + " are asked for",
                        "lower this class's number in --counts, or add files");
    if (samples_.rows == 0)
      throw DataError(where + ": holds no image of the first " + std::to_string(limits_.size()) + " classes");
    return std::move(samples_);
  }

 private:
  std::vector<Index> limits_, found_;
  Samples samples_;
};

// --- CIFAR-10: records of a label and 32 x 32 pixels of red, green, blue

constexpr Index kCifarPixels = 3 * 32 * 32;

void read_cifar(const std::string& path, Collector& collector) {
  File file(path);
  std::vector<std::uint8_t> pixels(kCifarPixels);
  std::uint8_t label = 0;
  Index record = 0;
  for (; file.read_or_end(&label, 1, "a label"); ++record) {
    const std::string name = "record " + std::to_string(record);
    file.read(pixels.data(), kCifarPixels, name);
    if (label > 9)
      throw DataError(path + ": " + name + " has the label " + std::to_string(label) + ", must be 0 to 9",
                      "CIFAR-10 in its binary version is needed (not CIFAR-100, not the Python version)");
    collector.add(label, pixels);
  }
  if (record == 0) throw DataError(path + ": is empty");
}

void check_classes(const Options& options, std::size_t most) {
  if (options.counts.size() > most)
    throw ncollapse::UsageError("--counts names " + std::to_string(options.counts.size()) + " classes, " +
                                options.dataset + " has " + std::to_string(most));
}

Dataset load_cifar(const Options& options) {
  check_classes(options, 10);
  const std::vector<Index> all(options.counts.size(), kNoLimit);
  Collector train(options.counts, kCifarPixels), test(all, kCifarPixels);
  bool any = false;
  for (int part = 1; part <= 5; ++part) {
    const std::string path = options.data + "/data_batch_" + std::to_string(part) + ".bin";
    if (!std::filesystem::exists(path)) continue;
    any = true;
    read_cifar(path, train);
  }
  if (!any)
    throw DataError(options.data + ": holds no data_batch_1.bin",
                    "--data names the folder that the binary version of CIFAR-10 was unpacked to");
  read_cifar(options.data + "/test_batch.bin", test);
  return {train.finish(options.data + "/data_batch_*.bin"), test.finish(options.data + "/test_batch.bin")};
}

// --- IDX: big-endian sizes, then bytes

std::string plain_or_gzip(const std::string& stem) {
  for (const auto& path : {stem, stem + ".gz"})
    if (std::filesystem::exists(path)) return path;
  throw DataError(stem + ": is missing, plain as well as .gz", "--data names the folder that holds the files");
}

Samples read_idx(const Options& options, const std::string& images_stem, const std::string& labels_stem,
                 const std::vector<Index>& limits) {
  File images(plain_or_gzip(images_stem)), labels(plain_or_gzip(labels_stem));
  if (images.read_big_endian() != 0x803)
    throw DataError(images.path() + ": is not an IDX file of images", "it must begin with the bytes 00 00 08 03");
  if (labels.read_big_endian() != 0x801)
    throw DataError(labels.path() + ": is not an IDX file of labels", "it must begin with the bytes 00 00 08 01");
  const Index count = images.read_big_endian(), labelled = labels.read_big_endian();
  if (count != labelled)
    throw DataError(images.path() + " holds " + quantity(count, "image") + ", but " + labels.path() + " " +
                    quantity(labelled, "label"));
  const Index height = images.read_big_endian(), width = images.read_big_endian();
  constexpr Index kLargestSide = 4096;  // anything above is a damaged header
  if (height < 1 || width < 1 || height > kLargestSide || width > kLargestSide)
    throw DataError(images.path() + ": its images have " + std::to_string(height) + " x " + std::to_string(width) +
                    " pixels");
  const bool transposed = options.dataset == "emnist";
  const int first_label = transposed && options.emnist_split == "letters" ? 1 : 0;
  Collector collector(limits, height * width);
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(height * width)), stored(pixels.size());
  for (Index i = 0; i < count; ++i) {
    std::uint8_t label = 0;
    labels.read(&label, 1, "label " + std::to_string(i));
    images.read(stored.data(), static_cast<unsigned>(stored.size()), "image " + std::to_string(i));
    if (label < first_label)
      throw DataError(labels.path() + ": label " + std::to_string(i) + " is 0, those of the split letters begin at 1");
    // The file has `height` rows of `width`; of a transposed image these are its columns.
    for (Index row = 0; row < height; ++row)
      for (Index col = 0; col < width; ++col)
        pixels[static_cast<std::size_t>(transposed ? col * height + row : row * width + col)] =
            stored[static_cast<std::size_t>(row * width + col)];
    collector.add(label - first_label, pixels);
  }
  images.expect_end();
  labels.expect_end();
  return collector.finish(labels.path());
}

Dataset load_idx(const Options& options, const std::string& train, const std::string& test) {
  const auto read = [&](const std::string& prefix, const std::vector<Index>& limits) {
    const std::string stem = options.data + "/" + prefix;
    return read_idx(options, stem + "-images-idx3-ubyte", stem + "-labels-idx1-ubyte", limits);
  };
  Dataset data{read(train, options.counts), read(test, std::vector<Index>(options.counts.size(), kNoLimit))};
  if (data.train.dim != data.test.dim)
    throw DataError(options.data + ": training images have " + std::to_string(data.train.dim) +
                    " pixels, test images " + std::to_string(data.test.dim));
  return data;
}

// --- made up

Dataset make_gaussian(const Options& options) {
  constexpr Index kTestSamples = 20;  // of every class
  std::mt19937_64 random(options.seed);
  std::normal_distribution<float> normal;
  const Index dim = options.gaussian_dim;
  std::vector<float> centres(options.counts.size() * static_cast<std::size_t>(dim));
  for (float& value : centres) value = normal(random);
  const auto draw = [&](const std::vector<Index>& counts) {
    Samples samples;
    samples.dim = dim;
    for (std::size_t k = 0; k < counts.size(); ++k)
      for (Index i = 0; i < counts[k]; ++i) {
        ++samples.rows;
        samples.labels.push_back(static_cast<std::int64_t>(k));
        for (Index j = 0; j < dim; ++j)
          samples.values.push_back(centres[k * static_cast<std::size_t>(dim) + static_cast<std::size_t>(j)] +
                                   normal(random));
      }
    return samples;
  };
  Samples train = draw(options.counts);
  return {std::move(train), draw(std::vector<Index>(options.counts.size(), kTestSamples))};
}

/// Mean 0 and variance 1 of each channel over the training images; the test images by the same numbers.
void standardise(Dataset& data, Index channels) {
  const Index plane = data.train.dim / channels;
  for (Index channel = 0; channel < channels; ++channel) {
    const auto each = [&](Samples& samples, auto&& act) {
      for (Index i = 0; i < samples.rows; ++i)
        for (Index j = 0; j < plane; ++j)
          act(samples.values[static_cast<std::size_t>(i * samples.dim + channel * plane + j)]);
    };
    const auto size = static_cast<double>(data.train.rows * plane);
    double sum = 0, squares = 0;  // pixels are whole numbers up to 255: both sums are exact
    each(data.train, [&](float x) { sum += x, squares += double{x} * x; });
    const double mean = sum / size, variance = squares / size - mean * mean;
    const double scale = variance > 0 ? 1 / std::sqrt(variance) : 1;
    const auto change = [&](float& x) { x = static_cast<float>((x - mean) * scale); };
    each(data.train, change);
    each(data.test, change);
  }
}

}  // namespace

Dataset load_dataset(const Options& options) {
  if (options.dataset == "gaussian") return make_gaussian(options);
  Dataset data;
  if (options.dataset == "cifar10") {
    data = load_cifar(options);
  } else if (options.dataset == "mnist") {
    check_classes(options, 10);
    data = load_idx(options, "train", "t10k");
  } else if (options.dataset == "emnist") {
    const std::string stem = "emnist-" + options.emnist_split;
    data = load_idx(options, stem + "-train", stem + "-test");
  } else {
    throw ncollapse::UsageError("the data set '" + options.dataset + "' is unknown",
                                "known are cifar10, mnist, emnist and gaussian");
  }
  standardise(data, options.dataset == "cifar10" ? 3 : 1);
  return data;
}

}  // namespace train_mlp
