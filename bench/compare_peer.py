#!/usr/bin/env python3
"""Times ncollapse against the PyTorch package rhubarbwu/neural-collapse on the same arrays, on the CPU or on a GPU.

Needs torch and numpy. Each measurement is a process of its own, the contestants take turns (A B C A B C ...), and the
median counts. What is timed:

  peer       its accumulators as its README shows them (means; then variances and covariance; then decisions), in
             batches of features that lie in memory, plus nc1 (pinv), cdnv, etf error, duality error, agreement
  plain      bench/end_to_end.cpp --plain: one-hot products and separate passes by BLAS alone, without torch
  in memory  bench/end_to_end.cpp: the same batches of features in memory, all metrics of the catalogue
  command    `ncollapse analyze` on the files in the page cache: the whole process, from exec to exit

On a GPU the features of the first three lie in its memory, and each has done the job once before it is timed, the peer a
small one: it hashes all means in every batch, which at 50257 classes takes it some 20 minutes in batches of 1000 (a
larger --batch takes less). What the peer has no memory for is reported as failed.

The bias is zero, since the peer's agreement knows none. Peak memory is the whole process's, arrays and interpreter
included (ru_maxrss, which is VmHWM; mapped file pages count); "in memory" counts from the first call of the library on,
the arrays included, but not the reading of the files before it.

  bench/compare_peer.py --peer DIR_WITH_neural_collapse [--build build] [--device cpu|cuda] [--repeats 5]
                        [--cases 50000x512x10 1281167x2048x1000:bf16 ...] [--at-once]

On a GPU `./dev gpu-compare --peer DIR ..` starts it with the libraries found, from a bundle (./dev gpu-bundle) as well.
"""
import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = {"cpu": ["50000x512x10", "50000x512x100", "50000x512x1000", "20000x2048x1000"],
         "cuda": ["50000x512x10", "1281167x2048x1000:bf16", "1000000x768x50257:bf16"]}
CONTESTANTS = ("peer", "plain", "in_memory", "command")
# Our key -> how far the peer's fp32 sums, fp32 pseudo-inverse and fp32 distances may be from it, relative.
AGREE_WITHIN = {"nc1_pinv": 1e-3, "nc1_cdnv": 1e-4, "nc2_etf_h": 1e-4, "nc3_wh_etf": 1e-4, "nc4_agree_train": 1e-4}

# Where the programs are; a bundle says of which commit.
BUNDLE = ROOT / "BUNDLE"
BUILD = ROOT / "bin" if BUNDLE.exists() else ROOT / "build"
# What our programs load from there is not for torch, which brings its own CUDA libraries.
LIBRARIES = os.environ.pop("LD_LIBRARY_PATH", "")

QUIET = 0.05  # a run in which others took more of the processor than this is repeated


def parse(case):
    shape, _, dtype = case.partition(":")
    return *map(int, shape.split("x")), dtype or "f32"


def file_name(name, dtype):
    return f"{name}.safetensors" if name == "features" and dtype == "bf16" else f"{name}.npy"


def load(folder, name):
    import numpy as np
    import torch

    path = folder / f"{name}.npy"
    if path.exists():
        return torch.from_numpy(np.load(path))
    raw = np.fromfile(path.with_suffix(".safetensors"), np.uint8)
    begin = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    shape = json.loads(raw[8:begin].tobytes())[name]["shape"]
    return torch.from_numpy(raw[begin:].view(np.int16)).view(torch.bfloat16).reshape(shape)


def generate(case, folder, device):
    """Gaussian class means of unit-variance entries, within-class noise of 0.3, head = means + noise; labels uniform."""
    import numpy as np
    import torch

    n, d, k, dtype = parse(case)
    random = torch.Generator(device).manual_seed(20)

    def normal(*shape):
        return torch.randn(shape, generator=random, device=device)

    means = normal(k, d)
    labels = torch.randint(k, (n,), generator=random, device=device)
    labels[:k] = torch.arange(k)  # no absent class: the peer would take it for one with a zero mean
    with open(folder / file_name("features", dtype), "wb") as file:
        if dtype == "bf16":  # safetensors: the length of the header, the header, the elements
            header = json.dumps({"features": {"dtype": "BF16", "shape": [n, d], "data_offsets": [0, 2 * n * d]}}).encode()
            header += b" " * (-len(header) % 8)
            file.write(len(header).to_bytes(8, "little") + header)
        else:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, d)})
        for own in labels.split(10000):
            block = means[own] + 0.3 * normal(len(own), d)
            file.write((block.bfloat16().view(torch.int16) if dtype == "bf16" else block).cpu().numpy())
    weights = (means + normal(k, d)) / d
    for name, array in (("labels", labels), ("W", weights), ("b", torch.zeros(k))):
        np.save(folder / f"{name}.npy", array.cpu().numpy())


class OutOfTime(Exception):
    pass


def stop(*_):
    raise OutOfTime


def run_peer(folder, package, batch, device, limit):
    import torch

    if package:
        sys.path.insert(0, package)
    from neural_collapse.accumulate import CovarAccumulator, DecAccumulator, MeanAccumulator, VarNormAccumulator
    from neural_collapse.measure import (clf_ncc_agreement, covariance_ratio, self_duality_error, simplex_etf_error,
                                         variability_cdnv)

    torch.set_num_threads(os.cpu_count())
    arrays = tuple(load(folder, name).to(device) for name in ("features", "labels", "W"))
    first = arrays[0][:1000].float()
    torch.mm(first.T, first)  # starts the thread pool

    def now():
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def job(features, labels, weights):
        (n, d), k = features.shape, len(weights)

        def batches():
            return ((features[at : at + batch].float(), labels[at : at + batch]) for at in range(0, n, batch))

        start = now()
        mean_accum = MeanAccumulator(k, d, device)
        for x, y in batches():
            mean_accum.accumulate(x, y)
        means, centre = mean_accum.compute()

        var_accum, covar_accum = VarNormAccumulator(k, d, device, M=means), CovarAccumulator(k, d, device, M=means)
        for x, y in batches():
            var_accum.accumulate(x, y, means)
            covar_accum.accumulate(x, y, means)
        variances, _ = var_accum.compute()
        covariance = covar_accum.compute()

        dec_accum = DecAccumulator(k, d, device, M=means, W=weights)
        dec_accum.create_index(means)
        for x, y in batches():
            dec_accum.accumulate(x, y, weights, means if dec_accum.index is None else None)
        accumulated = now()
        metrics = {
            "nc1_pinv": covariance_ratio(covariance, means, centre),
            "nc1_cdnv": variability_cdnv(variances, means, tile_size=64),
            "nc2_etf_h": simplex_etf_error(means, centre),
            "nc3_wh_etf": self_duality_error(weights, means, centre),
            "nc4_agree_train": clf_ncc_agreement(dec_accum),
        }
        end = now()
        return {"seconds": end - start, "accumulate_seconds": accumulated - start, "measure_seconds": end - accumulated,
                "metrics": metrics, "threads": torch.get_num_threads(), "faiss": dec_accum.index is not None}

    with torch.no_grad():
        if device == "cuda":  # loads what the whole job needs
            features, labels, weights = arrays
            few = min(len(weights), 1000)
            job(features[: 2 * batch], labels[: 2 * batch] % few, weights[:few])
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            result = job(*arrays)
        except OutOfTime:
            result = {"seconds": limit, "unfinished": True, "metrics": {}}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(result))


def busy_seconds():
    """Processor time that anybody has used, from /proc/stat (all but idle and waiting for disks)."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


class ContestantFailed(SystemExit):
    """Ends the whole comparison, unless it was the peer."""


def measured(command):
    """Runs a command; its standard output, wall seconds, peak memory in MiB, and the share of the processor that others
    took meanwhile. This process stays small, because a child's ru_maxrss is never below that of its parent."""
    start, busy = time.perf_counter(), busy_seconds()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    others = (busy_seconds() - busy - usage.ru_utime - usage.ru_stime) / (wall * os.cpu_count())
    if child.returncode != 0:
        raise ContestantFailed(f"failed with {child.returncode}: {' '.join(map(str, command))}")
    return output.decode(), wall, usage.ru_maxrss / 1024, max(others, 0.0)


def wait_for_quiet():
    """Waits, for a quarter of an hour at most, until others leave the processor alone for two seconds."""
    for _ in range(450):
        busy = busy_seconds()
        time.sleep(2)
        if busy_seconds() - busy <= QUIET * 2 * os.cpu_count():
            return


def measured_alone(command):
    """As `measured`, again while others took a part: threads wait for each other, and when one of them is pushed aside
    the whole contestant loses far more than that share."""
    for _ in range(10):
        wait_for_quiet()
        result = measured(command)
        if result[3] <= QUIET:
            break
    return result


def contestants(folder, case, options):
    files = {name: folder / file_name(name, parse(case)[3]) for name in ("features", "labels", "W", "b")}
    this = [sys.executable, Path(__file__).resolve()]
    result = {"peer": this + ["--as-peer", folder, "--peer", options.peer, "--batch", options.batch, "--device",
                              options.device, "--limit", options.limit]}
    if options.only != ["peer"]:
        arrays = [files["features"], files["labels"], files["W"], files["b"], "--batch", options.batch, "--device",
                  options.device]
        ours = ["env", f"LD_LIBRARY_PATH={LIBRARIES}"] if LIBRARIES else []
        end_to_end = find_program(options.build, "end_to_end")
        result["plain"] = [*ours, end_to_end, *arrays, "--plain"]
        result["in_memory"] = [*ours, end_to_end, *arrays]
        result["command"] = [*ours, options.command or find_program(options.build, "ncollapse"), "analyze", "--features",
                             files["features"], "--labels", files["labels"], "--weights", files["W"], "--bias",
                             files["b"], "--convention", "peer", "--device", options.device, "--json", "-"]
    return {who: command for who, command in result.items() if who in options.only}


def find_program(build, name):
    for place in build.rglob(name):
        if place.is_file() and os.access(place, os.X_OK):
            return place
    sys.exit(f"no program {name} under {build}: build first")


def run_case(case, options):
    runs = {}
    with tempfile.TemporaryDirectory(prefix="ncollapse-peer-") as name:
        folder = Path(name)
        measured([sys.executable, Path(__file__).resolve(), "--generate", case, "--into", folder, "--device", options.device])
        commands = contestants(folder, case, options)
        # On the CPU one turn before brings the files into the page cache; on a GPU they were just written.
        for turn in range(0 if options.device == "cpu" else 1, options.repeats + 1):
            for who, command in list(commands.items()):
                try:
                    output, wall, peak, others = (measured_alone if turn and not options.at_once else measured)(command)
                except ContestantFailed as failure:
                    if who != "peer" or options.only == ["peer"]:
                        raise
                    print(failure, file=sys.stderr)
                    del commands[who]
                    runs.pop(who, None)
                    continue
                if turn == 0:
                    continue
                answer = json.loads(output)
                seconds = wall if who == "command" else answer["seconds"]
                runs.setdefault(who, []).append({"seconds": seconds, "wall_seconds": wall,
                                                 "peak_mib": answer.get("peak_mib", peak),
                                                 "others": others, **{
                    key: answer[key] for key in ("accumulate_seconds", "measure_seconds", "unfinished") if key in answer}})
                runs.setdefault("metrics", {})[who] = {key: answer["metrics"][key] for key in AGREE_WITHIN
                                                       if key in answer["metrics"]}
    return runs


def git(*arguments):
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit_name():
    if BUNDLE.exists():
        return next(line.split("=", 1)[1].strip() for line in open(BUNDLE) if line.startswith("commit="))
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")


def processor():
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical cores"


def blas():
    """Full version of the distribution's OpenBLAS, if dpkg knows."""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "libopenblas0-pthread"], capture_output=True, text=True)
    return done.stdout or "unknown"


def differences(metrics):
    """Largest relative difference to the peer by key, over the other contestants that have it."""
    table = {}
    for key, peer in metrics.get("peer", {}).items():
        others = [values[key] for who, values in metrics.items() if who != "peer" and key in values]
        table[key] = max((abs(value - peer) / abs(peer) for value in others), default=float("nan"))
    return table


def median(runs, field):
    return statistics.median(run[field] for run in runs)


def row(case, runs, asked):
    n, d, k, dtype = parse(case)
    peer = median(runs["peer"], "seconds") if "peer" in runs else None
    least = "> " if any("unfinished" in run for run in runs.get("peer", [])) else ""
    cells = [str(n), str(d), str(k), dtype, f"{least}{peer:.3g}" if peer else "failed" if "peer" in asked else "-"]
    peaks = [f"{median(runs['peer'], 'peak_mib'):.0f}" if peer else "-"]
    for who in CONTESTANTS[1:]:
        if who in runs:
            theirs = median(runs[who], "seconds")
            cells += [f"{theirs:.3g}", f"{least}{peer / theirs:.1f}x" if peer else "-"]
            peaks.append(f"{median(runs[who], 'peak_mib'):.0f}")
        else:
            cells += ["-", "-"]
            peaks.append("-")
    if max(run["others"] for who in CONTESTANTS for run in runs.get(who, [])) > QUIET:
        cells[0] += " (disturbed)"
    worst = max(differences(runs["metrics"]).values(), default=None)
    return "| " + " | ".join(cells + [" / ".join(peaks), "-" if worst is None else f"{worst:.0e}"]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="folder that holds the package neural_collapse (else: importable)")
    parser.add_argument("--build", type=Path, default=BUILD)
    parser.add_argument("--command", type=Path, help="the ncollapse command (else: the one under --build)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="*", metavar="NxDxK[:bf16]", help="default: by device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=0, help="seconds after which the peer's job is ended, and counts as "
                        "at least so long (default: never)")
    parser.add_argument("--at-once", action="store_true", help="do not wait for others to leave the processor alone; rows "
                        "say where they took part")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="CONTESTANT",
                        help=f"of {', '.join(CONTESTANTS)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--generate", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        return generate(options.generate, options.into, options.device)
    if options.as_peer:
        return run_peer(options.as_peer, options.peer, options.batch, options.device, options.limit)

    versions = subprocess.run([sys.executable, "-c", "import torch, numpy; print(torch.__version__, numpy.__version__, "
                               "torch.backends.mkl.is_available(), torch.cuda.is_available() and "
                               "torch.cuda.get_device_name())"], capture_output=True, text=True)
    if versions.returncode != 0:
        sys.exit("compare_peer.py needs torch and numpy: " + versions.stderr.strip().splitlines()[-1])
    torch_version, numpy_version, mkl, gpu = versions.stdout.strip().split(maxsplit=3)
    if options.device == "cuda" and gpu == "False":
        sys.exit("compare_peer.py --device cuda: torch has no CUDA device here")
    commit = commit_name()
    about = {"date": date.today().isoformat(), "commit": commit, "processor": processor(), "load_before": os.getloadavg()[0],
             "device": options.device, "gpu": gpu if options.device == "cuda" else None,
             "batch": options.batch, "repeats": options.repeats, "torch": torch_version, "torch_blas": "MKL" if mkl == "True" else "other",
             "numpy": numpy_version, "openblas": blas(), "python": platform.python_version()}
    results, rows, disagree = {}, [], []
    for case in options.cases or CASES[options.device]:
        results[case] = runs = run_case(case, options)
        rows.append(row(case, runs, options.only))
        print(rows[-1], flush=True)
        disagree += [f"{case} {key}: {found:.1e} > {AGREE_WITHIN[key]:.0e}"
                     for key, found in differences(runs["metrics"]).items() if found > AGREE_WITHIN[key]]

    where = gpu if options.device == "cuda" else about["processor"]
    table = "\n".join([
        f"# ncollapse and the PyTorch package rhubarbwu/neural-collapse, {'GPU' if options.device == 'cuda' else 'CPU'}", "",
        f"{about['date']}, commit {commit}, {where}; torch {torch_version} ({about['torch_blas']}), OpenBLAS "
        f"{about['openblas']}. Seconds are medians of {options.repeats} alternating runs; batches of {options.batch} samples."
        + ("" if options.at_once else
           f" A run in which other processes took more than {QUIET:.0%} of the processor was repeated."), "",
        "| N | d | K | features | peer | plain | faster | in memory | faster | command | faster | "
        "peak MiB: peer / plain / in memory / command | largest difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|", *rows, "",
        "peer, plain, in memory: accumulate, decide and measure, features in the device's memory (the peer measures 5 "
        "metrics, plain 2, both in single precision; ncollapse its whole catalogue, in double). command: `ncollapse "
        "analyze` on files in the page cache, whole process.",
        "> : the peer was ended before it was done. "
        "largest difference to the peer: relative, over " + ", ".join(f"`{key}`" for key in AGREE_WITHIN) +
        "; the peer sums in float32."])
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"peer-{options.device}-{commit}"
    target.with_suffix(".json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    target.with_suffix(".md").write_text(table + "\n")
    print(f"written: {target}.md, {target}.json")
    if disagree:
        sys.exit("values disagree: " + "; ".join(disagree))


if __name__ == "__main__":
    main()
