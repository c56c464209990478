// The .npy format, versions 1.0, 2.0 and 3.0: a signature, a header that is a Python dict literal, then the elements.
#pragma once

#include "host/io/array_info.hpp"
#include "host/io/byte_source.hpp"

namespace ncollapse::io {

/// Reads the header at the start of `source`. Throws DataError for anything that is not a header of an array of
/// little-endian numbers. Whether the source holds as many bytes as the header promises is left to the caller.
ArrayInfo read_npy_header(ByteSource& source);

}  // namespace ncollapse::io
