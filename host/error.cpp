#include "ncollapse/error.hpp"

#include <utility>

namespace ncollapse {

Error::Error(ErrorKind kind, const std::string& message, std::string hint)
    : std::runtime_error(message), kind_(kind), hint_(std::move(hint)) {}
UsageError::UsageError(const std::string& message, std::string hint)
    : Error(ErrorKind::usage, message, std::move(hint)) {}
DataError::DataError(const std::string& message, std::string hint, std::int64_t row)
    : Error(ErrorKind::data, message, std::move(hint)), row_(row) {}
DeviceError::DeviceError(const std::string& message, std::string hint)
    : Error(ErrorKind::device, message, std::move(hint)) {}
MemoryError::MemoryError(const std::string& message, std::string hint) : DeviceError(message, std::move(hint)) {}

// Here, so that the type information lives in the library and catching works across its border.
Error::~Error() = default;
UsageError::~UsageError() = default;
DataError::~DataError() = default;
DeviceError::~DeviceError() = default;
MemoryError::~MemoryError() = default;

}  // namespace ncollapse
