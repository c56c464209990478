#!/usr/bin/env bash
# initcheck.sh READERS COMMAND..: the command under compute-sanitizer's initcheck. Fails where a kernel of ours reads what
# nobody wrote, but for READERS (kernel|kernel..), and where the tool came to no end or reports what is not understood
# here; says how many reads there were of which kind.
set -euo pipefail
compute-sanitizer --tool initcheck --show-backtrace no --print-limit 0 "${@:2}" | awk -v readers="$1" '
  /Uninitialized .*memory read/ { report = $0; next }
  report != "" {
    if ($0 !~ /ncollapse/ || $0 ~ /cub::/) ++vendor
    else if ($0 ~ "::(" readers ")[<(]") ++products
    else { ++ours; print report; print }
    report = ""
  }
  /[Uu]ninitialized .*(cudaMemcpy|cuMemcpy)/ { ++copies }
  /ERROR SUMMARY: [0-9]+ error/ { ended = 1; errors = $4 }
  !/^=========/ { print }
  END {
    printf "reads of what initcheck saw nobody write: %d ours, %d of products, %d of vendors, %d copies\n", ours, products,
           vendor, copies
    if (!ended) print "initcheck gave no summary"
    unknown = errors > 0 && ours + products + vendor + copies == 0
    if (unknown) printf "initcheck reported %d errors, none of a kind known here\n", errors
    exit ours > 0 || unknown || !ended
  }'
