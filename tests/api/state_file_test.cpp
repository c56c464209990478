// Accumulator::save and load.
#include <sys/stat.h>
#include <zlib.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include "tests/api/support.hpp"
#include "tests/io/array_writers.hpp"

namespace ncollapse_test {
namespace {

using ncollapse::DataError;
using ncollapse::Statistics;

/// A directory of its own for every test, removed afterwards.
class StateFile : public OnDevice {
 protected:
  std::filesystem::path file(const std::string& name = "state") const { return directory_.path(name); }
  void write(const std::string& content) const { std::ofstream(file(), std::ios::binary) << content; }
  std::string read() const {
    std::ifstream in(file(), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  Samples samples() const { return make_samples({{50, 0, 1, 60}, 5, {0.5, 0.1}, 1.0, 0.0, 41}); }

 private:
  ncollapse::test::TemporaryDirectory directory_;
};
NCOLLAPSE_ON_EVERY_DEVICE(StateFile);

TEST_P(StateFile, WhatIsNoFileIsNotReplacedAndPermissionsAreKept) {
  Accumulator moments(context(), options_for(samples()));
  ASSERT_EQ(mkfifo(file("pipe").c_str(), 0600), 0);
  EXPECT_THROW(moments.save(file("pipe")), DataError);
  EXPECT_TRUE(std::filesystem::is_fifo(file("pipe")));
  std::filesystem::create_directory(file("folder"));
  EXPECT_THROW(moments.save(file("folder")), DataError);
  moments.save(file());
  const auto mine = std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
  std::filesystem::permissions(file(), mine);
  moments.save(file());
  EXPECT_EQ(std::filesystem::status(file()).permissions(), mine);
}

TEST_P(StateFile, LoadingGivesTheSameBits) {
  const Samples all = samples(), more = make_samples({{5, 6, 7, 8}, 5, {0.5, 0.1}, 1.0, 0.0, 42});
  for (Statistics statistics : {Statistics::means, Statistics::traces, Statistics::full})
    for (bool weighted : {false, true}) {
      AccumulatorOptions options = options_for(all);
      options.statistics = statistics;
      if (weighted) options.scatter_weights = inverse_counts(all);
      Accumulator saved(context(), options);
      add_samples(saved, all, 13);
      saved.save(file());
      Accumulator loaded = Accumulator::load(context(), file());
      EXPECT_EQ(loaded.samples(), saved.samples());
      EXPECT_EQ(loaded.options().classes, options.classes);
      EXPECT_EQ(loaded.options().dim, options.dim);
      EXPECT_EQ(loaded.options().statistics, statistics);
      EXPECT_EQ(loaded.options().scatter_weights, options.scatter_weights);
      expect_same_bits(loaded.finish(), saved.finish());
      add_samples(saved, more, 4);
      add_samples(loaded, more, 4);
      expect_same_bits(loaded.finish(), saved.finish());
      Accumulator into_saved(context(), options), into_loaded(context(), options);
      into_saved.merge(saved);
      into_loaded.merge(loaded);
      expect_same_bits(into_loaded.finish(), into_saved.finish());
    }
}

TEST_P(StateFile, TheCoarsestTypeOfTheFeaturesTravelsAndMerges) {
  const Samples all = samples();
  Accumulator empty(context(), options_for(all));
  EXPECT_FALSE(empty.finish().dtype());
  empty.save(file());
  EXPECT_FALSE(Accumulator::load(context(), file()).finish().dtype());
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16}) {
    const Accumulator saved = accumulate(context(), all, 0, dtype);
    EXPECT_EQ(saved.finish().dtype(), dtype);
    saved.save(file());
    Accumulator loaded = Accumulator::load(context(), file());
    EXPECT_EQ(loaded.finish().dtype(), dtype);
    add_samples(loaded, all);  // as f64
    EXPECT_EQ(loaded.finish().dtype(), dtype);
    Accumulator merged = accumulate(context(), all, 0, Dtype::f32);
    merged.merge(loaded);
    EXPECT_EQ(merged.finish().dtype(), std::max(dtype, Dtype::f32));
  }
}

TEST_P(StateFile, ANoteTravelsWithTheState) {
  const Accumulator saved = accumulate(context(), samples());
  for (const std::string& note : {std::string(), std::string("rows 1\nof 2"), std::string("a\0b", 3)}) {
    saved.save(file(), note);
    std::string found = "something else";
    expect_same_bits(Accumulator::load(context(), file(), &found).finish(), saved.finish());
    EXPECT_EQ(found, note);
    std::string damaged = read();
    if (note.empty()) continue;
    damaged[damaged.find(note)] ^= 1;
    write(damaged);
    EXPECT_THROW(Accumulator::load(context(), file(), &found), DataError);
  }
}

TEST_P(StateFile, AnEmptyStateIsAState) {
  const Accumulator empty(context(), options_for(samples()));
  empty.save(file());
  Accumulator loaded = Accumulator::load(context(), file());
  EXPECT_EQ(loaded.samples(), 0);
  add_samples(loaded, samples());
  expect_same_bits(loaded.finish(), moments_of(context(), samples()));
}

TEST_P(StateFile, SavingReplacesTheOldFile) {
  Accumulator accumulator = accumulate(context(), samples());
  accumulator.save(file());
  add_samples(accumulator, samples());
  accumulator.save(file());
  EXPECT_EQ(Accumulator::load(context(), file()).samples(), 2 * samples().rows());
  Index files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(file().parent_path())) ++files;
  EXPECT_EQ(files, 1) << "something was left beside the state";
}

TEST_P(StateFile, AStateThatCannotBeWritten) {
  const Accumulator accumulator = accumulate(context(), samples());
  EXPECT_THROW(accumulator.save(file("no such directory") / "state"), DataError);
  EXPECT_THROW(accumulator.save(file().parent_path()), DataError);
  EXPECT_TRUE(std::filesystem::is_directory(file().parent_path()));
}

TEST_P(StateFile, MissingAndForeignFiles) {
  EXPECT_THROW(Accumulator::load(context(), file()), DataError);
  EXPECT_THROW(Accumulator::load(context(), file().parent_path()), DataError);
  for (const std::string& content :
       {std::string(), std::string("x"), std::string("\x93NUMPY\x01\x00", 8), std::string(100000, '\0'),
        std::string(5000, '\xff'), std::string("{\"schema\":\"ncollapse.metrics/1\"}")}) {
    write(content);
    EXPECT_THROW(Accumulator::load(context(), file()), DataError) << content.size() << " bytes";
  }
}

TEST_P(StateFile, EveryTruncationIsNoticed) {
  accumulate(context(), samples()).save(file());
  const std::string whole = read();
  ASSERT_GT(whole.size(), 5U * 5 * 8 / 2);
  for (std::size_t size = 0; size < whole.size(); size += size < 200 || size + 40 > whole.size() ? 1 : 23) {
    write(whole.substr(0, size));
    EXPECT_THROW(Accumulator::load(context(), file()), DataError) << size << " of " << whole.size() << " bytes";
  }
  write(whole + '\0');
  EXPECT_THROW(Accumulator::load(context(), file()), DataError) << "one byte too many";
}

TEST_P(StateFile, EveryChangedByteIsNoticed) {
  // Among them: the marks of format and version, sizes, weights, the state itself and the checksum.
  accumulate(context(), samples()).save(file());
  const std::string whole = read();
  for (std::size_t i = 0; i < whole.size(); ++i)
    for (int change : {0x01, 0x80}) {
      if (change == 0x80 && i % 16 != 0 && i >= 200) continue;
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ change);
      write(damaged);
      EXPECT_THROW(Accumulator::load(context(), file()), DataError) << "byte " << i << " ^ " << change;
    }
  write(whole);
  EXPECT_NO_THROW(Accumulator::load(context(), file()));
}

TEST_P(StateFile, WhatNoDataCanHaveAddedUpToIsRefusedThoughItsChecksumIsRight) {
  const Samples all = samples();
  accumulate(context(), all).save(file());
  const std::string whole = read();
  const auto classes = static_cast<std::size_t>(all.classes), dim = static_cast<std::size_t>(all.dim);
  const std::size_t counts = 56, shifts = counts + 8 * classes, sums = shifts + 8 * classes * dim,
                    squares = sums + 8 * classes * dim, scatter = squares + 8 * classes;
  ASSERT_EQ(whole.size(), scatter + 8 * dim * (dim + 1) / 2 + 4);
  const auto with = [&](std::size_t at, const auto& value) {
    std::string changed = whole.substr(0, whole.size() - 4);
    changed.replace(at, sizeof value, reinterpret_cast<const char*>(&value), sizeof value);
    const auto checksum = static_cast<std::uint32_t>(
        crc32(0, reinterpret_cast<const Bytef*>(changed.data()), static_cast<uInt>(changed.size())));
    write(changed.append(reinterpret_cast<const char*>(&checksum), sizeof checksum));
  };
  with(shifts, 1.5);
  EXPECT_NO_THROW(Accumulator::load(context(), file())) << "the change itself is not noticed";
  const Index largest = std::numeric_limits<Index>::max();
  for (const std::array<Index, 4>& wrong :
       {std::array<Index, 4>{-1, 51, 1, 60}, {50, 0, 1, 61}, {largest, largest, 113, 0}, {0, 0, 0, 0}}) {
    with(counts, wrong);
    EXPECT_THROW(Accumulator::load(context(), file()), DataError) << wrong[0];
  }
  for (const std::size_t at : {shifts, sums, squares, scatter})
    for (const double value : {NAN, INFINITY}) {
      with(at, value);
      EXPECT_THROW(Accumulator::load(context(), file()), DataError) << value << " at " << at;
    }
  with(squares, -1.0);
  EXPECT_THROW(Accumulator::load(context(), file()), DataError);

  AccumulatorOptions weighted = options_for(all);
  weighted.scatter_weights.assign(classes, 0.5);
  Accumulator(context(), weighted).save(file());
  const std::string with_weights = read();
  for (const double weight : {0.0, -1.0, std::nan(""), 1e-310}) {
    std::string changed = with_weights.substr(0, with_weights.size() - 4);
    changed.replace(counts + 8 * classes, sizeof weight, reinterpret_cast<const char*>(&weight), sizeof weight);
    const auto checksum = static_cast<std::uint32_t>(
        crc32(0, reinterpret_cast<const Bytef*>(changed.data()), static_cast<uInt>(changed.size())));
    write(changed.append(reinterpret_cast<const char*>(&checksum), sizeof checksum));
    if (weight > 0)
      EXPECT_NO_THROW(Accumulator::load(context(), file())) << weight;
    else
      EXPECT_THROW(Accumulator::load(context(), file()), DataError) << weight;
  }
}

TEST_P(StateFile, WhatNobodyCouldLoadIsNotWritten) {
  const Samples vast{2, 2, {1e160, 1e160, -1e160, -1e160, 1, 2, 1.1, 2.2}, {0, 0, 1, 1}};
  EXPECT_THROW(accumulate(context(), vast).save(file()), DataError);  // its squares are no numbers
  EXPECT_FALSE(std::filesystem::exists(file()));
}

TEST_P(StateFile, StatesMoveBetweenDevices) {
  if (GetParam() == "cpu") GTEST_SKIP() << "needs a second device beside the CPU";
  const Context cpu(ncollapse::Device::parse("cpu"));
  const Accumulator saved = accumulate(context(), samples());
  saved.save(file());
  const Accumulator loaded = Accumulator::load(cpu, file());
  EXPECT_EQ(loaded.finish().counts(), saved.finish().counts());
  const std::vector<double> got = loaded.finish().within_scatter(), want = saved.finish().within_scatter();
  for (std::size_t i = 0; i < want.size(); ++i) expect_close(got[i], want[i], kOrder, kOrder * want[0]);
  loaded.save(file("back"));
  expect_same_bits(Accumulator::load(context(), file("back")).finish(), saved.finish());
}

}  // namespace
}  // namespace ncollapse_test
