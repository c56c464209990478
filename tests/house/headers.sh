#!/usr/bin/env bash
# headers.sh COMPILER BUILD_INCLUDE_DIR: every public header compiles on its own, with the compiler's warnings as errors.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
for header in include/ncollapse/*.hpp; do
  echo "#include \"${header#include/}\"" |
    "$1" -std=c++20 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I include -I "$2" -x c++ - ||
    { echo "$header does not compile on its own"; exit 1; }
done
