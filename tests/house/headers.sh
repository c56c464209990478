#!/usr/bin/env bash
# headers.sh COMPILER BUILD_INCLUDE_DIR [MPI_INCLUDE_DIR...]: every public header compiles on its own, with the compiler's
# warnings as errors; mpi.hpp where there is an MPI, nccl.hpp against the stand-ins for CUDA and NCCL.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
for header in include/ncollapse/*.hpp; do
  others=()
  case $header in
    */mpi.hpp)
      [[ $# -gt 2 ]] || { echo 'mpi.hpp: not compiled, there is no MPI here'; continue; }
      others=("${@:3}")
      ;;
    */torch.hpp) continue ;;  # needs LibTorch; house.train_mlp compiles it
    */nccl.hpp) others=(tests/shim) ;;
  esac
  echo "#include \"${header#include/}\"" |
    "$1" -std=c++20 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I include -I "$2" "${others[@]/#/-isystem}" -x c++ - ||
    { echo "$header does not compile on its own"; exit 1; }
done
