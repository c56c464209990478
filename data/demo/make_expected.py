#!/usr/bin/env python3
"""The demo dump and its expected metrics, in plain double-precision NumPy (nothing of the library is used).

  make_expected.py check DUMP        recompute DUMP/expected.json and compare to 1e-8
  make_expected.py write             recompute expected.json of the folder of this script
  make_expected.py subsample DUMP    remake the .npy files of this folder from the full dump, then `write`

The covariances are formed as d x d matrices and inverted by numpy.linalg.pinv: slow, but straight from the definitions.
"""
import json
import sys
from pathlib import Path

import numpy as np

ARRAYS = ("features", "labels", "test_features", "test_labels", "W1", "b")
HERE = Path(__file__).resolve().parent


def unit_rows(a):
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def etf_error(gram):
    """Frobenius distance of the normalised Gram matrix from that of a simplex equiangular tight frame."""
    k = len(gram)
    target = (np.eye(k) - 1.0 / k) / np.sqrt(k - 1)
    return np.linalg.norm(gram / np.linalg.norm(gram) - target)


def equiangularity(rows):
    k = len(rows)
    cosines = (unit_rows(rows) @ unit_rows(rows).T)[~np.eye(k, dtype=bool)]
    return np.mean(np.abs(cosines + 1 / (k - 1)))


def metrics(dump, convention):
    h, y = dump["features"].astype(np.float64), dump["labels"]
    w, b = dump["W1"].astype(np.float64), dump["b"].astype(np.float64)
    k, n = len(w), len(h)
    counts = np.bincount(y, minlength=k)
    means = np.stack([h[y == c].mean(axis=0) for c in range(k)])
    residual = h - means[y]
    variances = np.array([np.mean(np.sum(residual[y == c] ** 2, axis=1)) for c in range(k)])

    sample_mean = h.mean(axis=0)
    centre = means.mean(axis=0) if convention in ("peer", "papyan") else sample_mean
    centred = means - centre
    within = residual.T @ residual / n
    weights = counts / n if convention == "anova" else np.full(k, 1 / k)
    between = (centred * weights[:, None]).T @ centred
    nc1 = np.trace(within @ np.linalg.pinv(between, hermitian=True, rcond=1e-12))

    i, j = np.triu_indices(k, 1)
    squared = np.sum((means[i] - means[j]) ** 2, axis=1)
    cosines = (unit_rows(centred) @ unit_rows(centred).T)[i, j]
    chords = np.linalg.norm(unit_rows(centred)[i] - unit_rows(centred)[j], axis=1)
    norms_h, norms_w = np.linalg.norm(centred, axis=1), np.linalg.norm(w, axis=1)
    raw_gram = means @ means.T
    dots = np.sum(w * centred, axis=1)
    duals = dots / (norms_w * norms_h)

    result = {
        "nc1_pinv": nc1 if convention == "papyan" else nc1 / k,
        "nc1_pinv_sum": nc1,
        "nc1_trace_ratio": np.trace(within) / np.trace(between),
        "nc1_within_frac": np.trace(within) / (np.trace(within) + np.trace(between)),
        "nc1_cdnv": np.mean((variances[i] + variances[j]) / (2 * squared)),
        "nc2_equinorm_h": norms_h.std() / norms_h.mean(),
        "nc2_equiang_h": equiangularity(centred),
        "nc2_cos_mean_h": cosines.mean(),
        "nc2_cos_std_h": cosines.std(),
        "nc2_cos_max_h": cosines.max(),
        "nc2_etf_h": etf_error(centred @ centred.T),
        "nc2_of_h": np.linalg.norm(raw_gram / np.linalg.norm(raw_gram) - np.eye(k) / np.sqrt(k)),
        "nc2_gnc_dist_mean": chords.mean(),
        "nc2_gnc_dist_var": chords.var(),
        "nc2_gnc_log_mean": np.mean(-np.log(chords)),
        "nc2_gnc_log_var": np.var(-np.log(chords)),
        "nc_drift": np.linalg.norm(sample_mean),
        "nc2_equinorm_w": norms_w.std() / norms_w.mean(),
        "nc2_equiang_w": equiangularity(w),
        "nc2_etf_w": etf_error(w @ w.T),
        "nc3_dual": np.linalg.norm(w / np.linalg.norm(w) - centred / np.linalg.norm(centred)),
        "nc3_wh_etf": etf_error(w @ centred.T),
        "nc3_cos_mean": duals.mean(),
        "nc3_cos_min": duals.min(),
        "nc3_uni_dot_var": dots.var(ddof=1),
        "nc_bias": np.linalg.norm(w @ sample_mean + b),
        "nc_bias_prior": np.linalg.norm(b - counts / n),
    }
    for split, x, truth in (("train", h, y), ("test", dump["test_features"].astype(np.float64), dump["test_labels"])):
        nearest = np.argmin(((x[:, None, :] - means[None]) ** 2).sum(axis=2), axis=1)
        decided = np.argmax(x @ w.T + b, axis=1)
        result[f"nc4_agree_{split}"] = np.mean(nearest == decided)
        result[f"acc_top1_{split}"] = np.mean(decided == truth)
        result[f"ncc_acc_{split}"] = np.mean(nearest == truth)
    return {key: float(value) for key, value in result.items()}


def read(folder):
    return {name: np.load(folder / f"{name}.npy") for name in ARRAYS}


def check(folder):
    dump, worst = read(folder), 0.0
    for convention, expected in json.loads((folder / "expected.json").read_text()).items():
        for key, got in metrics(dump, convention).items():
            error = abs(got - expected[key]) / max(abs(expected[key]), 1e-300)
            worst = max(worst, error)
            if not error <= 1e-8:
                print(f"{convention} {key}: {got!r}, expected {expected[key]!r} (relative {error:.1e})")
    print(f"{folder}: largest relative difference {worst:.1e}")
    return 0 if worst <= 1e-8 else 1


def every(step, labels):
    """Rows 0, step, 2 step, ... of each class, in file order: the class proportions stay exactly as they were."""
    rows = [np.flatnonzero(labels == c)[::step] for c in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def subsample(folder):
    dump = read(folder)
    for prefix, step in (("", 2), ("test_", 4)):
        rows = every(step, dump[f"{prefix}labels"])
        for name in (f"{prefix}features", f"{prefix}labels"):
            dump[name] = dump[name][rows]
    for name in ARRAYS:
        np.save(HERE / f"{name}.npy", dump[name])


def write():
    dump = read(HERE)
    table = {convention: metrics(dump, convention) for convention in ("zhu", "peer", "papyan", "anova")}
    (HERE / "expected.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command, folders = (sys.argv[1] if len(sys.argv) > 1 else ""), [Path(a) for a in sys.argv[2:]]
    if command == "check" and len(folders) == 1:
        sys.exit(check(folders[0]))
    if command == "subsample" and len(folders) == 1:
        subsample(folders[0])
        sys.exit(write())
    if command == "write" and not folders:
        sys.exit(write())
    sys.exit(__doc__)
