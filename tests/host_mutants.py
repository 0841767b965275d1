"""Seeded bugs of the host code of the CUDA path, and the scenarios in which a detector must see them.

Each mutant is an edit of one file of the package, which a fresh copy of the package is imported with, beside CuPy's
stand-in. Detectors: the kinds of `emulator.ptx.Fault`; what is raised, by `RAISED`; and what a scenario finds itself:
`answer`, against float64 on the CPU by the unchanged package; `view`, an answer that a second evaluation changes;
`waits`, `allocations` and `copies` of an evaluation; `place`, a result on another device. `python
tests/host_mutants.py` prints who sees what.
"""

import importlib.abc
import importlib.machinery
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from emulator.cupy_standin import Facts, installed
from emulator.cupy_standin.errors import CUBLASError, ImplicitTransfer
from emulator.ptx import Fault
from oracle import FLOAT32, FLOAT64, ROUNDING, make_data

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.exceptions import NonFiniteError
from gpusoftmax.kernels import reference
from gpusoftmax.sources import ArraySource

PACKAGE = Path(__file__).parents[1] / "gpusoftmax"
RAISED = {  # the first that fits
    ImplicitTransfer: "transfer",
    TypeError: "type",
    CUBLASError: "cublas",
    AttributeError: "attribute",
    NonFiniteError: "answer",
    ValueError: "value",
    NotImplementedError: "refused",
}


@dataclass(frozen=True)
class Mutant:
    """One edit: the first `old` behind `after`. `scenario` and `detector` say where it must be seen and by whom."""

    name: str
    file: str
    scenario: str
    detector: str
    old: str = ""
    new: str = ""
    after: str = ""

    @property
    def module(self):
        return "gpusoftmax." + self.file.removesuffix(".py").replace("/", ".")

    def source(self):
        text = (PACKAGE / self.file).read_text(encoding="utf-8")
        at = text.index(self.old, text.index(self.after))
        return text[:at] + self.new + text[at + len(self.old) :]


BACKEND, KERNELS, OBJECTIVE = "backends/cuda.py", "kernels/cuda.py", "objective.py"
METRIC, CURVATURE, PENALTIES = "preconditioner.py", "kernels/curvature.py", "penalties.py"
SOLVER, PAIRS, INTEROP = "solvers/lbfgs.py", "solvers/pairs.py", "interop.py"

MUTANTS = (
    # Implicit transfers
    Mutant("an array is read by NumPy", BACKEND, "products", "transfer",
           "self.cupy.asnumpy(array)", "np.asarray(array)"),
    Mutant("a flag on the device decides", BACKEND, "fit", "transfer",
           "self.to_host(self.cupy.isfinite(L.diagonal()).all())", "self.cupy.isfinite(L.diagonal()).all()"),
    Mutant("NumPy's where", PENALTIES, "objective", "transfer", "xp.where(", "np.where("),
    Mutant("the corner of the metric by float()", METRIC, "metric", "transfer",
           "float(arrays.to_host(gram.reshape(-1)[-1:])[0])", "float(gram.reshape(-1)[-1])"),
    Mutant("NumPy's eigenvectors of sums on the device", OBJECTIVE, "metric", "transfer",
           "self.arrays.to_host(sums.classes)", "np.asarray(sums.classes)"),
    Mutant("predictions go to the host by themselves", BACKEND, "fit on another device", "transfer",
           "prediction if stays else self.to_host(prediction)", "prediction"),
    Mutant("a CUDA array is read by NumPy", INTEROP, "fit on another device", "transfer",
           "return cupy.asnumpy(array)", "return np.asarray(array)"),
    Mutant("a check of finite numbers on the device decides", INTEROP, "fit on another device", "transfer",
           "cupy.asnumpy(cupy.stack([cupy.isfinite(block).all() for block in blocks]).all())",
           "cupy.stack([cupy.isfinite(block).all() for block in blocks]).all()"),
    # NumPy arrays in device expressions, and what CuPy does not take or have
    Mutant("a step for each problem, left on the host", SOLVER, "fit", "type",
           "self.arrays.to_device(numbers[:, np.newaxis], self.vectors.x.dtype)",
           "numbers[:, np.newaxis].astype(self.vectors.x.dtype)"),
    Mutant("a choice of problems, left on the host", SOLVER, "fit", "type",
           "self.arrays.to_device(chosen)[:, np.newaxis]", "chosen[:, np.newaxis]"),
    Mutant("places of ended problems, left on the host", SOLVER, "fit", "type",
           "self.arrays.to_device(state.problem)", "state.problem"),
    Mutant("candidates' places, left on the host", PAIRS, "fit", "type",
           "self.arrays.to_device(self.candidate)", "self.candidate"),
    Mutant("coefficients of pairs, left on the host", PAIRS, "fit", "type",
           "self.arrays.to_device(weights, self.Y.dtype)", "weights"),
    Mutant("a start, left on the host", "training.py", "fit", "type",
           "value_and_grad(self.backend.to_device(params))", "value_and_grad(params)"),
    Mutant("a start is compared on the device", "training.py", "fit", "type",
           "value = self.backend.to_host(value)\n        is_taken", "is_taken"),
    Mutant("a penalty and a ridge, left on the host", METRIC, "metric", "type",
           "arrays.to_device(scaled_penalty + ridge, A.dtype)", "(scaled_penalty + ridge)"),
    Mutant("problems of the metric, left on the host", METRIC, "metric", "type",
           "places = self.arrays.to_device(active)", "places = active"),
    Mutant("sampled rows, left on the host", BACKEND, "metric", "type",
           "chosen = backend.to_device(rows[start : start + plan.block_rows])",
           "chosen = rows[start : start + plan.block_rows]"),
    Mutant("an argument that CuPy's sum does not have", CURVATURE, "metric", "type",
           "weighted.sum(axis=2, dtype=np.float64)", "weighted.sum(axis=2, dtype=np.float64, initial=0.0)"),
    Mutant("an argument that CuPy's ufuncs do not have", BACKEND, "class weights", "type",
           "self.xp.divide(soft, self.factor[rows], out=soft)",
           "self.xp.divide(soft, self.factor[rows], out=soft, where=True)"),
    Mutant("a flag that CuPy does not have", "sources.py", "products", "attribute",
           "if self.xp is np and not self.X.flags.aligned", "if not self.X.flags.aligned"),
    Mutant("a context that CuPy does not have", PENALTIES, "objective", "attribute",
           'np.errstate(over="ignore"', 'xp.errstate(over="ignore"'),
    # Kernel arguments
    Mutant("labels of 64 bits", BACKEND, "products", "type", "dtype if plan.is_soft else np.int32",
           "dtype if plan.is_soft else np.int64"),
    Mutant("weights keep the dtype they came in", BACKEND, "float32", "type",
           "backend.to_device(source.weights, dtype)", "backend.to_device(source.weights)"),
    Mutant("a Python bool", KERNELS, "products", "type", "np.int32(accumulate), total", "accumulate, total"),
    Mutant("a Python float", KERNELS, "float32", "type", "X.dtype.type(label_smoothing)", "float(label_smoothing)"),
    Mutant("float64 params for the float32 kernel", BACKEND, "float32", "type",
           'self.backend.cupy.copyto(self.params, wide, casting="same_kind")', "self.params = wide"),
    Mutant("weights' strides exchanged", KERNELS, "products", "answer",
           "return np.int64(weights.strides[0] // size), np.int64(0 if shared else weights.strides[1] // size)",
           "return np.int64(0 if shared else weights.strides[1] // size), np.int64(weights.strides[0] // size)"),
    Mutant("shared memory is not asked for", KERNELS, "shared memory", "launch",
           "if launch.shared_bytes:", "if False:"),
    Mutant("static arrays are forgotten of shared memory", KERNELS, "shared memory", "launch",
           "if launch.shared_bytes:", "if launch.shared_bytes > 48 * 1024:"),
    Mutant("the residual in other rows than the logits", BACKEND, "products", "alias",
           "kernels.residual(z, z, plan.", "kernels.residual(z, forward.z[-len(z) :], plan."),
    Mutant("a direct pass over columns by the one kernel", BACKEND, "columns", "value",
           "if plan.is_one_kernel and source.is_direct and", "if False and"),
    # Products
    Mutant("CuPy's product, whose rounding is global", BACKEND, "rounded products", "answer",
           "self.gemm(X, self.params[:-1], z)", "self.backend.cupy.matmul(X, self.params[:-1], out=z)"),
    Mutant("a compute type that the handle's mode decides", BACKEND, "rounded products", "answer",
           '"float32": "float32_pedantic"', '"float32": "float32"'),
    Mutant("coarser products for the exact pass too", BACKEND, "rounded products", "answer",
           "copy(self), copy(self._forward)", "copy(self), self._forward"),
    Mutant("blocks overwrite the gradient", BACKEND, "products", "answer",
           "beta=0.0 if is_first else 1.0", "beta=0.0"),
    Mutant("the first block adds to what was there", BACKEND, "products", "uninitialised",
           "beta=0.0 if is_first else 1.0", "beta=1.0"),
    Mutant("a leading dimension in bytes", KERNELS, "products", "bounds",
           "array.strides[-2] // size if", "array.strides[-2] if"),
    Mutant("rows taken for contiguous", KERNELS, "columns", "answer",
           "array.strides[-2] // size if array.shape[-2] > 1 else array.shape[-1]", "array.shape[-1]"),
    Mutant("sizes of a product exchanged", KERNELS, "products", "cublas",
           "*operations, n, m, k,", "*operations, m, n, k,", "if c.ndim == 2"),
    Mutant("flags of a product exchanged", KERNELS, "products", "cublas",
           "(transpose_b, transpose_a)", "(transpose_a, transpose_b)"),
    Mutant("columns multiplied as if they were rows", BACKEND, "columns", "value",
           "transpose_a=is_transposed != is_by_columns", "transpose_a=is_transposed"),
    Mutant("the pointer of a copy is kept, the copy is not", KERNELS, "products", "bounds",
           "_operand(name, x, c.ndim)", "_operand(name, x if x is c else x.copy(), c.ndim)"),
    Mutant("rows that the parts leave over are lost", BACKEND, "split", "answer", "if whole < len(X):", "if False:"),
    Mutant("the rows left over overwrite the last part", BACKEND, "split", "answer",
           "parts[-1], is_transposed=True, beta=1.0", "parts[-1], is_transposed=True, beta=0.0"),
    # Blocks, buffers and what is added up
    Mutant("the first answer is a view: losses", BACKEND, "products", "view",
           "return self._total.copy(), gradient", "return self._total, gradient"),
    Mutant("the first answer is a view: gradient", BACKEND, "one kernel", "view",
           "return self._total.copy(), gradient", "return self._total.copy(), self._gradient.reshape(params.shape)"),
    Mutant("a block's losses in the first one's place", BACKEND, "products", "uninitialised",
           "slice(rows.start // launches.TILE_ROWS, launches.n_tiles(rows.stop))",
           "slice(0, launches.n_tiles(rows.stop - rows.start))"),
    Mutant("pads of the params left alone", BACKEND, "products", "uninitialised",
           "self.backend.kernels.pad_classes(wide, plan.n_classes, plan.n_problems, self.params)",
           "self.params.reshape(*params.shape[:2], -1)[:, :, : plan.n_classes] = params"),
    Mutant("problems taken for contiguous", BACKEND, "products", "answer",
           "plan.n_problems, plan.class_stride, wide)", "plan.n_problems, plan.n_classes, wide)"),
    Mutant("a short block takes all of the buffer", BACKEND, "products", "value",
           "z = self.z[: len(X)]", "z = self.z"),
    Mutant("columns of all of the buffer are added", BACKEND, "products", "answer",
           "kernels.column_sums(z, sums,", "kernels.column_sums(forward.z, sums,"),
    Mutant("columns of the last block only", BACKEND, "products", "answer",
           "self._gradient[-1], accumulate=not is_first", "self._gradient[-1], accumulate=False"),
    Mutant("row losses of all of the buffer", BACKEND, "many classes", "value",
           "self._row_loss[:, : len(z)]", "self._row_loss"),
    Mutant("the bias is forgotten", BACKEND, "products", "answer", "bias=forward.bias", "bias=None"),
    Mutant("parts of the last block only", BACKEND, "one kernel", "answer",
           "kernels.sum_parts(parts, self._gradient, accumulate=not is_first)",
           "kernels.sum_parts(parts, self._gradient, accumulate=False)"),
    Mutant("parts that a short block has not", BACKEND, "one kernel", "answer",
           "kernels.sum_parts(parts, self._gradient,", "kernels.sum_parts(self._parts, self._gradient,"),
    Mutant("parts that few rows have not", BACKEND, "few rows", "uninitialised",
           "kernels.sum_parts(parts, self._gradient,", "kernels.sum_parts(self._parts, self._gradient,"),
    Mutant("losses added to those of before", BACKEND, "products", "uninitialised",
           "kernels.sum_losses(self._tile_loss, self._total)",
           "kernels.sum_losses(self._tile_loss, self._total, accumulate=True)"),
    Mutant("soft targets of the first block for all", BACKEND, "class weights", "answer",
           "self.xp.multiply(targets, self.class_weight, out=soft)",
           "rows.start or self.xp.multiply(targets, self.class_weight, out=soft)"),
    Mutant("class weights of other rows", BACKEND, "class weights", "answer", "self.factor[rows]",
           "self.factor[: len(targets)]"),
    Mutant("weights of the first block for all", BACKEND, "products", "answer",
           "self.weights[rows]", "self.weights[: len(self.targets[rows])]"),
    Mutant("X is converted with the rows of another block", "sources.py", "float32", "answer",
           "self.xp.copyto(out, X,", "self.xp.copyto(out, self.X[: len(X)],"),
    Mutant("a row without weight is divided by it", BACKEND, "class weights", "answer",
           "xp.where(factor > 0, factor, 1).astype(dtype)", "factor.astype(dtype)"),
    Mutant("a gradient laid out like params", BACKEND, "fit", "uninitialised",
           "self.backend.cupy.empty(params.shape, params.dtype)", "self.backend.cupy.empty_like(params)"),
    Mutant("predictions by the one kernel", BACKEND, "predictions", "type", "plan.by_products())", "plan)"),
    Mutant("an evaluation allocates its logits", BACKEND, "products", "allocations",
           "z = self.z[: len(X)]", "z = self.backend.cupy.empty((len(X), self.z.shape[1]), self.z.dtype)"),
    Mutant("predictions of a block in the first one's place", BACKEND, "predictions", "uninitialised",
           "out[rows] = prediction", "out[: len(prediction)] = prediction"),
    # Streams, devices and waits
    Mutant("kernels on a stream of their own", KERNELS, "streams", "race", "function((launch.grid,)",
           "with self._cupy.cuda.Stream(non_blocking=True):\n            function((launch.grid,)"),
    Mutant("kernels on the default stream", KERNELS, "streams", "race", "function((launch.grid,)",
           "with self._cupy.cuda.Stream.null:\n            function((launch.grid,)"),
    Mutant("uploads on a stream of their own", BACKEND, "streams", "race", "return self.cupy.asarray(array, dtype)",
           "with self.cupy.cuda.Stream(non_blocking=True):\n            return self.cupy.asarray(array, dtype)"),
    Mutant("results are read on another stream", BACKEND, "streams", "race", "self.cupy.asnumpy(array)",
           "self.cupy.asnumpy(array, self.cupy.cuda.Stream(non_blocking=True))"),
    Mutant("results are read before they are there", BACKEND, "products", "refused", "self.cupy.asnumpy(array)",
           "self.cupy.asnumpy(array, blocking=False)"),
    Mutant("products on the default stream", KERNELS, "streams", "race", "    if c.ndim == 2:\n        cublas.gemmEx(",
           "    import cupy\n\n    if c.ndim == 2:\n      with cupy.cuda.Stream.null:\n        cublas.gemmEx("),
    Mutant("a fit on the current device", BACKEND, "fit on another device", "value",
           "self.cupy.cuda.Device(self.cuda_device)", "self.cupy.cuda.Device()", "def session"),
    Mutant("the first device's handle", BACKEND, "fit on another device", "cublas",
           "self.handle = xp.", "with xp.cuda.Device(0):\n            self.handle = xp."),
    Mutant("results on the first device", INTEROP, "fit on another device", "place",
           "with cupy.cuda.Device(self.cuda_device):\n            array = cupy.asarray(array)",
           "with cupy.cuda.Device(0):\n            array = cupy.asarray(array)"),
    Mutant("numbers are read one by one", SOLVER, "fit", "waits",
           "packed = self.arrays.to_host(self.arrays.xp.concatenate(columns, axis=1, dtype=np.float64))",
           "packed = np.concatenate([self.arrays.to_host(column) for column in columns], axis=1)"),
    Mutant("a second look at the gradient", SOLVER, "fit", "waits", "state.n_trials += 1",
           "state.n_trials += np.isfinite(self.arrays.to_host(point[1])).all()"),
    Mutant("every block's losses are looked at", BACKEND, "products", "waits",
           "stage(rows, about, is_first=rows.start == 0)",
           'stage(rows, about, is_first=rows.start == 0)\n            self.backend.to_host(about["tile_loss"])'),
    Mutant("the callback reads params", SOLVER, "fit", "waits", "return Progress(",
           "self.arrays.to_host(self.solution.params)\n        return Progress("),
    # Mathematics that only the device's arrays go through, and what both share
    Mutant("losses divided by the weight twice", OBJECTIVE, "objective", "answer",
           "return loss / self.total_weight +", "return loss / self.total_weight / self.total_weight +"),
    Mutant("gradients divided by the weight twice", OBJECTIVE, "objective", "answer",
           "grad /= self.total_weight[:, np.newaxis].astype(grad.dtype)",
           "grad /= self.total_weight[:, np.newaxis].astype(grad.dtype) ** 2"),
    Mutant("the intercept is penalised", OBJECTIVE, "objective", "answer",
           "add_gradient(params[:-1], grad[:-1])", "add_gradient(params, grad)"),
    Mutant("all problems have the first one's penalty", PENALTIES, "objective", "answer",
           "gradient += self.strength[:, np.newaxis]", "gradient += self.strength[:1, np.newaxis]"),
    Mutant("a penalty in float32", PENALTIES, "penalty", "answer", ", dtype=np.float64)", ")"),
    Mutant("ended problems keep their weight", OBJECTIVE, "fit", "type",
           "self.total_weight[self.arrays.to_device(active)]", "self.total_weight[active]"),
    Mutant("ended problems keep their rows' weights", BACKEND, "fit", "value",
           "self.source.select(active)", "self.source"),
    Mutant("the metric without weights", BACKEND, "metric", "answer",
           "self._rows.weights_of(chosen)", "None"),
    Mutant("a problem takes another's column of weights", BACKEND, "shared columns", "value",
           "self.columns = backend.to_device(source.columns)",
           "self.columns = backend.to_device(source.columns[::-1])"),
    Mutant("the first block's weights for all", BACKEND, "shared columns", "value",
           "self.xp.take(self.weights[rows], self", "self.xp.take(self.weights[: len(self.weights[rows])], self"),
    Mutant("scores without the bias", BACKEND, "scores", "answer", "z += forward.bias[:, :, np.newaxis]", "pass"),
    Mutant("scores with the classes that pad", BACKEND, "scores", "answer", "add_scores(z[:, : plan.n_classes]",
           "add_scores(z[:, :]"),
    Mutant("scores by the targets of the first block", BACKEND, "scores", "value",
           "self._rows.targets[rows], backend.to_device(weights(rows))",
           "self._rows.targets[: len(z)], backend.to_device(weights(rows))"),
    Mutant("scores by weights on the host", BACKEND, "scores", "attribute", "backend.to_device(weights(rows))",
           "weights(rows)"),
    Mutant("the metric of a factor not transposed", BACKEND, "metric", "answer",
           "lower=True).T)", "lower=True))"),
    Mutant("eigenvectors not brought back", BACKEND, "metric", "answer", ", trans=1))", "))"),
    Mutant("a factor that is none", BACKEND, "factors", "answer",
           "if not self.to_host(self.cupy.isfinite(L.diagonal()).all()):", "if False:"),
    Mutant("a fit goes on where it began", "solvers/ladder.py", "rounded fit", "answer",
           "params, known = solution.params, ", "params, known = params, "),
)  # fmt: skip
CONTROL = Mutant("the unchanged source", "__init__.py", "", "")


# ---------------------------------------------------------------- a fresh copy of the package


class _Edited(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds and loads one module, from its edited source."""

    def __init__(self, mutant):
        super().__init__(mutant.module, str(PACKAGE / mutant.file))
        self.mutant = mutant

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, origin=self.path) if name == self.name else None

    def get_code(self, fullname):
        return compile(self.mutant.source(), self.path, "exec")


def _ours():
    return [name for name in sys.modules if name.partition(".")[0] == "gpusoftmax"]


@contextmanager
def package(mutant):
    """Let `import gpusoftmax` find a copy with the edit in it; the one that other tests know comes back unharmed."""
    kept = {name: sys.modules.pop(name) for name in _ours()}
    finder = _Edited(mutant) if mutant.old else None
    if finder:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder:
            sys.meta_path.remove(finder)
        for name in _ours():
            del sys.modules[name]
        sys.modules.update(kept)


def module(name):
    return import_module(f"gpusoftmax.{name}")


# ---------------------------------------------------------------- scenarios


@dataclass(frozen=True)
class Case:
    """One pass: 170 rows in blocks of 64, the last of them shorter, unless it says otherwise."""

    n_rows: int = 170
    n_features: int = 5
    n_classes: int = 3
    n_problems: int = 2
    targets: str = "labels"
    weights: str | None = "each"
    dtype: np.dtype = FLOAT64
    storage: str = "f8"  # of X on the device
    layout: str = "rows"  # or "columns", or "wide": rows of a wider matrix
    has_class_weight: bool = False
    block_rows: int = 64
    is_one_kernel: bool = False
    changes: tuple = ()  # of the plan

    @property
    def data(self):
        sizes = self.n_rows, self.n_features, self.n_problems, self.n_classes
        return make_data(*sizes, targets=self.targets, weights=self.weights)

    @property
    def class_weight(self):
        return np.abs(np.arange(self.n_classes) - 1.0)[np.newaxis] if self.has_class_weight else None  # one of them 0

    def bound(self, backend):
        """Return the pass on a device."""
        data = self.data
        source = module("sources").ArraySource(data.X, data.targets, data.weights, self.dtype)
        source = replace(source, X=self._laid_out(backend, data.X), xp=backend.xp, class_weight=self.class_weight)
        source = backend.place(source)
        plan = backend.facts().plan_pass(
            *(self.n_rows, self.n_features, self.n_problems, self.n_classes, self.dtype),
            is_soft=data.targets.ndim == 2,
            is_direct=source.is_direct,
        )
        changes = {"block_rows": self.block_rows, "is_one_kernel": self.is_one_kernel} | dict(self.changes)
        return backend.fused_pass(source, replace(plan, **changes))

    def _laid_out(self, backend, X):
        X = X.astype(self.storage)
        if self.layout == "columns":
            return backend.xp.asarray(np.ascontiguousarray(X.T)).T
        if self.layout == "wide":
            return backend.xp.asarray(np.pad(X, ((0, 0), (1, 2)), constant_values=np.nan))[:, 1:-2]
        return X  # uploaded by `place`

    def errors(self, answer, params):
        """Return the largest error of losses and of the gradient, relative to the largest entry."""
        return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(answer, self.expected(params), strict=True)]

    def expected(self, params):
        data = self.data
        source = ArraySource(data.X, data.targets, data.weights, FLOAT64, class_weight=self.class_weight)
        targets, weights = source.targets_and_weights(slice(None))
        weights = np.ones((self.n_rows, 1)) if weights is None else weights
        weights = np.broadcast_to(weights, (self.n_rows, self.n_problems))
        return reference.loss_and_gradient(data.X, targets, weights, params, SMOOTHING)


SMOOTHING = 0.1


def _backend(number=None):
    return module("backends.cuda").CupyBackend(number)


def _pass(**options):
    """Return a scenario: a pass is evaluated at two points, and leaves the first answer as it was."""
    case = Case(**options)

    def run(machine):
        backend = _backend()
        fused_pass = case.bound(backend)
        points = [case.data.params, case.data.params[::-1] / 2]
        there = [backend.to_device(params, fused_pass.plan.gradient_dtype) for params in points]
        first = fused_pass.loss_and_gradient(there[0], SMOOTHING)
        kept = [backend.to_host(part) for part in first]
        counters = machine.counters
        counters.reset()
        second = fused_pass.loss_and_gradient(there[1], SMOOTHING)
        counts = counters.transfers, counters.silent_copies, counters.allocations
        if _differs(case, kept, points[0]) or _differs(case, [backend.to_host(part) for part in second], points[1]):
            return "answer"
        if any((backend.to_host(part) != value).any() for part, value in zip(first, kept, strict=True)):
            return "view"
        limits = {"waits": 0, "copies": 0, "allocations": 2}
        return next((name for name, n in zip(limits, counts, strict=True) if n > limits[name]), None)

    return run


def _differs(case, answer, params, tolerance=None):
    tolerance = 10 * ROUNDING[case.dtype] if tolerance is None else tolerance
    return not max(case.errors(answer, params)) <= tolerance


def _streams(machine):
    """Everything on a stream of the caller's that the default stream does not wait for."""
    import cupy

    for is_one_kernel in (False, True):
        with cupy.cuda.Stream(non_blocking=True):
            found = _pass(is_one_kernel=is_one_kernel)(machine)
        if found:
            return found
    return None


@contextmanager
def _tf32_everywhere():
    """Let cuBLAS and CuPy round the factors of all products that leave it to them."""
    from cupy_backends.cuda.libs import cublas

    cublas.setMathMode(cublas.get_cublas_handle(), cublas.CUBLAS_TF32_TENSOR_OP_MATH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUPY_TF32", "1")
        yield


def _rounded_products(machine):
    with _tf32_everywhere():
        backend, case = _backend(), Case(n_features=30, n_classes=10, dtype=FLOAT32, storage="f4")
        fused_pass = case.bound(backend)
        (coarse,) = fused_pass.cheaper("high")
        params = backend.to_device(case.data.params)
        rounded, exact = (
            [backend.to_host(part) for part in each.loss_and_gradient(params, SMOOTHING)]
            for each in (coarse, fused_pass)
        )
    is_rounded = _differs(case, rounded, case.data.params) and not _differs(case, rounded, case.data.params, 1e-2)
    return None if is_rounded and not _differs(case, exact, case.data.params) else "answer"


STRENGTHS = {"alike": np.array([0.1, 0.2]), "far apart": np.array([1e-4, 10.0])}


def _objective(of, backend, fused_pass, strength):
    """Return the objective of a pass, by the package whose modules `of` returns."""
    metric_plan = of("plan").MetricPlan(FLOAT64, 64, 1, is_feature_full=True, is_class_full=True, workspace_bytes=0)
    return of("objective").SoftmaxObjective(
        arrays=backend,
        fused_pass=fused_pass,
        penalty=of("penalties").L2(backend, backend.to_device(strength)),
        total_weight=backend.to_device(Case().data.weights.sum(axis=0)),
        has_intercept=True,
        label_smoothing=SMOOTHING,
        metric_rows=of("objective").MetricRows(metric_plan, np.arange(0, 170, 2), np.exp2(np.arange(-2.0, 3))),
    )


def _value_and_grad(machine):
    backend, case, strength = _backend(), Case(), STRENGTHS["alike"]
    objective = _objective(module, backend, case.bound(backend), strength)
    params, total = case.data.params, case.data.weights.sum(axis=0)
    there = backend.to_device(params)
    machine.counters.reset()
    answer = objective.value_and_grad(there)
    if machine.counters.transfers:
        return "waits"
    loss, grad = case.expected(params)
    loss, grad = loss / total + strength / 2 * (params[:-1] ** 2).sum(axis=(0, 2)), grad / total[:, np.newaxis]
    grad[:-1] += strength[:, np.newaxis] * params[:-1]
    found = [np.abs(backend.to_host(part) - right).max() for part, right in zip(answer, (loss, grad), strict=True)]
    return None if max(found) < 1e-13 else "answer"


def _penalty(machine):
    backend, coefficients = _backend(), Case().data.params.astype("f4")
    strength = STRENGTHS["alike"]
    found = module("penalties").L2(backend, backend.to_device(strength)).value(backend.to_device(coefficients))
    right = strength / 2 * (coefficients.astype(float) ** 2).sum(axis=(0, 2))
    return None if np.abs(backend.to_host(found) / right - 1).max() <= 1e-14 else "answer"


def _directions(of, backend, fused_pass, strength):
    """Return the metric times a gradient, for both problems and for the second alone."""
    metric = _objective(of, backend, fused_pass, strength).metric(backend.to_device(Case().data.params))
    gradient = backend.to_device(Case().data.params[::-1].copy())
    both, second = metric.apply(gradient), metric.select(np.array([1])).apply(gradient[:, 1:])
    return [backend.to_host(both), backend.to_host(second)]


@cache
def _right_directions(strength):
    data, backend = Case().data, NumpyBackend()
    source = ArraySource(data.X, data.targets, data.weights, FLOAT64)
    plan = backend.facts().plan_pass(170, 5, 2, 3, FLOAT64)
    return _directions(ORIGINAL.__getitem__, backend, backend.fused_pass(source, plan), STRENGTHS[strength])


def _metric(machine):
    for name, strength in STRENGTHS.items():
        backend = _backend()
        found = _directions(module, backend, Case().bound(backend), strength)
        for part, right in zip(found, _right_directions(name), strict=True):
            if not np.abs(part - right).max() <= 1e-9 * np.abs(right).max():
                return "answer"
    return None


def _shared_columns(machine):
    """Three problems of which two share a column of weights, all of them class weights."""
    data, backend = make_data(170, 5, 3, 3, weights="each"), _backend()
    class_weight, columns = np.array([[1.0, 2, 3], [3, 1, 0], [1, 1, 2]]), np.array([2, 0, 0])
    source = replace(
        module("sources").ArraySource(data.X, data.targets, data.weights, FLOAT64, class_weight=class_weight),
        columns=columns,
    )
    plan = replace(backend.facts().plan_pass(170, 5, 3, 3, FLOAT64), is_one_kernel=False, block_rows=64)
    fused_pass = backend.fused_pass(backend.place(source), plan)
    loss, gradient = map(backend.to_host, fused_pass.loss_and_gradient(backend.to_device(data.params), 0.0))
    weights = (data.weights * class_weight[:, data.targets].T)[:, columns]
    right = reference.loss_and_gradient(data.X, data.targets, weights, data.params)
    is_right = np.abs(loss - right[0]).max() <= 1e-9 and np.abs(gradient - right[1]).max() <= 1e-9
    return None if is_right else "value"


def _scores(machine):
    """Scores of training and held-out rows, by the buffers of products and without them."""
    data, backend = make_data(170, 5, 2, 3, weights="each"), _backend()
    both = np.hstack([data.weights, data.weights == 0])
    source = backend.place(module("sources").ArraySource(data.X, data.targets, data.weights, FLOAT64))
    logits = reference.logits(data.X, data.params)
    right = [reference.scores(logits, data.targets, both[:, part]) for part in (slice(2), slice(2, 4))]
    for is_one_kernel in (False, True):
        plan = replace(backend.facts().plan_pass(170, 5, 2, 3, FLOAT64), is_one_kernel=is_one_kernel, block_rows=64)
        fused_pass = backend.fused_pass(source, plan)
        sums = fused_pass.scores(backend.to_device(data.params), lambda rows: both[rows], 2)
        for found, k in ((sums.loss, 0), (sums.correct, 1)):
            if not np.abs(backend.to_host(found) - [part[k] for part in right]).max() <= 1e-9:
                return "answer"
    return None


def _factors(machine):
    backend = _backend()
    negative, one = (backend.to_device(sign * np.eye(3)) for sign in (-1, 1))
    for factorise in (backend.inverse_cholesky, partial(backend.eigenvectors, one)):
        try:
            factorise(negative)
        except np.linalg.LinAlgError:
            continue
        return "answer"
    return None


DATA = make_data(170, 5, 2, 3, weights="each")
DATA = replace(DATA, targets=reference.logits(DATA.X, DATA.params)[:, 0].argmax(axis=1).astype(np.uint8))
START = DATA.params * np.array([20.0, 2.0])[:, np.newaxis]  # steps of one problem alone are refused on the way


def _trained(of, backend, dtype=FLOAT64, tol=1e-9, callback=None, **options):
    source = of("sources").ArraySource(DATA.X.astype(dtype), DATA.targets, DATA.weights, dtype)
    training = of("training").Training(np.array([1.0, 0.3]), 3, **options)
    return of("training").train(training, source, of("solvers.lbfgs").LBFGS(tol), backend, START, callback)[0]


@cache
def _right_fit():
    return _trained(ORIGINAL.__getitem__, NumpyBackend()).params


def _fit(machine):
    waits = []

    def count(progress, center):
        waits.append(machine.counters.transfers)

    params = _trained(module, _backend(), callback=count).params
    if not np.abs(params - _right_fit()).max() <= 1e-6:
        return "answer"
    return None if np.median(np.diff(waits)) == 1 else "waits"  # more where there is a new metric


def _rounded_fit(machine):
    """A fit by rounded products; without shared memory for the one kernel, whose products are exact."""
    params = _trained(module, _backend(), FLOAT32, 1e-4, precision="high").params
    return None if np.abs(params - _right_fit()).max() <= 0.1 else "answer"


def _predictions(machine):
    case, backend = Case(n_problems=1), _backend()
    params = case.data.params
    right = np.exp(reference.log_softmax(reference.logits(case.data.X, params)[:, 0]))
    for is_one_kernel in (False, True):
        fused_pass = replace(case, is_one_kernel=is_one_kernel).bound(backend)
        for make in (backend.xp.empty, partial(np.full, fill_value=np.nan)):
            found = make((case.n_rows, 3))
            backend.predict(fused_pass.source, fused_pass.plan, params, "probabilities", found)
            if not np.abs(backend.to_host(found) - right).max() <= 1e-13:
                return "answer"
    return None


def _fit_elsewhere(machine):
    """A fit of what is on the second device, while the first, an older one, is current."""
    import cupy

    classifier, to_host = module("estimator").SoftmaxRegression, module("interop").to_host
    with cupy.cuda.Device(1):
        there = cupy.asarray(DATA.X)
    plain = ORIGINAL["estimator"].SoftmaxRegression(device="cpu").fit(DATA.X, DATA.targets)
    clf = classifier().fit(there, DATA.targets)
    shown, labels = clf.predict_proba(there), clf.predict(there)
    if {clf.coef_.device.id, shown.device.id, labels.device.id} != {1}:
        return "place"
    found = [to_host(clf.coef_), to_host(shown), clf.predict_proba(DATA.X)]
    right = [plain.coef_, *[plain.predict_proba(DATA.X)] * 2]
    is_right = all(np.abs(a - b).max() <= 1e-3 for a, b in zip(found, right, strict=True))
    return None if is_right else "answer"


ORIGINAL = {name: module(name) for name in ("estimator", "objective", "penalties", "plan", "sources", "training")}
ORIGINAL["solvers.lbfgs"] = module("solvers.lbfgs")
SCENARIOS = {
    "products": (
        _pass(),
        _pass(n_classes=10, targets="soft", weights="shared", layout="wide"),
        _pass(n_classes=33, dtype=FLOAT32, storage="f4", weights=None),
    ),
    "one kernel": (
        _pass(is_one_kernel=True, block_rows=128),
        _pass(is_one_kernel=True, n_classes=10, targets="soft", weights=None, layout="wide"),
    ),
    "few rows": (_pass(is_one_kernel=True, n_rows=70, block_rows=1024), _pass(n_rows=1)),
    "many classes": (_pass(n_rows=70, n_classes=600, n_problems=1),),
    "float32": tuple(
        _pass(dtype=FLOAT32, n_classes=10, targets=targets, is_one_kernel=is_one_kernel)
        for targets in ("labels", "soft")
        for is_one_kernel in (False, True)
    ),
    "class weights": tuple(
        _pass(targets=targets, weights=weights, has_class_weight=True)
        for targets in ("labels", "soft")
        for weights in ("each", None)
    ),
    "columns": (
        *(_pass(layout=layout, is_one_kernel=one) for layout in ("columns", "wide") for one in (False, True)),
        _pass(layout="columns", block_rows=1024, changes=(("n_splits", 3),)),
    ),
    "split": tuple(
        _pass(dtype=dtype, storage=dtype.str, block_rows=rows, changes=(("n_splits", 3),))
        for dtype, rows in ((FLOAT32, 1024), (FLOAT64, 64))
    ),
    "gradient in float32": (_pass(dtype=FLOAT32, storage="f4", n_classes=10, changes=(("gradient_dtype", FLOAT32),)),),
    "shared memory": (_pass(is_one_kernel=True, n_rows=70, n_features=72, n_classes=10, n_problems=1),),
    "rounded products": (_rounded_products,),
    "streams": (_streams,),
    "objective": (_value_and_grad,),
    "penalty": (_penalty,),
    "shared columns": (_shared_columns,),
    "scores": (_scores,),
    "metric": (_metric,),
    "factors": (_factors,),
    "fit": (_fit,),
    "rounded fit": (_rounded_fit,),
    "predictions": (_predictions,),
    "fit on another device": (_fit_elsewhere,),
}
MACHINES = {
    "fit on another device": [Facts(compute_capability="80"), Facts()],
    "rounded fit": Facts(shared_per_block_optin=1024),
}


def detector(mutant, scenario=None):
    """Return who sees a mutant first in a scenario, by default its own, or None."""
    scenario = scenario or mutant.scenario
    with package(mutant):
        for run in SCENARIOS[scenario]:
            try:
                with installed(MACHINES.get(scenario)) as machine:
                    found = run(machine)
            except Fault as fault:
                found = fault.kind
            except tuple(RAISED) as error:
                found = next(name for kind, name in RAISED.items() if isinstance(error, kind))
            if found:
                return found
    return None


def main():
    for mutant in MUTANTS:
        found = detector(mutant) or "SURVIVES"
        mark = "" if found == mutant.detector else f"   expected {mutant.detector}"
        sys.stdout.write(f"{mutant.name:55s} {found}{mark}\n")


if __name__ == "__main__":
    main()
