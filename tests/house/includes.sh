#!/usr/bin/env bash
# Every vendor has one home, and every room sees only what it may: fails on an #include that breaks CONTRIBUTING's table.
set -eu
source "$(dirname "$0")/sources.sh"
mapfile -t all < <(sources)
[[ ${#all[@]} -gt 0 ]] || { echo 'no sources found'; exit 1; }
strays=0

stray() {  # stray RULE LINES
  [[ -n $2 ]] || return 0
  printf '%s:\n%s\n' "$1" "$2"
  strays=1
}

# only_in HEADERS ROOMS: regular expressions of vendors' header names, and of the paths that may include them
only_in() {
  stray "outside its home ($2)" "$(grep -nE "^ *# *include *[<\"]($1)" "${all[@]}" | grep -vE "^($2|examples/)")"  # users' programs
}
only_in 'cuda_|cuda\.h|cuda/std|cublas|cusolver|thrust/|cub/|cooperative_groups' \
  'cuda/|bench/vendor_cuda\.cu:|tests/[^:]*\.cu:|tests/ranks/nccl|include/ncollapse/nccl\.hpp:'
only_in 'nccl\.h' 'include/ncollapse/nccl\.hpp:'
only_in 'mpi\.h' 'include/ncollapse/mpi\.hpp:'
only_in 'cblas|lapack|openblas' 'host/cpu/|bench/vendor_cpu\.cpp:|tests/shim/'
only_in 'omp\.h' 'host/cpu/|cuda/staging\.cpp:'
only_in 'lbfgs\.h' 'host/ufm/lbfgs\.cpp:'
only_in 'nlohmann/' 'host/io/|host/cli/|tests/'
only_in 'zip\.h|zlib' 'host/io/|tests/'
only_in 'CLI/|fmt/' 'host/cli/'
only_in 'torch/|ATen/|c10/' 'include/ncollapse/torch\.hpp:|tests/examples/'
only_in 'gtest/|gmock/|expat\.h|png\.h' 'tests/'

# sees ROOM HEADERS: of our own headers ("..."), all that the files of a room may include
sees() {
  stray "$1 may see only $2" "$(grep -nE '^ *# *include *"' "${all[@]}" | grep "^$1/" | grep -vE "\"($2)")"
}
sees include 'ncollapse/'
sees host 'ncollapse/|host/|bench/suite\.hpp'  # which is for the command alone, see below
sees cuda 'ncollapse/|host/backend\.hpp|host/safe_radius\.hpp|cuda/'
sees bench 'ncollapse/|host/backend\.hpp|bench/|cuda/(backend|dense|element)\.hpp'
only_in 'bench/' 'bench/|host/cli/bench_command\.cpp:|tests/'

stray 'a public header may see only the standard library and ncollapse/' \
  "$(grep -nE '^ *# *include *<' include/ncollapse/*.hpp | grep -vE '<[a-z_]+>$|/mpi\.hpp:.*<mpi\.h>|/nccl\.hpp:.*<(nccl|cuda_runtime)\.h>|/torch\.hpp:.*<(ATen|c10)/')"
exit $strays
