#!/usr/bin/env bash
# gpu.sh NCOLLAPSE: what `./dev gpu` makes of a bundle, where the GPU, its tools and all programs but the command are
# stand-ins: that a good run passes, that nothing else does, and that both leave a result which the command can read.
set -euo pipefail
source "$(dirname "$0")/sources.sh"
command=$(realpath "$1")
bundle=$(mktemp -d)
trap 'rm -rf "$bundle"' EXIT
mkdir -p "$bundle"/{bin,lib,bench,stub}
cp dev "$bundle"
cp bench/gpu.sh bench/initcheck.sh "$bundle/bench"
printf 'commit=abc1234\narchs=90\n' >"$bundle/BUNDLE"
script() { cat >"$bundle/$1"; chmod +x "$bundle/$1"; }
script stub/nvidia-smi <<<'#!/usr/bin/env bash
echo "NVIDIA Some GPU 80GB, 580.1"'
# The command after the options, then what is to be reported, in the tool's own form.
script stub/compute-sanitizer <<'EOF'
#!/usr/bin/env bash
code=0
while [[ $1 == --* ]]; do
  case $1 in
    --tool) tool=$2 ;;
    --error-exitcode) code=$2 ;;
  esac
  shift 2
done
"$@" || exit
[[ ${STUB_TOOL-} == "$tool" ]] || { echo '========= ERROR SUMMARY: 0 errors'; exit 0; }
printf "$STUB_REPORT"
exit "$code"
EOF
for name in demo_test cuda_gpu_tests api_tests theory_tests ranks_tests theory; do
  script "bin/$name" <<'EOF'
#!/usr/bin/env bash
[[ ${0##*/} != "${STUB_FAILS-}" ]] || exit 1
if [[ ${0##*/} == "${STUB_SKIPS-}" ]]; then
  printf '[==========] Running 2 tests.\n[  SKIPPED ] Some.Test (0 ms)\n[  SKIPPED ] Other.Test (0 ms)\n[  PASSED  ] 0 tests.\n'
elif [[ ${0##*/} != theory ]]; then
  printf '[==========] Running 2 tests.\n[  SKIPPED ] Some.Test (0 ms)\n[  PASSED  ] 1 test.\n'
fi
EOF
done
export COMMAND=$command
script bin/ncollapse <<'EOF'
#!/usr/bin/env bash
case "$*" in
  'bench --device cuda'*)
    [[ -z ${STUB_BENCH_FAILS-} ]] || exit 4
    exec "$COMMAND" bench --device cpu --case C1 --op sums --scale 1e-9 --seconds 0.001 --repeats 1 --threads 1 --commit abc1234 \
      --json "${@: -1}" ;;
  'bench --from'*) exec "$COMMAND" "$@" ;;
esac
EOF

failed=0
complain() { echo "$what: $*"; failed=1; }
# expect VERDICT EXIT_CODE [LINE_OF_THE_TABLE]: of a run with what the environment says.
expect() {
  local code=0 page=$bundle/bench/results/Some-GPU-80GB-abc1234
  rm -rf "$bundle/bench/results" "$bundle/out"
  PATH=$bundle/stub:$PATH "$bundle/dev" gpu >"$bundle/log" 2>&1 || code=$?
  if [[ $code -ne $2 ]]; then complain "exit code $code"; cat "$bundle/log"; fi
  grep -q "^# NVIDIA Some GPU 80GB, commit abc1234, .*: $1$" "$page.md" || { complain "not $1"; cat "$page.md"; }
  grep -q "\"verdict\": \"$1\"" "$page.json" || complain "no JSON page with the verdict $1"
  [[ -z ${3-} ]] || grep -qF "$3" "$page.md" || { complain "no line '$3'"; cat "$page.md"; }
  [[ $(grep -c '^| [a-z_]* | ' "$page.md") -ge 13 ]] || complain 'steps are missing'
}
report() { export STUB_TOOL=$1 STUB_REPORT=$2; }
read_of() { printf '========= Uninitialized __global__ memory read of size 8 bytes\\n=========     at %s+0x70\\n' "$1"; }

what='a good run' expect passed 0 '| cuda_gpu_tests | passed | 1 | 1 |'
grep -q '^| C1 | sums | ' "$bundle"/bench/results/*.md || { what='a good run' complain 'no benchmarks'; }
what='a failing program' STUB_FAILS=api_tests expect failed 1 '| api_tests | failed: exit 1 |'
what='nothing but skipped tests' STUB_SKIPS=theory_tests expect failed 1 '| theory_tests | failed: no test ran | 0 | 2 |'
what='no benchmarks' STUB_BENCH_FAILS=1 expect failed 1 '| bench | failed: exit 4 |'
what='no time' GPU_SECONDS=1 expect incomplete 0 '| memcheck | not run: no time was left |'
report racecheck '========= Error: Race reported\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n'
what='a race' expect failed 1 '| racecheck | failed: exit 9 |'
ours='ncollapse::cuda::<unnamed>::pair_rows<double>(int)' product='ncollapse::cuda::<unnamed>::promote<float>(int)'
report initcheck "$(read_of "$ours")========= ERROR SUMMARY: 1 error\n"
what='a read by a kernel of ours' expect failed 1 '| initcheck | failed: exit 1 |'
report initcheck "$(read_of "$product")$(read_of 'void cutlass::Kernel(int)')========= ERROR SUMMARY: 2 errors\n"
what='reads of products' expect passed 0
report initcheck '========= Something else\n========= ERROR SUMMARY: 1 error\n'
what='a report of another kind' expect failed 1
report initcheck '========= Error: the process was lost\n'
what='no summary' expect failed 1
exit $failed
