#!/usr/bin/env bash
# consumer.sh CMAKE BUILD_DIR CXX GENERATOR: what is installed works from elsewhere: the command starts, and a stranger's
# project builds and runs against the library, once installed (find_package) and once as a subdirectory.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
cmake=$1 build=$2 cxx=$3 generator=$4
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

try() {  # try NAME CONFIG CMAKE_OPTION...
  local name=$1 config=$2
  shift 2
  echo "--- consumer, $name"
  "$cmake" -S tests/consumer -B "$place/$name" -G "$generator" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE="$config" "$@"
  "$cmake" --build "$place/$name" -j "$(nproc)"
  "$place/$name/consumer"
  if [[ -x $place/$name/mpi_consumer ]]; then
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
      mpirun -n 3 "$place/$name/mpi_consumer"
  else
    echo 'no MPI here, so nobody tried ncollapse::mpi'
  fi
}

"$cmake" --install "$build" --prefix "$place/prefix" >/dev/null
"$place/prefix/bin/ncollapse" --version
find "$place/prefix/share" -name LICENSE | grep -q .
# A CMake before 3.23 knows no file sets: it has to find the headers otherwise.
grep -q 'INTERFACE_INCLUDE_DIRECTORIES "${_IMPORT_PREFIX}/include"' "$place"/prefix/*/cmake/ncollapse/ncollapseTargets.cmake
echo '--- pkg-config, and a prefix that has moved'
mv "$place/prefix" "$place/moved"
flags=$(PKG_CONFIG_PATH=$(dirname "$(find "$place/moved" -name ncollapse.pc)") pkg-config --cflags --libs ncollapse)
# shellcheck disable=SC2086
"$cxx" -std=c++20 tests/consumer/main.cpp -o "$place/by_pkg_config" $flags
LD_LIBRARY_PATH=$(dirname "$(find "$place/moved" -name libncollapse.so)") "$place/by_pkg_config" >/dev/null
mv "$place/moved" "$place/prefix"
try find_package Release -DCMAKE_PREFIX_PATH="$place/prefix"
echo '--- a component that does not exist'
mkdir "$place/wrong"
printf '%s\n' 'cmake_minimum_required(VERSION 3.25)' 'project(wrong LANGUAGES CXX)' \
  'find_package(ncollapse REQUIRED COMPONENTS mpl)' >"$place/wrong/CMakeLists.txt"
said=$("$cmake" -S "$place/wrong" -B "$place/wrong/build" -G "$generator" -DCMAKE_CXX_COMPILER="$cxx" \
  -DCMAKE_PREFIX_PATH="$place/prefix" 2>&1) && exit 1
grep 'it has no component mpl; there are' <<<"$said"
# It is the packaging that is on trial: no optimisation, and no kernels compiled a second time.
try add_subdirectory Debug -DNCOLLAPSE_SOURCE_DIR="$PWD" -DNCOLLAPSE_CUDA=OFF
echo '--- a project that has it as a subdirectory installs only what is its own'
"$cmake" --install "$place/add_subdirectory" --prefix "$place/parent" >/dev/null
[[ -z $(find "$place/parent" -type f 2>/dev/null) ]]
