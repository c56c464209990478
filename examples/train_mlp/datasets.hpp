// Images and labels from files in the formats in which they are distributed, and made-up ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "options.hpp"

namespace train_mlp {

struct Samples {
  Index rows = 0, dim = 0;
  std::vector<float> values;         ///< [rows x dim]
  std::vector<std::int64_t> labels;  ///< [rows]
};

struct Dataset {
  Samples train;  ///< of class k the first counts[k] samples, in the files' order
  Samples test;   ///< all of the test files that belong to the first K classes
};

/// Reads what the options name, and centres and scales it so that each colour channel of the training images has mean 0
/// and variance 1:
///   cifar10   data_batch_1.bin .. data_batch_5.bin (those that are there), test_batch.bin
///   mnist     {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz
///   emnist    emnist-SPLIT-{train,test}-{images-idx3,labels-idx1}-ubyte, plain or .gz; its images are stored
///   transposed
///             and come out upright, and the labels of its split "letters", which begin at 1, come out from 0
///   gaussian  no files: a random centre for every class and noise around it, by the seed
/// Throws DataError, naming the file, when one is missing, of another format, truncated or too long, when images and
/// labels do not match, and when a class has fewer samples than asked for; UsageError for an unknown data set.
Dataset load_dataset(const Options& options);

}  // namespace train_mlp
