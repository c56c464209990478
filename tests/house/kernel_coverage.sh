#!/usr/bin/env bash
# kernel_coverage.sh CUDA_SHIM_TESTS: every kernel is launched by the tests that racecheck and initcheck have time for on
# a GPU (quick_filter in bench/gpu.sh); on the stand-in, which says what it launches.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
source bench/gpu.sh
launches=$(mktemp)
trap 'rm -f "$launches"' EXIT
CUDA_SHIM_LAUNCHES=$launches "$1" --gtest_filter="$quick_filter" >/dev/null
launched=$(nm -C --defined-only "$1" | grep -F -f "$launches")
kernels=$(cat cuda/*.cu | tr '\n' ' ' |
  grep -oP '__global__ void\s+(__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?\K\w+(?=\()' | sort -u)
[[ -n $kernels ]] || { echo 'no kernels found in cuda/*.cu'; exit 1; }
failed=0
for kernel in $kernels; do
  grep -qE "\(anonymous namespace\)::${kernel}[<(]" <<<"$launched" && continue
  echo "$kernel is launched by no test of quick_filter (bench/gpu.sh)"
  failed=1
done
for reader in ${product_readers//|/ }; do
  grep -qx "$reader" <<<"$kernels" || { echo "bench/gpu.sh names a kernel $reader that does not exist"; failed=1; }
done
echo "$(wc -w <<<"$kernels") kernels"
exit $failed
