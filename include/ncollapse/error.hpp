// Errors. Every failure of the library is one of these, or std::bad_alloc where the host is out of memory; the kind is
// also the exit code of the command.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "ncollapse/export.hpp"

namespace ncollapse {

enum class ErrorKind {
  internal = 1,  ///< a defect of the library or a failure of a vendor library
  usage = 2,     ///< the call itself is wrong: shapes that do not chain, an unknown option
  data = 3,      ///< the data is wrong: a missing or broken file, a label out of range, NaN
  device = 4,    ///< no such device, not built for it, or out of its memory
};

/// what() says what is wrong and where; hint() says what would be right (may be empty).
class NCOLLAPSE_EXPORT Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::string hint = {});
  ~Error() override;
  ErrorKind kind() const noexcept { return kind_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  ErrorKind kind_;
  std::string hint_;
};

class NCOLLAPSE_EXPORT UsageError : public Error {
 public:
  explicit UsageError(const std::string& message, std::string hint = {});
  ~UsageError() override;
};

class NCOLLAPSE_EXPORT DataError : public Error {
 public:
  explicit DataError(const std::string& message, std::string hint = {}, std::int64_t row = -1);
  ~DataError() override;
  /// The first bad row, counted over the whole stream of batches; -1 where the error is not about one.
  std::int64_t row() const noexcept { return row_; }

 private:
  std::int64_t row_;
};

class NCOLLAPSE_EXPORT DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& message, std::string hint = {});
  ~DeviceError() override;
};

/// There is no memory for it, on the device or the host. What the call was to change is as it was before.
class NCOLLAPSE_EXPORT MemoryError : public DeviceError {
 public:
  explicit MemoryError(const std::string& message, std::string hint = {});
  ~MemoryError() override;
};

}  // namespace ncollapse
