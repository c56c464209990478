#!/usr/bin/env bash
# kernels.sh NVCC BUILD_INCLUDE_DIR: registers, shared memory, stack and spills of every kernel on sm_80 and sm_90; none
# of ours may spill (CUB's are the vendor's affair and are listed only).
set -euo pipefail
source "$(dirname "$0")/sources.sh"
options_of() {  # that the build gives this file beside all others
  sed -n "s/^set_source_files_properties($(basename "$1") PROPERTIES COMPILE_OPTIONS \(.*\))$/\1/p" cuda/CMakeLists.txt
}
report=$(
  for arch in 80 90; do
    for source in cuda/*.cu; do
      # shellcheck disable=SC2046  # several options, or none
      "$1" -std=c++20 -O3 -DNDEBUG $(options_of "$source") -arch=sm_$arch -cubin -o /dev/null -Xptxas -v -I . -I include \
        -I "$2" "$source" 2>&1 ||
        { echo "$source does not compile for sm_$arch" >&2; exit 1; }
    done
  done | c++filt
)
awk '
  /Compiling entry function/ {
    arch = $NF; gsub(/[^0-9]/, "", arch)
    split($0, quoted, "\047"); name = quoted[2]
  }
  /bytes stack frame/ && name != "" { stack = $1; stores = $5; loads = $9 }
  /Used [0-9]+ registers/ && name != "" {
    registers = shared = 0
    for (i = 2; i <= NF; ++i) {
      if ($i ~ /^registers/) registers = $(i - 1)
      if ($i ~ /^smem/) shared = $(i - 2)
    }
    ours = name ~ /ncollapse/ && name !~ /cub::/
    gsub(/ncollapse::cuda::|\(anonymous namespace\)::|^void /, "", name); sub(/\(.*/, "", name)
    spilled = ours && stores + loads > 0
    if (ours) ++kernels[arch]
    if (ours || stores + loads > 0)
      printf "sm_%s %4d registers %6d B shared %5d B stack %5d B spilled  %s%s\n", arch, registers, shared, stack,
             stores + loads, substr(name, 1, 60), spilled ? "   <-- spills" : ""
    failed += spilled
    name = ""
  }
  END {
    if (!kernels[80] || !kernels[90]) { print "ptxas reported no kernel of ours"; exit 1 }
    printf "%d kernels for sm_80, %d for sm_90, %d spill\n", kernels[80], kernels[90], failed
    exit failed > 0
  }' <<<"$report"
