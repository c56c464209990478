#!/usr/bin/env bash
# Every vendor has one home: fails on an #include outside the rooms that may see it.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
mapfile -t all < <(sources)
strays=0

# only_in HEADERS ROOMS: both are regular expressions, of header names and of the paths that may include them
only_in() {
  local found
  found=$(grep -nE "^ *# *include *[<\"]($1)" "${all[@]}" | grep -vE "^($2)") || return 0
  printf 'outside its home (%s):\n%s\n' "$2" "$found"
  strays=1
}
only_in 'cuda_|cuda\.h|cuda/std|cublas|cusolver|nccl|thrust/|cub/|cooperative_groups' 'cuda/|tests/[^:]*\.cu:'
only_in 'cblas|lapack|openblas' 'host/cpu/|tests/shim/'
only_in 'omp\.h' 'host/cpu/'
only_in 'nlohmann/' 'host/io/|host/cli/|tests/'
only_in 'zip\.h|zlib' 'host/io/|tests/'
only_in 'CLI/|fmt/' 'host/cli/'
only_in 'gtest/|gmock/' 'tests/'
only_in 'benchmark/' 'bench/'
# Rooms: what is private stays inside, and nobody reaches back up the data's way.
only_in 'host/' 'host/|cuda/|tests/|bench/'
only_in 'cuda/' 'cuda/|tests/'
only_in 'tests/' 'tests/'

# Public headers see the standard library (a bare name) and each other.
if grep -nE '^ *# *include' include/ncollapse/*.hpp | grep -vE '<[a-z_]+>$|"ncollapse/[a-z_]+\.hpp"$'; then
  echo 'a public header includes more than the standard library and ncollapse/'
  strays=1
fi
exit $strays
