"""Objective reached and passes needed, ours beside scikit-learn's LogisticRegression at equal `tol`.

    python -m bench.optimum --data FOLDER --out bench/results/DATE-MACHINE

For every data set, raw and standardised, in float64 and float32 and for C in 1e-2, 1 and 1e2, both libraries fit with
tol=1e-4; one float64 objective judges both. scikit-learn's `max_iter` is raised so that it ends by its own criterion
where it can; ours keeps its default. `--convergence` records instead our passes to fixed relative gaps.

Data: scikit-learn's bundled sets; `NAME.npz` files with X and y in FOLDER (letters, vowel, spam, mnist10k); and
Fashion-MNIST's four IDX files in FOLDER or where Debian's package dataset-fashion-mnist puts them. A set that is not
there is a row that says so.
"""

import argparse
import csv
import gzip
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy
import sklearn
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from gpusoftmax import SoftmaxRegression, __version__
from gpusoftmax.backends import get_backend
from gpusoftmax.solvers.lbfgs import LBFGS
from gpusoftmax.sources import ArraySource
from gpusoftmax.training import Training, train

BUNDLED = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
STRENGTHS = (1e-2, 1.0, 1e2)
GAPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def load(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return X (n, d) in float64 and class indices y; images keep their bytes' range."""
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True)
    if name.startswith("fashion_mnist"):
        folder = folder if (folder / "train-images-idx3-ubyte.gz").exists() else DEBIAN
        with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
            X = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
        with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
            y = np.frombuffer(file.read(), np.uint8, offset=8)
        n_rows = 10_000 if name.endswith("10k") else len(X)
        return X[:n_rows].astype(np.float64), y[:n_rows].astype(np.intp)
    with np.load(folder / f"{name}.npz", allow_pickle=True) as file:
        return file["X"].astype(np.float64), np.unique(file["y"], return_inverse=True)[1]


def objective(X, y, coef, intercept, C: float) -> float:
    """Judge both libraries: scikit-learn's objective divided by C·n, in float64, block by block."""
    W, b = np.asarray(coef, np.float64).T, np.asarray(intercept, np.float64)
    if W.shape[1] == 1:  # two classes: one column against zero
        W, b = np.hstack([np.zeros_like(W), W]), np.concatenate([[0.0], b])
    loss = 0.0
    for start in range(0, len(X), 4096):
        Z = X[start : start + 4096].astype(np.float64) @ W + b
        loss += scipy.special.logsumexp(Z, axis=1).sum() - Z[np.arange(len(Z)), y[start : start + 4096]].sum()
    return float((loss + 0.5 * (W**2).sum() / C) / len(X))


def compare(name: str, X, y, max_iter: int) -> Iterator[dict]:
    """Yield a row for every scaling, dtype and C."""
    for scaling in ("raw", "standardised"):
        scaled = X if scaling == "raw" else StandardScaler().fit_transform(X)
        for dtype in (np.float64, np.float32):
            data = np.ascontiguousarray(scaled, dtype)
            for C in STRENGTHS:
                row = {"data": name, "scaling": scaling, "dtype": np.dtype(dtype).name, "C": C}
                for key, model in (
                    ("ours", SoftmaxRegression(C=C)),
                    ("sklearn", LogisticRegression(C=C, max_iter=max_iter)),
                ):
                    start = time.perf_counter()
                    model.fit(data, y)
                    row[f"{key}_seconds"] = round(time.perf_counter() - start, 3)
                    row[f"{key}_objective"] = objective(data, y, model.coef_, model.intercept_, C)
                    row[f"{key}_n_iter"] = int(model.n_iter_[0])
                    if key == "ours":
                        row["ours_passes"] = round(model.n_passes_, 1)
                        row["ours_status"] = model.status_.name
                        row["ours_gradient_norm"] = model.gradient_norm_
                row["sklearn_max_iter"] = max_iter
                row["relative_difference"] = row["ours_objective"] / row["sklearn_objective"] - 1
                row["holds"] = row["relative_difference"] <= 1e-6
                yield row


def convergence(name: str, X, y) -> Iterator[dict]:
    """Yield our passes to each relative gap of the optimum that a fit in float64 at tol=1e-8 finds; float32, C = 1."""
    n_classes = int(y.max()) + 1
    X = X / max(float(np.abs(X).max()), 1.0) if X.shape[1] == 784 else X
    best = SoftmaxRegression(tol=1e-8, max_iter=10_000).fit(X, y)
    optimum = objective(X, y, best.coef_, best.intercept_, 1.0)
    records = []
    start = time.perf_counter()
    training = Training(C=np.array([0.5 if n_classes == 2 else 1.0]), n_classes=n_classes)
    source = ArraySource(X.astype(np.float32), y.astype(np.uint8), None, np.dtype(np.float32))
    train(training, source, LBFGS(), get_backend("auto"), callback=lambda p: records.append((p, time.perf_counter())))
    for gap in GAPS:
        hit = next(((p, at) for p, at in records if p.values[0] <= optimum * (1 + gap)), None)
        row = {"data": name, "dtype": "float32", "C": 1.0, "optimum": optimum, "gap": gap}
        yield row | ({"passes": round(hit[0].n_passes, 1), "seconds": round(hit[1] - start, 2)} if hit else {})


def machine() -> dict:
    """Return what the figures depend on."""
    libraries = {f"{pool['internal_api']} {pool['version']}": pool["num_threads"] for pool in threadpool_info()}
    return {
        "processor": platform.machine(),
        "n_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "sklearn": sklearn.__version__,
        "gpusoftmax": __version__,
        "threads": libraries,
    }


def main() -> None:
    """Run the cases and write each row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--sets", nargs="+", default=[*BUNDLED, "vowel", "spam", "letters", "mnist10k"])
    parser.add_argument("--max-iter", type=int, default=10_000, help="scikit-learn's max_iter")
    parser.add_argument("--convergence", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn's ConvergenceWarning: its row shows the iterations
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    path = arguments.out / ("convergence.csv" if arguments.convergence else "optimum.csv")
    done: list[dict] = []
    for name in arguments.sets:
        try:
            X, y = load(name, arguments.data)
        except OSError as error:
            rows: Iterator[dict] = iter([{"data": name, "error": f"{type(error).__name__}: {error}"}])
        else:
            rows = convergence(name, X, y) if arguments.convergence else compare(name, X, y, arguments.max_iter)
        for row in rows:
            done.append(row)
            print(*(f"{key}={value}" for key, value in row.items()), flush=True)
            with path.open("w", newline="") as file:
                keys = dict.fromkeys(key for done_row in done for key in done_row)
                writer = csv.DictWriter(file, keys, lineterminator="\n")
                writer.writeheader()
                writer.writerows(done)


if __name__ == "__main__":
    main()
