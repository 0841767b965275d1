"""Sections that compare answers of the GPU with float64 NumPy, and with one another bit by bit."""

import warnings
from dataclasses import replace
from itertools import product

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from bench import judge
from bench.cases import teacher
from bench.gpu_check.base import Row, Run, compare, worst
from gpusoftmax import SoftmaxRegression, fit_many, sweep
from gpusoftmax.backends.cuda import CupyBackend
from gpusoftmax.kernels import launches, reference
from gpusoftmax.kernels.cuda import Kernels, gemm
from gpusoftmax.sources import ArraySource

TOLERANCE = {"float32": 5e-6, "float64": 1e-13}  # relative to the largest number expected
STORED = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
FIT_TOLERANCE = 1e-6  # relative, of the objective
CLASSES = (1, 2, 3, 10, 31, 33, 64, 129, 512, 513, 1000, 4097)
# features, classes, problems; the last has too much shared memory only when static and dynamic are added
FUSED = ((1, 1, 1), (16, 3, 1), (33, 10, 2), (54, 7, 1), (127, 31, 1), (8, 3, 60), (4, 33, 5))
PASSES = ((1, 3, 1, 2), (63, 5, 2, 3), (211, 54, 3, 10), (1000, 100, 1, 33), (130, 8, 2, 600), (20_000, 64, 1, 10))
PRODUCTS = {  # cuBLAS: storage, precision, largest relative error of a product over 1,000 rows
    "float64": ("float64", "float64", 1e-13),
    "float32 pedantic": ("float32", "float32_pedantic", 5e-6),
    "float32": ("float32", "float32", 5e-6),
    "TF32": ("float32", "tf32", 5e-3),
    "float16": ("float16", "float32", 5e-3),
    "bfloat16": ("bfloat16", "float32", 3e-2),
}


# ---------------------------------------------------------------- kernels


def kernels(run: Run) -> list[Row]:
    """Compare every kernel with float64 NumPy on edge shapes."""
    import cupy

    backend = Kernels(cupy)
    classes = (3, 600) if run.is_tiny else CLASSES
    dtypes = ("float32",) if run.is_tiny else ("float32", "float64")
    rows = []
    for k, dtype in product(classes, dtypes):
        n_rows = 5 if k > 512 and run.is_tiny else 70
        rows += [
            {"kernel": "residual", "n_classes": k, "dtype": dtype, **row} for row in _modes(backend, n_rows, k, dtype)
        ]
    for (d, k, p), dtype in product(FUSED[1:2] if run.is_tiny else FUSED, dtypes):
        shape = {"n_features": d, "n_classes": k, "n_problems": p, "dtype": dtype}
        rows.append({"kernel": "fused_small", **shape, **_fused(backend, 130, d, p, k, dtype)})
    return rows + _sums(backend)


def _modes(kernels: Kernels, n_rows: int, k: int, dtype: str, n_problems: int = 2) -> list[Row]:
    """Return how far each mode of the residual kernel is from NumPy, and its 16-bit outputs."""
    rng = np.random.default_rng(k)
    z, v = (rng.normal(0, 3, (n_rows, n_problems, k)).astype(dtype) for _ in range(2))
    labels = rng.integers(k, size=n_rows).astype(np.int32)
    soft = rng.dirichlet(np.ones(k), n_rows).astype(dtype)
    weights = rng.integers(0, 4, (n_rows, n_problems)).astype(dtype)
    y = np.exp(reference.log_softmax(z.astype(float)))
    centred = v - (y * v).sum(axis=2, keepdims=True)
    expected = {
        "PROBABILITIES": y,
        "LOG_PROBABILITIES": np.log(y),
        "HESSIAN": weights[:, :, np.newaxis] * y * centred,
    }
    answers = []
    for mode, result in expected.items():
        g, _ = _run_residual(kernels, z, mode=mode, direction=v, weights=weights if mode == "HESSIAN" else None)
        answers.append({"what": mode.lower(), **compare(g, result, TOLERANCE[dtype])})
    for name, targets in (("labels", labels), ("targets", soft)):
        g, loss = reference.residual(z.astype(float), targets, weights, 0.1)
        options = {name: targets, "weights": weights, "label_smoothing": 0.1}
        found, tile_loss = _run_residual(kernels, z, mode="GRADIENT", **options)
        checks = [compare(found, g, TOLERANCE[dtype]), compare(tile_loss.sum(axis=1), loss, TOLERANCE[dtype])]
        answers.append({"what": f"gradient, {name}", **worst(checks)})
        for stored in STORED if name == "labels" and dtype == "float32" else ():
            found, _ = _run_residual(kernels, z, mode="GRADIENT", out=stored, **options)
            answers.append({"what": f"gradient in {stored}", **compare(found, g, STORED[stored])})
    return answers


def _run_residual(kernels: Kernels, z, *, mode, out=None, direction=None, **options):
    """Return the output (rows, problems, classes) and tile losses (problems, tiles) of a residual kernel."""
    import cupy

    n_rows, p, k = z.shape
    out = out or z.dtype.name
    width = launches.padded(k, launches.itemsize(out))
    g = cupy.empty((n_rows, p * width), np.uint16 if out == "bfloat16" else out)
    tile_loss, row_loss = cupy.empty((p, launches.n_tiles(n_rows))), cupy.empty((p, n_rows))
    device = {name: None if value is None else cupy.asarray(value) for name, value in options.items()
              if name != "label_smoothing"}  # fmt: skip
    if mode == "HESSIAN":
        device["direction"] = cupy.asarray(_padded(direction))
    smoothing = options.get("label_smoothing", 0.0)
    losses = {"tile_loss": tile_loss, "row_loss": row_loss} if mode == "GRADIENT" else {}
    kernels.residual(cupy.asarray(_padded(z)), g, k, p, mode=mode, label_smoothing=smoothing, **device, **losses)
    found = cupy.asnumpy(g).reshape(n_rows, p, width)[:, :, :k]
    if out == "bfloat16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return found, cupy.asnumpy(tile_loss) if losses else None


def _padded(array: np.ndarray) -> np.ndarray:
    """Return (rows, problems, classes) as the kernels keep it, gaps filled."""
    n_rows, p, k = array.shape
    wide = np.zeros((n_rows, p, launches.padded(k, array.itemsize)), array.dtype)
    wide[:, :, :k] = array
    return wide.reshape(n_rows, -1)


def _fused(kernels: Kernels, n_rows: int, d: int, p: int, k: int, dtype: str) -> Row:
    """Return how far the one kernel's loss and gradient are from NumPy."""
    import cupy

    data = made(n_rows, d, p, k, dtype)
    loss, gradient = reference.loss_and_gradient(*(x.astype(float) if x.dtype.kind == "f" else x for x in data), 0.1)
    X, labels, weights, params = (cupy.asarray(x) for x in data)
    limit = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
    grid = launches.fused_small(n_rows, d, k, p, dtype, limit).grid
    parts, out = cupy.empty((grid, *params.shape), dtype), cupy.empty(params.shape)
    tile_loss, total = cupy.empty((p, launches.n_tiles(n_rows))), cupy.empty(p)
    about = {"labels": labels, "weights": weights, "label_smoothing": 0.1, "shared_limit": limit}
    kernels.fused_small(X, params, parts, tile_loss, **about)
    kernels.sum_parts(parts, out)
    kernels.sum_losses(tile_loss, total)
    found = ((out, gradient), (total, loss))
    return worst([compare(cupy.asnumpy(a), b, TOLERANCE[dtype]) for a, b in found])


def made(n_rows, n_features, n_problems, n_classes, dtype, seed=0):
    """Return X, labels, weights and params of order one."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, n_features)).astype(dtype)
    labels = rng.integers(n_classes, size=n_rows).astype(np.int32)
    weights = rng.integers(1, 4, (n_rows, n_problems)).astype(dtype)
    params = (rng.normal(size=(n_features + 1, n_problems, n_classes)) / np.sqrt(n_features)).astype(dtype)
    return X, labels, weights, params


def _sums(kernels: Kernels) -> list[Row]:
    """Return how far sums and copies between layouts are from NumPy."""
    import cupy

    g = np.random.default_rng(0).normal(size=(1100, 6)).astype(np.float32)
    parts, out = cupy.empty((launches.column_sum_parts(1100), 6)), cupy.empty(6)
    kernels.column_sums(cupy.asarray(g), parts, out)
    rows = [{"kernel": "column_sums", **compare(cupy.asnumpy(out), g.sum(axis=0, dtype=float), 1e-13)}]
    wide, back = cupy.empty((1100, 8), np.float32), cupy.empty((1100, 6), np.float32)
    kernels.pad_classes(cupy.asarray(g), 3, 2, wide)
    kernels.unpad_classes(wide, 3, 2, 4, back)
    return [*rows, {"kernel": "pad_classes, unpad_classes", **compare(cupy.asnumpy(back), g.astype(float), 1e-30)}]


# ---------------------------------------------------------------- whole passes and fits


def passes(run: Run) -> list[Row]:
    """Compare whole passes, in either design, several blocks and layouts, with float64 NumPy."""
    backend = CupyBackend()
    rows = []
    for shape, dtype in product(PASSES[1:2] if run.is_tiny else PASSES, ("float32", "float64")):
        X, labels, weights, params = made(*shape, dtype)
        exact = (x.astype(float) for x in (X, weights, params))
        X64, weights64, params64 = exact
        loss, gradient = reference.loss_and_gradient(X64, labels, weights64, params64)
        layouts = {"C order": X, "F order": np.asfortranarray(X), "float64 storage": X64}
        for layout, stored in list(layouts.items())[: 2 if run.is_tiny else None]:
            source = backend.place(ArraySource(stored, labels, weights, np.dtype(dtype)))
            for design, plan in _plans(backend, source, params).items():
                found = backend.fused_pass(source, plan).loss_and_gradient(backend.to_device(params), 0.0)
                pairs = zip(found, (loss, gradient), strict=True)
                check = worst([compare(backend.to_host(a), b, TOLERANCE[dtype]) for a, b in pairs])
                about = {"shape": "x".join(map(str, shape)), "dtype": dtype, "layout": layout, "design": design}
                rows.append(about | check)
    return rows


def _plans(backend: CupyBackend, source: ArraySource, params: np.ndarray) -> dict:
    """Return the plans of a pass to be compared: what would be chosen, and both designs in small blocks."""
    _, p, k = params.shape
    options = {"is_direct": source.is_direct}
    chosen = backend.facts().plan_pass(*source.X.shape, p, k, source.dtype, **options)
    products = chosen.by_products()
    plans = {"chosen": chosen, "products, 64 rows": replace(products, block_rows=64, n_splits=1)}
    plans["products, 3 parts"] = replace(products, n_splits=3)
    if launches.fused_rows_per_round(*chosen.kernel_sizes) is not None:
        plans["one kernel, 128 rows"] = replace(products, is_one_kernel=True, n_splits=1, block_rows=128)
    return plans


def determinism(run: Run) -> list[Row]:
    """Compare the bits of the same call twice, and of blocks of 64, 128 and all rows of the same logits."""
    import cupy

    backend, rows = CupyBackend(), []
    n_rows = 150 if run.is_tiny else 5000
    for n_classes in (10,) if run.is_tiny else (3, 10, 100, 1000):
        X, labels, weights, params = made(n_rows, 20, 2, n_classes, "float32")
        source = backend.place(ArraySource(X, labels, weights, X.dtype))
        for design, plan in _plans(backend, source, params).items():
            fused, point = backend.fused_pass(source, plan), backend.to_device(params)
            first, second = (
                [backend.to_host(x).tobytes() for x in fused.loss_and_gradient(point, 0.0)] for _ in range(2)
            )
            rows.append({"what": f"{design}, twice", "n_classes": n_classes, "is_right": first == second})
        z = np.einsum("nd,dpk->npk", X, params[:-1])
        blocks = [_in_blocks(cupy, z, labels, weights, size) for size in (64, 128, 64 * launches.n_tiles(n_rows))]
        same = all(bits == blocks[0] for bits in blocks)
        rows.append({"what": "blocks of 64, 128 and all rows", "n_classes": n_classes, "is_right": same})
    return rows


def _in_blocks(cupy, z: np.ndarray, labels, weights, size: int) -> bytes:
    """Return the bits of residual and losses of some logits, taken in blocks."""
    found = []
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        options = {"labels": labels[rows], "weights": weights[rows]}
        found.append(_run_residual(Kernels(cupy), z[rows], mode="GRADIENT", **options))
    return b"".join(
        [np.concatenate([g for g, _ in found]).tobytes(), np.concatenate([t for _, t in found], axis=1).tobytes()]
    )


def products(run: Run) -> list[Row]:
    """Compare products by cuBLAS with float64: full float32 where asked for, TF32 and 16 bits only there."""
    import cupy

    handle, rng = cupy.cuda.device.get_cublas_handle(), np.random.default_rng(0)
    n = 100 if run.is_tiny else 1000
    a, b = rng.normal(size=(n, 64)), rng.normal(size=(n, 24))
    rows = []
    for name, (stored, precision, tolerance) in PRODUCTS.items():
        left, right = _stored(a, stored), _stored(b, stored)
        out = cupy.empty((64, 24), np.float64 if stored == "float64" else np.float32)
        gemm(handle, cupy.asarray(left), cupy.asarray(right), out, transpose_a=True, precision=precision)
        exact = a.T @ b  # rounding to storage counts as error
        rows.append({"product": name, **compare(cupy.asnumpy(out), exact, tolerance)})
    return rows


def _stored(array: np.ndarray, stored: str) -> np.ndarray:
    """Return float64 as another type; bfloat16, which NumPy does not have, as the upper half of float32's bits."""
    if stored != "bfloat16":
        return array.astype(stored)
    return ((array.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def fits(run: Run) -> list[Row]:
    """Compare the optima of single fits, sweeps and many fits with those that the CPU finds."""
    if run.is_tiny:
        data = {"teacher": teacher(120, 0, 3, 3)[:2], "wide": teacher(30, 0, 300, 3)[:2]}
    else:
        data = {"digits": load_digits(return_X_y=True)}
        data |= {"teacher": teacher(20_000, 0, 100, 10)[:2], "wide": teacher(500, 0, 2000, 5)[:2]}
    rows = []
    for name, (X, y) in data.items():
        for what, fit in {"fit": _one, "sweep": _swept, "fit_many": _many}.items():
            optima, status = {}, {}
            for device in ("cpu", "cuda"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the status says it
                    optima[device], status[device] = fit(X, y, device=device, tol=1e-3 if run.is_tiny else 1e-5)
            gap = float((optima["cuda"] / optima["cpu"] - 1).max())
            about = {"what": what, "data": name, "dtype": X.dtype.name, "n_problems": len(optima["cuda"])}
            ends = " ".join(sorted({end.name for end in status["cuda"]}))
            is_right = gap <= (1e-3 if run.is_tiny else FIT_TOLERANCE)
            rows.append(about | {"status": ends, "gap": gap, "is_right": is_right})
    return rows


def _one(X, y, **options) -> tuple[np.ndarray, list]:
    """Return the optimum of one fit and how it ended."""
    model = SoftmaxRegression(C=0.01, **options).fit(X, y)
    return np.array([judge.objective(X, y, model.coef_, model.intercept_, model.C)]), [model.status_]


def _swept(X, y, **options) -> tuple[np.ndarray, list]:
    """Return the optimum of every strength on every fold and how it was reached."""
    folds = list(StratifiedKFold(3).split(X, y))
    result = sweep(X, y, Cs=[1e-3, 1e-2, 1e-1], cv=folds, **options)
    fits = zip(result.coef, result.intercept, result.problems.C, result.problems.fold, strict=True)
    optima = [judge.objective(X[rows], y[rows], W, b, C) for W, b, C, fold in fits for rows in [folds[fold][0]]]
    return np.array(optima), list(result.status)


def _many(X, y, **options) -> tuple[np.ndarray, list]:
    """Return the optima of data sets of their own, one a fold, and how they ended."""
    parts = [test for _, test in StratifiedKFold(5).split(X, y)]
    Xs, ys = [X[rows] for rows in parts], [y[rows] for rows in parts]
    fits = fit_many(Xs, ys, C=0.01, **options)
    optima = [judge.objective(*each, 0.01) for each in zip(Xs, ys, fits.coef, fits.intercept, strict=True)]
    return np.array(optima), list(fits.status)
