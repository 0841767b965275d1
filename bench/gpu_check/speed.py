"""Sections that time: compilation, launches, memory, products, and passes beside what their plans model."""

import os
import time
from dataclasses import asdict, replace

import numpy as np

from bench.cases import SHAPES, Case, random
from bench.gpu_check.base import Row, Run, ratio
from gpusoftmax.backends.cuda import CupyBackend
from gpusoftmax.kernels import launches
from gpusoftmax.kernels.cuda import PRECISIONS, Kernels, gemm
from gpusoftmax.plan_cuda import MAX_ROWS, CudaPlan
from gpusoftmax.sources import ArraySource

TINY_SHAPES = ((300, 5, 3), (150, 6, 40))
PRODUCT_SHAPES = ((200_000, 784, 10), (200_000, 784, 200), (8192, 768, 1000), (8192, 4096, 4096))
MEMORY_BYTES = 1 << 30


def machine(run: Run) -> list[Row]:
    """Record the versions of driver, runtime, CuPy, NVRTC and cuBLAS, the card, and the facts that plans use."""
    import cupy

    runtime = cupy.cuda.runtime
    facts = CupyBackend().facts()
    name = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    found = {
        "card": name.decode(),
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "CuPy": cupy.__version__,
        "NVRTC": _version(lambda: ".".join(map(str, cupy.cuda.nvrtc.getVersion()))),
        "cuBLAS": _version(lambda: cupy.cuda.cublas.getVersion(cupy.cuda.device.get_cublas_handle())),
        "float32 peak, TFLOP/s": facts.flops(np.dtype(np.float32)) / 1e12,
        "float64 peak, TFLOP/s": facts.flops(np.dtype(np.float64)) / 1e12,
        **asdict(facts),
    }
    return [{"what": what, "value": value} for what, value in found.items()]


def _version(ask) -> str:
    try:
        return str(ask())
    except Exception as error:  # a version is no reason to stop
        return f"unknown: {error}"


def compilation(run: Run) -> list[Row]:
    """Compile every kernel for this card, and record how long it takes, its registers and its spills."""
    if not run.is_emulated:
        os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # read when CuPy is imported: nothing comes from an earlier run
    import cupy

    rows = []
    for name in _names(run, CupyBackend().facts().shared_bytes):
        start = time.perf_counter()
        attributes = Kernels(cupy).function(name).attributes
        seconds = None if run.is_emulated else time.perf_counter() - start
        local = attributes.get("local_size_bytes")
        rows.append(
            {"kernel": name, "seconds": seconds, "registers": attributes.get("num_regs"), "spilled_bytes": local}
        )
    return rows


def _names(run: Run, shared_bytes: int) -> list[str]:
    """Return the kernels that the bench shapes and every residual shape need."""
    names = []
    for dtype in ("float32",) if run.is_tiny else ("float32", "float64"):
        for classes in (3, 600) if run.is_tiny else (3, 10, 31, 64, 128, 256, 512, 1000):
            names += [
                launches.residual(64, classes, 1, dtype, mode).name
                for mode in launches.MODES[: 1 if run.is_tiny else None]
            ]
        for _, d, k in TINY_SHAPES[:1] if run.is_tiny else SHAPES:
            if launches.fused_rows_per_round(d, k, 1, dtype, shared_bytes) is not None:
                names.append(launches.fused_small(64, d, k, 1, dtype, shared_bytes).name)
        names += [launches.sum_parts(1, dtype, dtype).name, launches.column_sums(64, 4, dtype).name]
        names += [
            launches.pad_classes(64, 4, 1, dtype, dtype).name,
            launches.unpad_classes(64, 4, 1, dtype, dtype).name,
        ]
    return [*names, launches.sum_losses(1).name, launches.tile_losses(64, 1).name]


def hardware(run: Run) -> list[Row]:
    """Measure what the model assumes of the card: the cost of a launch, bandwidth, and the efficiency of cuBLAS."""
    import cupy

    backend = CupyBackend()
    facts, kernels = backend.facts(), backend.kernels
    tile_loss, total = cupy.zeros((1, 1)), cupy.zeros(1)
    seconds = run.seconds(lambda: kernels.sum_losses(tile_loss, total), 1000)
    rows: list[Row] = [{"what": "one launch of our kernels", "seconds": seconds}]
    rows.append(_copy(run, facts))
    rows += _softmax(run, kernels, facts)
    for n, d, k in ((100, 8, 4),) if run.is_tiny else PRODUCT_SHAPES:
        for precision in PRECISIONS:
            rows += _product_speed(run, n, d, k, precision, facts)
    return rows


def _copy(run: Run, facts) -> Row:
    """Return the bandwidth of one large copy."""
    import cupy

    n_bytes = 1 << 12 if run.is_tiny else min(MEMORY_BYTES, facts.free_bytes // 8)
    array, other = (cupy.zeros(n_bytes // 4, np.float32) for _ in range(2))
    seconds = run.seconds(lambda: cupy.copyto(other, array))
    reached = ratio(2 * n_bytes, seconds)
    return {"what": "copy, bytes/s", "seconds": seconds, "reached": reached, "of": facts.bytes_per_second}


def _softmax(run: Run, kernels: Kernels, facts) -> list[Row]:
    """Return the bandwidth of the residual kernel in place, for rows in registers and for a block a row."""
    import cupy

    rows = []
    for n_rows, k in ((70, 4),) if run.is_tiny else ((2_000_000, 12), (500_000, 100), (50_000, 1000), (2000, 32_000)):
        z, labels = cupy.zeros((n_rows, k), np.float32), cupy.zeros(n_rows, np.int32)
        tile_loss, row_loss = cupy.empty((1, launches.n_tiles(n_rows))), cupy.empty((1, n_rows))
        losses = {"labels": labels, "tile_loss": tile_loss, "row_loss": row_loss}
        seconds = run.seconds(lambda z=z, k=k, losses=losses: kernels.residual(z, z, k, 1, **losses))
        reached, name = ratio(2 * z.nbytes, seconds), launches.residual(n_rows, k, 1, np.float32).name
        of = facts.bytes_per_second
        rows.append({"what": f"{name}, {n_rows}x{k}, bytes/s", "seconds": seconds, "reached": reached, "of": of})
    return rows


def _product_speed(run: Run, n: int, d: int, k: int, precision: str, facts) -> list[Row]:
    """Return the speed of both products of a pass, in one precision."""
    import cupy

    dtype = np.dtype(np.float64 if precision == "float64" else np.float32)
    handle, width = cupy.cuda.device.get_cublas_handle(), launches.padded(k, dtype.itemsize)
    X, W, Z = (cupy.zeros(shape, dtype) for shape in ((n, d), (d, width), (n, width)))
    peak = facts.product_flops(dtype) if precision != "tf32" else None
    rows = []
    for what, act in {
        "X W": lambda: gemm(handle, X, W, Z, precision=precision),
        "XᵀG": lambda: gemm(handle, X, Z, W, transpose_a=True, precision=precision),
    }.items():
        seconds = run.seconds(act)
        reached = ratio(2 * n * d * width, seconds)
        name = f"{what}, {n}x{d}x{k}, {precision}, FLOP/s"
        rows.append({"what": name, "seconds": seconds, "reached": reached, "of": peak})
    return rows


def plans(run: Run) -> list[Row]:
    """Time either design and several block sizes on the shapes of the benchmarks, beside the times that plans model."""
    backend, rows = CupyBackend(), []
    for shape in TINY_SHAPES if run.is_tiny else SHAPES:
        X, labels = random(Case("random", *shape))
        source = backend.place(ArraySource(X, labels, None, X.dtype, xp=backend.xp))
        n_rows, n_features, n_classes = shape
        chosen = backend.facts().plan_pass(n_rows, n_features, 1, n_classes, X.dtype)
        for design, plan in _designs(chosen).items():
            params = backend.to_device(np.zeros((n_features + 1, 1, n_classes), plan.gradient_dtype))
            fused = backend.fused_pass(source, plan)
            seconds = run.seconds(lambda fused=fused, params=params: fused.loss_and_gradient(params, 0.0))
            model = {"modelled_seconds": plan.seconds, "bound": plan.bound}
            about = {"shape": "x".join(map(str, shape)), "design": design, "block_rows": plan.block_rows}
            flops = 4 * n_rows * n_features * n_classes
            about["is_chosen"] = plan == chosen
            rows.append(about | {"seconds": seconds, "FLOP/s": ratio(flops, seconds)} | model)
    return rows


def _designs(chosen: CudaPlan) -> dict[str, CudaPlan]:
    """Return the plans of one pass that are timed."""
    products = chosen.by_products()
    found = (
        {"two products": products, "two products, half the rows": products.halved()} if products.block_rows > 64 else {}
    )
    whole = min(launches.TILE_ROWS * launches.n_tiles(chosen.n_rows), MAX_ROWS)
    found["two products, one block"] = replace(products, block_rows=whole)
    if launches.fused_rows_per_round(*chosen.kernel_sizes) is not None:
        found["one kernel"] = replace(products, is_one_kernel=True, n_splits=1, block_rows=whole)
    return found
