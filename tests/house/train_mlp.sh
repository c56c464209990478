#!/usr/bin/env bash
# train_mlp.sh CMAKE BUILD_DIR CXX GENERATOR DATA: the example train_mlp and ncollapse/torch.hpp, built against what is
# installed as a stranger would, and tested. Without LibTorch there is nothing to build (77 = skipped).
set -euo pipefail
source "$(dirname "$0")/sources.sh"
cmake=$1 build=$2 cxx=$3 generator=$4 data=$5
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

make() {  # make NAME SOURCE CMAKE_OPTION...
  local name=$1 source=$2
  shift 2
  "$cmake" -S "$source" -B "$place/$name" -G "$generator" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_PREFIX_PATH="$place/prefix;${CMAKE_PREFIX_PATH-}" -DCMAKE_CXX_FLAGS='-Wall -Wextra -Wno-restrict -Werror' "$@" \
    >"$place/log" 2>&1 || return 1
  "$cmake" --build "$place/$name" -j "$(nproc)"
}

"$cmake" --install "$build" --prefix "$place/prefix" >/dev/null
cp -r examples/train_mlp "$place/copy"
if ! make train_mlp "$place/copy"; then
  cat "$place/log"
  grep -q 'component torch needs LibTorch' "$place/log" || exit 1
  echo 'SKIPPED: no LibTorch here (Debian: libtorch-dev), so nobody built train_mlp'
  exit 77
fi
make tests tests/examples -DTRAIN_MLP="$place/train_mlp/train_mlp" -DNCOLLAPSE_COMMAND="$place/prefix/bin/ncollapse" \
  -DSHARED_DATA="$data" || { cat "$place/log"; exit 1; }
ctest --test-dir "$place/tests" --output-on-failure --no-tests=error -j 2
