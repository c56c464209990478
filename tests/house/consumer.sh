#!/usr/bin/env bash
# consumer.sh CMAKE BUILD_DIR CXX GENERATOR CONFIG: a stranger's project builds and runs against ncollapse, once
# installed (find_package) and once as a subdirectory.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
cmake=$1 build=$2 cxx=$3 generator=$4 config=$5
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

try() {  # try NAME CMAKE_OPTION...
  local name=$1
  shift
  echo "--- consumer, $name"
  "$cmake" -S tests/consumer -B "$place/$name" -G "$generator" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE="$config" "$@"
  "$cmake" --build "$place/$name" -j "$(nproc)"
  "$place/$name/consumer"
}

"$cmake" --install "$build" --prefix "$place/prefix" >/dev/null
try find_package -DCMAKE_PREFIX_PATH="$place/prefix"
# Without CUDA: it is the packaging that is on trial here, and the kernels would be compiled a second time.
try add_subdirectory -DNCOLLAPSE_SOURCE_DIR="$PWD" -DNCOLLAPSE_CUDA=OFF
