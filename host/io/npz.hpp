// The .npz format: a zip archive whose members are .npy files, stored (np.savez) or deflated (np.savez_compressed).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "host/io/byte_source.hpp"

struct zip;

namespace ncollapse::io {

class NpzArchive {
 public:
  /// Throws DataError when the file is not a complete zip archive.
  explicit NpzArchive(const std::string& path);

  /// Names of the arrays (members without their ".npy"), in the order of the archive's directory.
  const std::vector<std::string>& keys() const { return keys_; }

  /// Whether this is the archive of a pickled object, as torch.save writes it.
  bool is_pickle() const { return is_pickle_; }

  /// The .npy file of keys()[index], to be read forward. Going back is possible, for a deflated member at the price of
  /// reading it again from its start. The archive may end before the member does.
  std::unique_ptr<ByteSource> open(std::size_t index) const;

 private:
  std::string path_;
  std::shared_ptr<zip> archive_;
  std::vector<std::string> keys_;
  std::vector<Index> members_;  ///< number of each key's member in the archive
  bool is_pickle_ = false;
};

}  // namespace ncollapse::io
