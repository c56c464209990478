#!/usr/bin/env bash
# examples.sh CMAKE BUILD_DIR CXX GENERATOR [NVCC]: each example is copied, built against what is installed, and run, as a
# stranger would. Without NVCC those in CUDA are left out; without a GPU they are built and say that there is none.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
cmake=$1 build=$2 cxx=$3 generator=$4 nvcc=${5-}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

try() {  # try NAME CMAKE_OPTION...
  local name=$1 status=0
  shift
  echo "--- example $name"
  cp -r "examples/$name" "$place/$name"
  "$cmake" -S "$place/$name" -B "$place/build-$name" -G "$generator" -DCMAKE_CXX_COMPILER="$cxx" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$place/prefix" \
    -DCMAKE_CXX_FLAGS='-Wall -Wextra -Wno-restrict -Werror' "$@"
  "$cmake" --build "$place/build-$name" -j "$(nproc)"
  "$place/build-$name/$name" || status=$?
  if [[ $status -eq 77 ]]; then
    echo "$name: built, but it could not run here"
  elif [[ $status -ne 0 ]]; then
    echo "$name ended with exit code $status"
    exit 1
  fi
}

"$cmake" --install "$build" --prefix "$place/prefix" >/dev/null
try link_cpu
[[ -z $nvcc ]] || try link_cuda -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_HOST_COMPILER="$cxx"
