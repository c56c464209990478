#!/usr/bin/env bash
# The README's C++ example is the consumer project's program, which is built and run: what it shows, works.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
diff <(sed -n '/^```cpp$/,/^```$/p' README.md | sed '1d;$d') tests/consumer/main.cpp ||
  { echo 'README.md: the C++ example differs from tests/consumer/main.cpp' >&2; exit 1; }
