# shellcheck shell=bash
# Sourced by the other scripts: goes to the project's root and defines sources(), the C++ and CUDA files that are ours.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

sources() {
  if [[ -e .git ]]; then
    git ls-files --cached --others --exclude-standard -- '*.hpp' '*.cpp' '*.cuh' '*.cu' |
      while read -r file; do [[ ! -e $file ]] || echo "$file"; done  # a deleted file is listed until it is committed
  else  # an unpacked archive
    find include host cuda tests bench examples -name '*.[hc]pp' -o -name '*.cuh' -o -name '*.cu' | sort
  fi
}
