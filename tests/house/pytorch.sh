#!/usr/bin/env bash
# pytorch.sh COMMAND: the PyTorch example trains, logs the first ten and every tenth epoch, and variability within
# classes has fallen (to a third, of seed 1).
set -euo pipefail
source "$(dirname "$0")/sources.sh"
command=$1
if ! python=$(for name in python3 /usr/bin/python3; do "$name" -c 'import numpy, torch' 2>/dev/null && { echo "$name"; break; }; done) ||
  [[ -z $python ]]; then
  echo 'SKIPPED: no python3 with torch and numpy here, so nobody ran the PyTorch example'
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
OMP_NUM_THREADS=1 "$python" examples/pytorch/train_and_log.py --ncollapse "$command" --log "$folder/run.jsonl" --epochs 40
"$python" - "$folder/run.jsonl" <<'CHECK'
import json
import sys

header, *steps = [json.loads(line) for line in open(sys.argv[1])]
assert header["schema"] == "ncollapse.run/1" and header["model"]["counts"] == [200, 200, 50, 50, 10, 10], header
assert [step["epoch"] for step in steps] == [*range(1, 11), 20, 30, 40], steps
first, last = steps[0]["metrics"]["nc1_pinv"], steps[-1]["metrics"]["nc1_pinv"]
assert 0 < last < first / 2, (first, last)
assert steps[-1]["metrics"]["acc_top1_train"] == 1 and 0 < steps[-1]["loss"] < steps[0]["loss"], steps[-1]
CHECK
