# shellcheck shell=bash
# Sourced by ./dev: `gpu` tests and times on a GPU, `gpu_profile` says where the time of its kernels goes, `gpu_limits`
# which sizes of blocks and tiles are fastest there, `gpu_compare` times the PyTorch package beside it, and `gpu_bundle` packs
# what they need for a machine that has a driver and the CUDA libraries but no compiler, packages or network. Uses say, die,
# configure, commit_name, build and jobs of ./dev.
# shellcheck disable=SC2154,SC2016,SC2100

programs=(ncollapse demo_test api_tests theory_tests ranks_tests cuda_gpu_tests theory end_to_end limits)
cuda_filter='*cuda*:*Cuda*:*CUDA*'  # of the tests that run on every backend, those on this one
small_filter='*/tiny'                # of the backend's tests, those in small chunks: the sanitizers slow everything down
# Of these, the quickest that launch every kernel of ours (house.kernel_coverage): racecheck and initcheck are the slowest.
quick_filter=$(printf '*.%s/tiny:' FastScatterKeepsItsBoundWhereErrorsConspire FaultsAreFoundAndChangeNothing \
  RowsAreCertifiedByTheirOwnSize RowsNearTheirMeansAreDecidedByTheFormulas OpenRowsOfManyCandidatesAreDecidedByTheFormulas ImportsEveryElementType RowVerbs GramsOfGroupsOfRows \
  ProductAndGram EigenvaluesAlone CholeskyAndItsSolves PairSumsOfDegenerateRows FastPairSumsInPieces ProductSums)*.FaultsOfBothKindsAreCounted
# initcheck does not see every store of a vendor's kernels (those by bulk copies on Hopper, for one) and takes what they
# write for what nobody wrote. Of ours, these read such products from memory that was not zeroed before; copies to the host
# and the vendors' own reads are counted, but not held against us either. That none of ours reads what nobody wrote, if the
# vendors write what they say, is what cuda_shim_tests_reads finds on any machine.
product_readers='reduce_pairs|reduce_product|merge_leaders|find_leads|promote'
# On an H100 racecheck ended with "failed to handle a hardware exception" and an illegal access in the tests of the general
# class sums, the fast scatter and the decisions, in which memcheck finds nothing; whose fault that is, is not known
# (bench/NOTES.md). It gets the others. cuda_shim_tests_tsan looks for races in all kernels, on any machine.
race_filter=$(printf '*.%s/tiny:' ImportsEveryElementType RowVerbs GramsOfGroupsOfRows ProductAndGram EigenvaluesAlone CholeskyAndItsSolves \
  PairSumsOfDegenerateRows ProductSums)*.FaultsOfBothKindsAreCounted
total_seconds=${GPU_SECONDS:-450}    # for all steps together
bench_options=(--plain)
if [[ $total_seconds -lt 300 ]]; then  # in a hurry: all steps, but less of each
  small_filter=$quick_filter cuda_filter+=':-*AwkwardShapes*' bench_options=(--seconds 0.3)
fi
[[ -z ${GPU_BENCH-} ]] || read -ra bench_options <<<"$GPU_BENCH"  # other options for `ncollapse bench`

# The steps and the seconds each may take, the most telling first. They add up to 450. What a step leaves goes to the
# next ones: all may run until the later ones' own seconds begin.
plan=(demo 15 demo_test 15 cuda_gpu_tests 60 nccl_gpu_tests 15 api_tests 60 theory_tests 60 ranks_tests 15 bench 90
      memcheck 30 racecheck 25 synccheck 20 initcheck 25 theory 20)

program() {  # where a program lies: bin/ in a bundle, somewhere in the build folder otherwise
  if [[ -f BUNDLE ]]; then find bin -name "$1"; else find "$build" -type f -executable -name "$1" -print -quit; fi
}

gpu_bundle() {
  build=build-bundle
  command -v nvcc >/dev/null || die 'gpu-bundle needs nvcc'
  configure -DNCOLLAPSE_MPI=OFF -DCMAKE_CUDA_FLAGS=--compress-mode=size  # one GPU, one process; a small file
  cmake --build "$build" -j "$jobs" --target "${programs[@]/%ncollapse/ncollapse_command}"

  rm -rf bundle
  mkdir -p bundle/bin bundle/lib/fallback bundle/bench bundle/data
  cp -r dev bundle/
  cp bench/gpu.sh bench/initcheck.sh bench/compare_peer.py bundle/bench/
  cp -r data/demo bundle/data/
  local name library
  for name in "${programs[@]}"; do install -s "$(program "$name")" bundle/bin/; done
  # Everything they load, but for the C library (older is fine, newer is not: build on the older system) and CUDA.
  # The C++ runtime is a fallback: a newer one of the GPU machine's own must win, since the CUDA tools may need it.
  ldd bundle/bin/* "$build"/libncollapse.so | awk '$2 == "=>" && $3 ~ "^/" {print $3}' | sort -u | while read -r library; do
    case ${library##*/} in
      libc.so.* | libm.so.* | libmvec.so.* | libpthread.so.* | libdl.so.* | librt.so.* | libcu* | libnv* | libnccl*) ;;
      libstdc++.so.* | libgcc_s.so.*) cp -L "$library" bundle/lib/fallback/ ;;
      *) cp -L "$library" bundle/lib/ ;;
    esac
  done
  tar -C bundle -czf bundle/lib.tar.gz lib  # OpenBLAS alone is 36 MB, with code for every processor
  rm -r bundle/lib
  printf 'commit=%s\narchs=%q\n' "$(commit_name)" "${ARCHS:-$(default_archs)}" >bundle/BUNDLE
  printf '#!/usr/bin/env bash\nexec "$(dirname "$0")/dev" gpu\n' >bundle/run
  chmod +x bundle/run

  local megabytes
  megabytes=$(du -sm bundle | cut -f 1)
  say "bundle/ holds $megabytes MB: copy it to the GPU machine and start bundle/run there"
  [[ $megabytes -le 60 ]] || die 'bundle/ is larger than 60 MB'
}

# Puts the bundle's libraries and CUDA's on the loader's path, and says which are missing.
set_library_path() {
  local dir missing
  local dirs=()
  if [[ -f BUNDLE ]]; then
    [[ -d lib ]] || tar -xzf lib.tar.gz
    dirs+=("$PWD/lib")
  fi
  for dir in /usr/local/cuda/lib64 $(python3 -c 'import site; print(*(p + "/nvidia/cu13/lib" for p in site.getsitepackages()))' \
    2>/dev/null); do
    if [[ -e $dir/libcublas.so.13 ]]; then dirs+=("$dir"); fi
  done
  # No pipe to grep -q, which ends early: ldconfig would die of that, and count as a failure.
  if [[ -f BUNDLE && $(/sbin/ldconfig -p 2>/dev/null) != *libstdc++.so.6* ]]; then dirs+=("$PWD/lib/fallback"); fi
  for dir in "${dirs[@]}"; do LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$dir; done
  export LD_LIBRARY_PATH
  missing=$(ldd "$(program ncollapse)" | grep 'not found') || return 0
  die "libraries are missing here (LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}):"$'\n'"$missing"
}

# Builds where this is no bundle, and sets what the callers declare.
prepare_gpu() {
  command -v nvidia-smi >/dev/null || die 'no nvidia-smi: no NVIDIA driver, so no GPU to use'
  IFS=, read -r name driver < <(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader) || true
  [[ -n ${driver-} ]] || die 'nvidia-smi sees no GPU'
  if [[ -f BUNDLE ]]; then
    source ./BUNDLE
  else
    command -v nvcc >/dev/null || die 'no nvcc and no bundle here: make one elsewhere with ./dev gpu-bundle, start its run'
    configure || die 'what is missing ./dev setup installs; or make a bundle elsewhere with ./dev gpu-bundle, and start its run'
    cmake --build "$build" -j "$jobs"
    commit=$(commit_name) archs=${ARCHS:-$(default_archs)}
  fi
  set_library_path
  PATH=$PATH:/usr/local/cuda/bin
  stem=bench/results/$(tr -cs 'a-zA-Z0-9' - <<<"${name#NVIDIA }" | sed 's/-*$//')-$commit
  mkdir -p bench/results out/gpu
}

gpu() {
  local name driver commit archs='' stem tool budget options filter
  prepare_gpu
  local verdict=passed outcome entry i entries=()
  deadline=$((SECONDS + total_seconds))
  rm -rf out/gpu/steps
  mkdir -p out/gpu/steps

  step demo "$(program ncollapse)" analyze --device cuda --features data/demo/features.npy \
    --labels data/demo/labels.npy --weights data/demo/W1.npy --bias data/demo/b.npy --json out/gpu/demo.json
  # Side by side: they wait for the host more than for the GPU. What is timed or sanitized has it for itself.
  step demo_test env NCOLLAPSE_DEMO_DATA=data/demo "$(program demo_test)" &
  step cuda_gpu_tests "$(program cuda_gpu_tests)" &
  [[ -z $(program nccl_gpu_tests) ]] || step nccl_gpu_tests "$(program nccl_gpu_tests)" &  # where there is NCCL
  step api_tests "$(program api_tests)" --gtest_filter="$cuda_filter" &
  step theory_tests "$(program theory_tests)" --gtest_filter="$cuda_filter" &
  step ranks_tests "$(program ranks_tests)" --gtest_filter="$cuda_filter" &
  wait
  rm -f out/gpu/bench.json out/gpu/theory.json
  # No row is begun that might not be done: the slowest takes 20 seconds, with making its samples and checking it.
  budget=$(seconds_for bench)
  step bench "$(program ncollapse)" bench --device cuda "${bench_options[@]}" --limit $((budget > 40 ? budget - 30 : 10)) --quiet \
    --commit "$commit" --json out/gpu/bench.json
  for tool in memcheck racecheck synccheck initcheck; do
    options=() filter=$small_filter
    case $tool in
      memcheck) options=(--report-api-errors no) ;;  # a test runs out of memory on purpose
      racecheck) options=(--kernel-name kns=ncollapse) filter=$race_filter ;;
      initcheck) filter=$quick_filter ;;
    esac
    if ! command -v compute-sanitizer >/dev/null; then
      record "$tool" 'not run: no compute-sanitizer here' 0 '' ''
    elif [[ $tool == initcheck ]]; then
      step initcheck bash bench/initcheck.sh "$product_readers" "$(program cuda_gpu_tests)" --gtest_filter="$filter"
    else
      step "$tool" compute-sanitizer --tool "$tool" "${options[@]}" --error-exitcode 9 "$(program cuda_gpu_tests)" \
        --gtest_filter="$filter"
    fi
  done
  step theory "$(program theory)" spectrum distance --classes 1024,2048 --device cuda --commit "$commit" \
    --json out/gpu/theory.json

  for ((i = 0; i < ${#plan[@]}; i += 2)); do
    if [[ ! -f out/gpu/steps/${plan[i]} ]]; then
      [[ ${plan[i]} == nccl_gpu_tests ]] || verdict=failed
      continue
    fi
    IFS=$'\t' read -r outcome entry <"out/gpu/steps/${plan[i]}"
    entries+=("$entry")
    case $outcome in
      failed*) verdict=failed ;;
      'not run'*) [[ $verdict == failed ]] || verdict=incomplete ;;
    esac
  done
  {
    printf '{"schema": "ncollapse.gpu/1", "gpu": "%s", "driver": "%s", "commit": "%s", "architectures": "%s", ' \
      "$name" "${driver# }" "$commit" "$archs"
    printf '"date": "%s", "verdict": "%s",\n "steps": [\n' "$(date +%F)" "$verdict"
    printf '  %s,\n' "${entries[@]}" | sed '$s/,$//'
    printf ' ],\n "bench": %s,\n "theory": %s}\n' "$(json_or_null out/gpu/bench.json)" "$(json_or_null out/gpu/theory.json)"
  } >"$stem.json"
  "$(program ncollapse)" bench --from "$stem.json" --markdown "$stem.md"
  say "written: $stem.md, $stem.json (logs in out/gpu/)"
  [[ $verdict != failed ]] || die 'something failed on this GPU, see above'
  [[ $verdict == passed ]] || say 'not every step was run, see there'
}

# gpu_profile [CASE..]: every kernel of one call of each operation, by ncu. Times are those of kernels alone, at the clock
# that is there, and after ncu emptied the caches.
gpu_profile() {
  local name driver commit archs stem case operation log
  local cases=("${@:-I1}")
  prepare_gpu
  command -v ncu >/dev/null || die 'no ncu here (Nsight Compute, part of the CUDA toolkit)'
  {
    printf '# Kernels on %s, commit %s\n\n' "$name" "$commit"
    printf 'One call of each operation, `./dev gpu-profile %s`.\n\n' "${cases[*]}"
    printf '| case | operation | kernel | launches | us, mean | us, all | DRAM %% | SM %% |\n|---|---|---|---|---|---|---|---|\n'
  } >"$stem-profile.md"
  for case in "${cases[@]}"; do
    for operation in ${GPU_PROFILE_OPERATIONS:-sums scatter scatter_fast decisions pairs pairs_fast measure}; do
      log=out/gpu/profile-$case-$operation
      say "ncu: $case $operation"
      timeout --kill-after=5 90 ncu --clock-control none --profile-from-start off --csv --log-file "$log.csv" --metrics \
        gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed \
        "$(program ncollapse)" bench --device cuda --case "$case" --op "$operation" --seconds 0.2 --repeats 1 --profile --quiet \
        >"$log.txt" 2>&1 || { say "failed, see $log.txt and $log.csv"; continue; }
      kernel_table "| $case | $operation " "$log.csv" >"$log.md"
      [[ -s $log.md ]] || say "no kernels: $case has no $operation (ncollapse bench --list), see $log.txt and $log.csv"
      cat "$log.md" >>"$stem-profile.md"
    done
  done
  say "written: $stem-profile.md (logs in out/gpu/)"
}

# gpu_limits ARG..: bench/limits.cpp.
gpu_limits() {
  local name driver commit archs stem
  prepare_gpu
  {
    printf '# Sizes of blocks and tiles on %s, commit %s\n\n' "$name" "$commit"
    "$(program limits)" "$@"
  } | tee "$stem-limits.md"
  say "written: $stem-limits.md"
}

# gpu_compare ARG..: beside the PyTorch package, on the GPU (bench/compare_peer.py --help).
gpu_compare() {
  local name driver commit archs stem
  prepare_gpu
  python3 bench/compare_peer.py --device cuda --build "$(if [[ -f BUNDLE ]]; then echo bin; else echo "$build"; fi)" "$@"
}

kernel_table() {  # kernel_table PREFIX CSV: rows by name of kernel, the longest first; ncu gives a line to each metric
  awk -F '","' -v prefix="$1" '
    /^"[0-9]+",/ {
      name = $5
      sub(/^void /, "", name)
      gsub(/ncollapse::|cuda::|<unnamed>::|\(anonymous namespace\)::/, "", name)
      gsub(/\([A-Za-z ]+\)/, "", name)  # (bool)1 among template arguments
      sub(/\(.*/, "", name)
      name = substr(name, 1, 60)
      value = $15
      gsub(/[",]/, "", value)
      if ($13 ~ /^gpu__time/) { ++launches[name]; time[name] += value * ($14 == "us" ? 1 : $14 == "ms" ? 1e3 : 1e-3) }
      if ($13 ~ /^dram/) dram[name] += value
      if ($13 ~ /^sm/) sm[name] += value
    }
    END {
      for (name in time)
        printf "%s| `%s` | %d | %.1f | %.1f | %.0f | %.0f |\n", prefix, name, launches[name], time[name] / launches[name],
               time[name], dram[name] / launches[name], sm[name] / launches[name]
    }' "$2" | sort -t '|' -k 7 -gr
}

json_or_null() { if [[ -s $1 ]]; then cat "$1"; else echo null; fi; }

# seconds_for NAME: how long that step of the plan may take, if it is the next one.
seconds_for() {
  local i later=0 own=0 left=$((deadline - SECONDS))
  for ((i = 0; i < ${#plan[@]}; i += 2)); do
    if [[ ${plan[i]} == "$1" ]]; then own=${plan[i + 1]} later=0; else later=$((later + plan[i + 1])); fi
  done
  [[ $own -ge $((left - later)) ]] || own=$((left - later))
  echo $((own < left ? own : left))
}

# step NAME COMMAND..: runs it, keeps its output in out/gpu/, and remembers how it went. Google tests must have run:
# where all are skipped, nobody looked.
step() {
  local name=$1 limit outcome=passed status=0 start=$SECONDS passed='' skipped=''
  shift
  limit=$(seconds_for "$name")
  if [[ $limit -lt 5 ]]; then
    record "$name" 'not run: no time was left' 0 '' ''
    return
  fi
  say "$name: $*"
  timeout --kill-after=5 "$limit" "$@" >"out/gpu/$name.txt" 2>&1 || status=$?
  if grep -q '^\[==========\]' "out/gpu/$name.txt"; then
    passed=$(sed -nE 's/^\[  PASSED  \] ([0-9]+) tests?.*/\1/p' "out/gpu/$name.txt")
    skipped=$(grep -c '^\[  SKIPPED \] .*)$' "out/gpu/$name.txt" || true)
    [[ ${passed:-0} -gt 0 ]] || outcome='failed: no test ran'
  fi
  if [[ $status -eq 124 || $status -eq 137 ]]; then outcome="failed: not done after $limit s"; elif [[ $status -ne 0 ]]; then outcome="failed: exit $status"; fi
  [[ $outcome == passed ]] || tail -n 25 "out/gpu/$name.txt"
  record "$name" "$outcome" $((SECONDS - start)) "$passed" "$skipped"
}

record() {  # record NAME OUTCOME SECONDS PASSED SKIPPED: in a file, since steps may run side by side
  printf '%s\t{"step": "%s", "outcome": "%s", "seconds": %s, "passed": %s, "skipped": %s}\n' "$2" "$1" "$2" "$3" \
    "${4:-null}" "${5:-null}" >"out/gpu/steps/$1"
}
