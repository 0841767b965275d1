"""A CUDA GPU, through CuPy: X, targets, weights, params and all that a fit keeps live there.

The host waits for the device where `to_host` is called, and nowhere else.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from gpusoftmax.exceptions import LOGITS_LEFT, DeviceError, NonFiniteError
from gpusoftmax.kernels import launches
from gpusoftmax.kernels.cuda import Kernels, gemm
from gpusoftmax.kernels.curvature import CurvatureSums, curvature
from gpusoftmax.kernels.scores import ScoreSums, add_scores
from gpusoftmax.plan import MetricPlan
from gpusoftmax.plan_cuda import CudaFacts, CudaPlan
from gpusoftmax.sources import ArraySource

IEEE = {"float32": "float32_pedantic", "float64": "float64"}  # products, whatever mode cuBLAS is in
ROUNDING = {"tf32": 2.0**-11, "bfloat16": 2.0**-9}  # of the factors of coarser products
COARSER = {"auto": ["tf32"], "highest": [], "high": ["tf32"], "medium": ["bfloat16"]}
TENSOR_CORES = 80  # first compute capability whose tensor cores take float32, rounded
INSTALL = "pip install 'gpusoftmax[cuda13]' (or [cuda12], by the driver's CUDA version)"
NO_GPU = "{} found no CUDA GPU on this machine: give device='cpu', or let CUDA_VISIBLE_DEVICES name one."
DRIVERS = ["libcuda.so.1", "/run/opengl-driver/lib/libcuda.so.1", "nvcuda.dll"]  # Linux, NixOS, Windows
PREDICTIONS = {"probabilities": "PROBABILITIES", "log_probabilities": "LOG_PROBABILITIES"}


def may_have_gpu() -> bool:
    """Return whether to ask CuPy for a GPU: importing it costs 20 MB, which a look for the driver saves."""
    if "cupy" in sys.modules:
        return True
    for name in DRIVERS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def load_cupy(who: str = "device='cuda'", cuda_device: int | None = None) -> Any:
    """Return CuPy where it has a GPU that can be used, or say in one sentence what is missing.

    Parameters
    ----------
    who : str
        What needs it: the subject of the sentence.
    cuda_device : int or None
        Number of the device; None for the current one.

    Raises
    ------
    DeviceError
    """
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise DeviceError(f"{who} needs CuPy, which is not installed ({error}): {INSTALL}.") from error
    except Exception as error:  # a broken installation raises whatever it likes
        raise DeviceError(f"{who} needs CuPy, whose import fails ({error}): {INSTALL} anew.") from error
    _check_driver(cupy, who)
    capability = int(cupy.cuda.Device(cuda_device).compute_capability)
    if capability < 75:
        raise DeviceError(
            f"{who} needs compute capability 7.5 or newer (Turing, 2018); this GPU has {capability / 10}."
        )
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # of the loader, whose type CuPy does not promise
        raise DeviceError(f"{who} needs CUDA's compiler, which CuPy does not find ({error}): {INSTALL}.") from error
    return cupy


def _check_driver(cupy: Any, who: str) -> None:
    """Raise DeviceError unless there is a driver, new enough for this CuPy, and a GPU."""
    runtime = cupy.cuda.runtime
    try:
        n_devices = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if str(error).startswith("cudaErrorNoDevice"):
            raise DeviceError(NO_GPU.format(who)) from error
        driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if 0 < driver < built_for:
            raise DeviceError(
                f"{who} found CuPy for CUDA {_version(built_for)} and a driver for CUDA {_version(driver)} at most: "
                f"update NVIDIA's driver, or take another CuPy: {INSTALL}, once cupy-cuda{built_for // 1000}x is "
                "uninstalled."
            ) from error
        raise DeviceError(f"{who} found no usable driver ({error}): install or update NVIDIA's driver.") from error
    if n_devices == 0:
        raise DeviceError(NO_GPU.format(who))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class CupyBackend:
    """A CUDA device, through CuPy, on the caller's current stream of it.

    Parameters
    ----------
    cuda_device : int or None
        Number of the device; None for the current one.
    """

    name = "cuda"

    def __init__(self, cuda_device: int | None = None) -> None:
        self.cupy = load_cupy(cuda_device=cuda_device)
        self.xp = self.cupy
        self.cuda_device = self.cupy.cuda.Device(cuda_device).id
        self.kernels = Kernels(self.cupy)

    def facts(self) -> CudaFacts:
        device = self.cupy.cuda.Device()
        attributes = device.attributes
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        pool = self.cupy.get_default_memory_pool()
        limit = pool.get_limit()
        kept = pool.total_bytes() - pool.used_bytes()
        return CudaFacts(
            compute_capability=int(device.compute_capability),
            n_multiprocessors=attributes["MultiProcessorCount"],
            clock_hz=1e3 * attributes["ClockRate"],
            bytes_per_second=2e3 * attributes["MemoryClockRate"] * attributes["GlobalMemoryBusWidth"] / 8,
            free_bytes=min(free + kept, limit - pool.used_bytes()) if limit else free + kept,
            shared_bytes=attributes["MaxSharedMemoryPerBlockOptin"],
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this device the current one, and say what to do where its memory does not suffice."""
        try:
            with self.session():
                yield
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError(
                f"CUDA device {self.cuda_device} has too little memory for this ({error}): free some, give fewer rows "
                "or features, or compute on the host with device='cpu' and X as a NumPy array."
            ) from error

    def session(self) -> AbstractContextManager:
        """Return the device, so that every array of a fit is made there."""
        return self.cupy.cuda.Device(self.cuda_device)

    def to_device(self, array, dtype=None):
        return self.cupy.asarray(array, dtype)

    def to_host(self, array) -> np.ndarray:
        return self.cupy.asnumpy(array)

    def inverse_cholesky(self, A):
        from cupyx.scipy.linalg import solve_triangular

        L = self._cholesky(A)
        identity = self.cupy.eye(len(A), dtype=A.dtype)
        return self.cupy.ascontiguousarray(solve_triangular(L, identity, lower=True).T)

    def eigenvectors(self, A, B):
        from cupyx.scipy.linalg import solve_triangular

        L = self._cholesky(B)
        half = solve_triangular(L, A, lower=True)
        reduced = solve_triangular(L, half.T, lower=True)
        w, V = self.cupy.linalg.eigh((reduced + reduced.T) / 2)
        return self.to_host(w), self.cupy.ascontiguousarray(solve_triangular(L, V, lower=True, trans=1))

    def _cholesky(self, A):
        L = self.cupy.linalg.cholesky(A)
        if not self.to_host(self.cupy.isfinite(L.diagonal()).all()):
            raise np.linalg.LinAlgError("the matrix is not positive definite in its precision")
        return L

    def place(self, source: ArraySource) -> ArraySource:
        center = None if source.center is None else self.to_device(source.center)
        return replace(source, X=self.to_device(source.X), center=center, xp=self.cupy)

    def fused_pass(self, source: ArraySource, plan: CudaPlan) -> "CupyPass":
        if plan.is_one_kernel and source.is_direct and source.X.strides[1] != source.X.itemsize:
            plan = plan.by_products()
        return self._bind(CupyPass, source, plan)

    def _bind(self, make: Callable, source: ArraySource, plan: CudaPlan):
        """Return ``make(self, source, plan)``, in smaller blocks where the device has not the memory."""
        while True:
            try:
                return make(self, source, plan)
            except self.cupy.cuda.memory.OutOfMemoryError:
                plan = plan.halved()

    def predict(self, source: ArraySource, plan: CudaPlan, params, output: str, out) -> None:
        forward = self._bind(_Forward, source, plan.by_products())
        forward.set_params(self.to_device(params))
        stays = isinstance(out, self.cupy.ndarray)
        for rows in forward.plan.blocks():
            prediction = self._prediction(forward, forward.features(rows), output)
            out[rows] = prediction if stays else self.to_host(prediction)

    def _prediction(self, forward: "_Forward", X, output: str):
        """Return what `kernels.cpu.predict` returns of some rows."""
        n_classes = forward.plan.n_classes
        z = forward.logits(X)
        shown = z[:, :n_classes]
        shown += forward.bias[0, :n_classes]
        if not self.to_host(self.cupy.isfinite(shown).all()):
            raise NonFiniteError(LOGITS_LEFT.format(z.dtype.name))
        if output == "classes":
            return shown.argmax(axis=1)
        if output in PREDICTIONS:
            self.kernels.residual(z, z, n_classes, 1, mode=PREDICTIONS[output])
        return shown


class _Forward:
    """The half of a pass that predictions need: from rows to logits, in buffers allocated once."""

    def __init__(self, backend: CupyBackend, source: ArraySource, plan: CudaPlan):
        self.backend = backend
        self.source = source
        self.plan = plan
        xp, rows = backend.cupy, plan.block_rows
        self.params: Any = xp.empty((plan.n_features + 1, plan.n_columns), plan.dtype)
        self.z: Any = None if plan.is_one_kernel else xp.empty((rows, plan.n_columns), plan.dtype)
        self.rows = None if source.is_direct else xp.empty(rows * plan.n_features, plan.dtype)
        self.handle = xp.cuda.device.get_cublas_handle()
        self.precision = IEEE[plan.dtype.name]

    @property
    def bias(self):
        return self.params[-1].reshape(self.plan.n_problems, -1)

    def set_params(self, params) -> None:
        """Take params (n_features + 1, n_problems, n_classes), in the layout and dtype of the products."""
        plan, wide = self.plan, params.reshape(len(params), -1)
        if plan.is_one_kernel:
            self.backend.cupy.copyto(self.params, wide, casting="same_kind")
        else:
            self.backend.kernels.pad_classes(wide, plan.n_classes, plan.n_problems, self.params)

    def features(self, rows: slice):
        """Return some rows of X: a view, or in the workspace."""
        return self.source.features(rows, self.rows)

    def logits(self, X):
        """Return X W of some rows, without bias, in the workspace."""
        z = self.z[: len(X)]
        self.gemm(X, self.params[:-1], z)
        return z

    def gemm(self, X, other, out, *, is_transposed: bool = False, beta: float = 0.0) -> None:
        """Set `out` to ``X @ other + beta · out``, or to that of X transposed."""
        is_by_columns = X.shape[-1] > 1 and X.strides[-1] != X.itemsize
        gemm(
            self.handle,
            X.swapaxes(-1, -2) if is_by_columns else X,
            other,
            out,
            beta=beta,
            transpose_a=is_transposed != is_by_columns,
            precision=self.precision,
        )


class CupyPass:
    """A plan bound to a source, whose targets and weights it keeps on the device. The stages are in `kernels/*.cu`."""

    def __init__(self, backend: CupyBackend, source: ArraySource, plan: CudaPlan):
        self.backend = backend
        self.source = source
        self.plan = plan
        self.n_rows = plan.n_rows
        self.dtype = plan.dtype
        self.rounding = float(np.finfo(plan.dtype).eps)
        self._forward = _Forward(backend, source, plan)
        self._rows = _Rows(backend, source, plan)
        xp, shape = backend.cupy, (plan.n_features + 1, plan.n_columns)
        self._gradient = xp.empty(shape, plan.gradient_dtype)
        n_tiles = launches.n_tiles(plan.n_rows)
        self._tile_loss = xp.empty((plan.n_problems, n_tiles))
        self._row_loss: Any = xp.empty((plan.n_problems, plan.block_rows)) if plan.needs_row_losses else None
        self._total = xp.empty(plan.n_problems)
        part = shape if plan.is_one_kernel else (plan.n_features, plan.n_columns)
        self._parts: Any = xp.empty((plan.n_parts, *part), plan.dtype) if plan.n_parts else None
        n_sums = 0 if plan.is_one_kernel else launches.column_sum_parts(plan.block_rows)
        self._column_sums = xp.empty((n_sums, plan.n_columns))

    def loss_and_gradient(self, params, label_smoothing: float):
        """Return summed losses (n_problems,) in float64 and the gradient's sums, of the shape and dtype of `params`.

        Both are on the device; nothing waits for them.
        """
        plan, kernels = self.plan, self.backend.kernels
        self._forward.set_params(params)
        stage = self._by_one_kernel if plan.is_one_kernel else self._by_products
        for rows in plan.blocks():
            tiles = slice(rows.start // launches.TILE_ROWS, launches.n_tiles(rows.stop))
            about = self._rows.about(rows) | {
                "label_smoothing": label_smoothing,
                "tile_loss": self._tile_loss[:, tiles],
            }
            stage(rows, about, is_first=rows.start == 0)
        kernels.sum_losses(self._tile_loss, self._total)
        gradient = self.backend.cupy.empty(params.shape, params.dtype)
        wide = gradient.reshape(len(gradient), -1)
        kernels.unpad_classes(self._gradient, plan.n_classes, plan.n_problems, plan.class_stride, wide)
        return self._total.copy(), gradient

    def _by_one_kernel(self, rows: slice, about: dict, *, is_first: bool) -> None:
        plan, kernels = self.plan, self.backend.kernels
        X, params = self._forward.features(rows), self._forward.params.reshape(-1, plan.n_problems, plan.n_classes)
        parts = self._parts[: launches.fused_small(len(X), *plan.kernel_sizes).grid]
        kernels.fused_small(X, params, parts.reshape(-1, *params.shape), shared_limit=plan.facts.shared_bytes, **about)
        kernels.sum_parts(parts, self._gradient, accumulate=not is_first)

    def _by_products(self, rows: slice, about: dict, *, is_first: bool) -> None:
        plan, kernels, forward = self.plan, self.backend.kernels, self._forward
        X, gradient = forward.features(rows), self._gradient[:-1]
        z = forward.logits(X)
        row_loss = None if self._row_loss is None else self._row_loss[:, : len(z)]
        kernels.residual(z, z, plan.n_classes, plan.n_problems, bias=forward.bias, row_loss=row_loss, **about)
        if self._parts is None:
            forward.gemm(X, z, gradient, is_transposed=True, beta=0.0 if is_first else 1.0)
        else:
            kernels.sum_parts(self._products(X, z), gradient, accumulate=not is_first)
        sums = self._column_sums[: launches.column_sum_parts(len(z))]
        kernels.column_sums(z, sums, self._gradient[-1], accumulate=not is_first)

    def _products(self, X, z):
        """Return XᵀG of equal parts of the rows; what is left over joins the last one."""
        n = min(self.plan.n_splits, len(X))
        each = len(X) // n
        parts, whole = self._parts[:n], n * each
        split = X[:whole].reshape(n, each, -1), z[:whole].reshape(n, each, -1)
        self._forward.gemm(*split, parts, is_transposed=True)
        if whole < len(X):
            self._forward.gemm(X[whole:], z[whole:], parts[-1], is_transposed=True, beta=1.0)
        return parts

    def curvature(self, params, scale: np.ndarray, plan: MetricPlan, rows: np.ndarray) -> CurvatureSums:
        """Return the metric's sums over `rows`, block by block."""
        backend = self.backend
        compute, scale = params.astype(self.dtype, copy=False), backend.to_device(scale)
        _, n_problems, n_classes = params.shape
        sums = CurvatureSums(backend.cupy, len(scale), n_problems, n_classes, plan)
        for start in range(0, len(rows), plan.block_rows):
            chosen = backend.to_device(rows[start : start + plan.block_rows])
            curvature(self.source.features(chosen), self._rows.weights_of(chosen), compute, scale, sums)
        return sums

    def scores(self, params, weights, n_sets: int) -> ScoreSums:
        """Return the sums of the scores of each set of rows; `weights` say how those of a block weigh, on the host."""
        plan, backend = self.plan, self.backend
        forward = self._forward if self._forward.z is not None else _Forward(backend, self.source, plan.by_products())
        forward.set_params(params)
        sums = ScoreSums(backend.cupy, n_sets, plan.n_problems)
        for rows in forward.plan.blocks():
            z = forward.logits(forward.features(rows))
            z = z.reshape(len(z), plan.n_problems, -1).transpose(1, 2, 0)
            z += forward.bias[:, :, np.newaxis]
            add_scores(z[:, : plan.n_classes], self._rows.targets[rows], backend.to_device(weights(rows)), sums)
        return sums

    def cheaper(self, precision: str) -> list["CupyPass"]:
        """Return passes whose products round their factors, where tensor cores do that and products take the time."""
        plan = self.plan
        is_idle = precision == "auto" and plan.bound != "arithmetic"
        if plan.is_one_kernel or plan.dtype != np.float32 or plan.facts.compute_capability < TENSOR_CORES or is_idle:
            return []
        return [self._with_products(name) for name in COARSER[precision]]

    def _with_products(self, precision: str) -> "CupyPass":
        """Return this pass, in the same buffers, with products of another precision."""
        other, other._forward = copy(self), copy(self._forward)
        other._forward.precision = precision
        other.rounding = ROUNDING.get(precision, self.rounding)
        return other

    def select(self, active: np.ndarray) -> "CupyPass":
        """Return the pass of the problems in `active`, planned anew."""
        chosen = self.backend.fused_pass(self.source.select(active), self.plan.with_problems(len(active)))
        return chosen._with_products(self._forward.precision)


class _Rows:
    """Targets and weights on the device, class weights multiplied in; see `ArraySource.targets_and_weights`.

    `columns` are those that each problem has of the weights, None where weights have one for each, or one for all.
    """

    def __init__(self, backend: CupyBackend, source: ArraySource, plan: CudaPlan):
        xp, dtype = backend.cupy, plan.dtype
        self.xp = xp
        self.targets = backend.to_device(source.targets, dtype if plan.is_soft else np.int32)
        self.weights = None if source.weights is None else backend.to_device(source.weights, dtype)
        self.class_weight: Any = None
        self.factor: Any = None
        self.soft: Any = None
        if source.class_weight is not None:
            class_weight = backend.to_device(source.class_weight, dtype)
            factor = (self.targets @ class_weight[0])[:, np.newaxis] if plan.is_soft else class_weight.T[self.targets]
            self.weights = factor if self.weights is None else self.weights * factor
            if plan.is_soft:
                self.class_weight, self.factor = class_weight, xp.where(factor > 0, factor, 1).astype(dtype)
                self.soft = xp.empty((plan.block_rows, plan.n_classes), dtype)
        self.columns: Any = None
        self.gathered: Any = None
        if source.columns is not None and self.weights is not None and self.weights.shape[1] > 1:
            self.columns = backend.to_device(source.columns)
            self.gathered = xp.empty((plan.block_rows, plan.n_problems), dtype)

    def weights_of(self, rows, out=None):
        """Return the rows' weights (rows, n_problems), (rows, 1) where all problems share them, or None for ones."""
        if self.weights is None or self.columns is None:
            return None if self.weights is None else self.weights[rows]
        return self.xp.take(self.weights[rows], self.columns, axis=1, out=out)

    def about(self, rows: slice) -> dict:
        """Return the rows' labels or soft targets, and weights, as kernels take them."""
        targets = self.targets[rows]
        weights = self.weights_of(rows, None if self.columns is None else self.gathered[: len(targets)])
        if targets.ndim == 1:
            return {"labels": targets, "weights": weights}
        if self.class_weight is not None:
            soft = self.soft[: len(targets)]
            self.xp.multiply(targets, self.class_weight, out=soft)
            self.xp.divide(soft, self.factor[rows], out=soft)
            targets = soft
        return {"targets": targets, "weights": weights}
