// Element types come from the caller as enumerations, which may hold any number.
#pragma once

#include <string>

#include "ncollapse/error.hpp"
#include "ncollapse/types.hpp"

namespace ncollapse {

/// Throws UsageError for a number that stands for no type; `what`: "features are".
inline void check_type(Dtype type, const std::string& what) {
  switch (type) {
    case Dtype::f64:
    case Dtype::f32:
    case Dtype::f16:
    case Dtype::bf16: return;
  }
  throw UsageError(what + " of an unknown element type, number " + std::to_string(static_cast<int>(type)),
                   "element types are f64, f32, f16 and bf16");
}
inline void check_type(LabelType type, const std::string& what) {
  switch (type) {
    case LabelType::i64:
    case LabelType::i32:
    case LabelType::u8: return;
  }
  throw UsageError(what + " of an unknown element type, number " + std::to_string(static_cast<int>(type)),
                   "label types are i64, i32 and u8");
}

}  // namespace ncollapse
