"""Problems for the CUDA kernels, how to run them, and what the float64 reference says about the answer."""

from dataclasses import dataclass, replace

import mpmath
import numpy as np
from cuda_emulation import device, empty

from gpusoftmax.kernels import launches, reference

LOSS_TOLERANCE = {"float32": 1e-7, "float64": 1e-13}  # relative
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}  # of the largest entry


@dataclass(frozen=True)
class Case:
    """Logits of a block and all that the residual kernel takes with them; every array has the logits' dtype.

    z, direction : (rows, problems, stride); bias, direction_bias : (problems, stride) or None
    labels : (rows,) or None; targets : (rows, classes) or None; weights : (rows,), (rows, 1 or problems) or None
    """

    classes: int
    z: np.ndarray
    bias: np.ndarray | None
    labels: np.ndarray | None
    targets: np.ndarray | None
    weights: np.ndarray | None
    label_smoothing: float
    direction: np.ndarray
    direction_bias: np.ndarray | None

    @property
    def shape(self):
        return len(self.z), self.classes, self.z.shape[1]

    @property
    def dtype(self):
        return self.z.dtype

    def rows(self, part):
        """Return the case of some rows only."""
        names = ("z", "labels", "targets", "weights", "direction")
        return replace(self, **{n: None if getattr(self, n) is None else getattr(self, n)[part] for n in names})

    def logits(self):
        """Return what the kernel sees: the bias is added in its dtype."""
        z = self.z if self.bias is None else self.z + self.bias
        return z[:, :, : self.classes].astype("f8")

    def full_weights(self):
        rows, _, problems = self.shape
        weights = np.ones((rows, 1)) if self.weights is None else self.weights.reshape(rows, -1).astype("f8")
        return np.broadcast_to(weights, (rows, problems))

    def expected(self, mode="GRADIENT"):
        """Return the output, (rows, problems, classes), and each problem's loss, in float64."""
        y = np.exp(reference.log_softmax(self.logits()))
        if mode == "PROBABILITIES":
            return y, None
        if mode == "LOG_PROBABILITIES":
            return reference.log_softmax(self.logits()), None
        if mode == "HESSIAN":
            v = self.direction if self.direction_bias is None else self.direction + self.direction_bias
            v = v[:, :, : self.classes].astype("f8")
            mean = (y * v).sum(axis=-1, keepdims=True)
            return self.full_weights()[:, :, np.newaxis] * y * (v - mean), None
        targets = self.labels if self.targets is None else self.targets.astype("f8")
        smoothing = float(self.dtype.type(self.label_smoothing))
        return reference.residual(self.logits(), targets, self.full_weights(), smoothing)

    def scale(self, mode):
        """Return what the output's errors are measured by where that is not its largest entry.

        A Hessian of probabilities 0 and 1 is 0: its errors are those of s y v.
        """
        if mode != "HESSIAN":
            return None
        y, _ = self.expected("PROBABILITIES")
        return float(np.abs(self.full_weights()[:, :, np.newaxis] * y * self.direction[:, :, : self.classes]).max())


def make_case(rows, classes, problems=1, dtype="f4", *, size=3.0, targets="labels", weights="each", bias=True,
              label_smoothing=0.0, seed=0):  # fmt: skip
    """Return random logits of a given size; pad columns hold numbers that must not count."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    stride = launches.padded(classes, dtype.itemsize)
    shape = {None: None, "shared": (rows,), "column": (rows, 1), "each": (rows, problems)}[weights]

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    z = (size * normal(rows, problems, stride)).astype(dtype)
    z[:, :, classes:] = 1e30  # would be the largest logit
    return Case(
        classes,
        z,
        normal(problems, stride) if bias else None,
        rng.integers(0, classes, rows).astype("i4") if targets == "labels" else None,
        rng.dirichlet(np.full(classes, 0.3), rows).astype(dtype) if targets == "soft" else None,
        None if shape is None else rng.uniform(0.1, 2.0, shape).astype(dtype),
        label_smoothing,
        normal(rows, problems, stride),
        normal(problems, stride) if bias else None,
    )


SURE_TOLERANCE = {"float32": 1e-6, "float64": 2e-14}  # of each entry


def sure_class(classes):
    return classes // 3


def make_sure_case(classes, dtype, targets="labels", rows=3):
    """Return rows one class of which has a probability that rounds to one: log y and y - 1 would both be zero.

    With 2105 classes its thread has it in the middle of a pack and has more packs behind it. Also returns the exact
    losses (rows,) and residuals (rows, classes), from 60 digits.
    """
    lead = 20.0 if np.dtype(dtype) == np.float32 else 50.0
    case = make_case(rows, classes, dtype=dtype, weights="shared", bias=False)
    label = sure_class(classes)
    z = np.full_like(case.z, 0.5)
    z[:, :, label] += lead
    one_hot = np.zeros((rows, classes), case.dtype)
    one_hot[:, label] = 1
    chosen = {"labels": None, "targets": one_hot} if targets == "soft" else {"labels": np.full(rows, label, "i4")}
    case = replace(case, z=z, direction_bias=case.direction[0], **chosen)
    with mpmath.workdps(60):
        others = (classes - 1) * mpmath.exp(-lead)
        loss = float(mpmath.log1p(others))
        at_target, elsewhere = float(-others / (1 + others)), float(mpmath.exp(-lead) / (1 + others))
    residual = np.full(classes, elsewhere)
    residual[label] = at_target
    weights = case.weights.astype("f8")
    return case, (weights * loss, np.outer(weights, residual))


def sure_hessian(case):
    """Return s (y v - y (y . v)) of a sure case of float32, (rows, classes), without cancellation."""
    y = np.exp(-20.0)
    label = sure_class(case.classes)
    v = (case.direction + case.direction_bias)[:, 0, : case.classes].astype("f8")
    difference = v - v[:, label : label + 1]
    moment = y * difference.sum(axis=1, keepdims=True) / (1 + (case.classes - 1) * y)
    hessian = y / (1 + (case.classes - 1) * y) * (difference - moment)
    hessian[:, label] = -moment[:, 0] / (1 + (case.classes - 1) * y)
    return case.full_weights() * hessian


@dataclass(frozen=True)
class Answer:
    """Output with its pads, (rows, problems, stride), or None; tile losses (problems, tiles), or None."""

    output: np.ndarray | None
    tile_loss: np.ndarray | None

    def bits(self):
        return b"".join(np.ascontiguousarray(a).tobytes() for a in (self.output, self.tile_loss) if a is not None)


def solve(kernels, case, mode="GRADIENT", *, out=None, in_place=False, extra_columns=0, by_problem=False):
    """Run the residual kernel on a case.

    Rows of its matrices are `extra_columns` packs longer than needed; `by_problem` stores weights problem by problem.
    """
    rows, classes, problems = case.shape
    z = _matrix(case.z, extra_columns)
    g = None if mode == "LOSS" else z if in_place else _output(case, out, extra_columns)
    has_loss = mode in ("GRADIENT", "LOSS")
    tile_loss = empty((problems, launches.n_tiles(rows))) if has_loss else None
    by_row = launches.needs_row_losses(classes, out or case.dtype)
    kernels.residual(
        z,
        g,
        classes,
        problems,
        mode=mode,
        bias=device(case.bias),
        labels=device(case.labels),
        targets=device(case.targets),
        label_smoothing=case.label_smoothing,
        weights=device(case.weights.T).T if by_problem else device(case.weights),
        tile_loss=tile_loss,
        row_loss=empty((problems, rows)) if has_loss and by_row else None,
        direction=_matrix(case.direction, extra_columns) if mode == "HESSIAN" else None,
        direction_bias=device(case.direction_bias) if mode == "HESSIAN" else None,
    )
    output = None if g is None else np.asarray(g).reshape(rows, problems, -1).copy()
    return Answer(output, None if tile_loss is None else np.asarray(tile_loss))


def _matrix(array, extra_columns):
    wide = device(array.reshape(len(array), -1))
    if not extra_columns:
        return wide
    columns = wide.shape[1]
    roomy = device(np.full((len(array), columns + extra_columns * 16 // array.itemsize), np.nan, array.dtype))
    roomy[:, :columns] = wide
    return roomy[:, :columns]


def _output(case, out, extra_columns):
    rows, classes, problems = case.shape
    dtype = case.dtype if out is None else np.dtype("u2" if out == "bfloat16" else out)
    columns = problems * launches.padded(classes, dtype.itemsize)
    whole = empty((rows, columns + extra_columns * 16 // dtype.itemsize), dtype)
    if not extra_columns:
        return whole
    view = whole[:, :columns]
    view.valid = whole.valid[:, :columns]
    return view


def errors(case, answer, mode="GRADIENT"):
    """Return the error relative to the largest entry (infinite where a pad is not 0) and the losses' relative error."""
    output, loss = case.expected(mode)
    error = loss_error = 0.0
    if answer.output is not None:
        error = largest_error(answer.output[:, :, : case.classes], output, case.scale(mode))
        if answer.output[:, :, case.classes :].any():
            error = np.inf
    if answer.tile_loss is not None:
        loss_error = relative_error(answer.tile_loss.sum(axis=1), loss)
    return error, loss_error


def largest_error(actual, expected, scale=None):
    """Return max |actual - expected| / scale, max |expected| by default; infinite where something is not finite."""
    actual = np.asarray(actual, "f8")
    if not np.isfinite(actual).all():
        return np.inf
    return float(np.abs(actual - expected).max() / (scale or np.abs(expected).max() or 1.0))


def relative_error(actual, expected):
    """Return the largest |actual - expected| / |expected|; where the expected is 0, the actual itself."""
    error = np.abs(np.asarray(actual, "f8") - expected) / np.where(expected == 0, 1, np.abs(expected))
    return float(error.max()) if np.isfinite(error).all() else np.inf


def assert_right(case, answer, mode="GRADIENT"):
    """Assert that an answer is as near to the reference as its dtype allows."""
    error, loss_error = errors(case, answer, mode)
    assert error <= TOLERANCE[case.dtype.name]
    assert loss_error <= LOSS_TOLERANCE[case.dtype.name]


# ---------------------------------------------------------------- fused_small


@dataclass(frozen=True)
class FusedCase:
    """X (rows, features), params (features + 1, problems, classes), targets and weights of the whole pass."""

    X: np.ndarray
    params: np.ndarray
    labels: np.ndarray | None
    targets: np.ndarray | None
    weights: np.ndarray | None
    label_smoothing: float
    has_intercept: bool

    def expected(self):
        """Return each problem's loss and gradient in float64."""
        rows, problems = len(self.X), self.params.shape[1]
        params = self.params.astype("f8")
        params[-1] *= self.has_intercept
        weights = np.ones((rows, 1)) if self.weights is None else self.weights.reshape(rows, -1).astype("f8")
        weights = np.broadcast_to(weights, (rows, problems))
        targets = self.labels if self.targets is None else self.targets.astype("f8")
        smoothing = float(self.X.dtype.type(self.label_smoothing))
        return reference.loss_and_gradient(self.X.astype("f8"), targets, weights, params, smoothing)


def make_fused_case(rows, features, classes, problems=1, dtype="f4", *, targets="labels", weights="each",
                    label_smoothing=0.0, has_intercept=True, spread=2.0, seed=0):  # fmt: skip
    """Return a random problem whose logits have a size of about `spread`."""
    rng = np.random.default_rng(seed)
    shape = {None: None, "shared": (rows,), "column": (rows, 1), "each": (rows, problems)}[weights]
    return FusedCase(
        rng.normal(size=(rows, features)).astype(dtype),
        (rng.normal(size=(features + 1, problems, classes)) * spread / features**0.5).astype(dtype),
        rng.integers(0, classes, rows).astype("i4") if targets == "labels" else None,
        rng.dirichlet(np.full(classes, 0.3), rows).astype(dtype) if targets == "soft" else None,
        None if shape is None else rng.uniform(0.1, 2.0, shape).astype(dtype),
        label_smoothing,
        has_intercept,
    )


def make_sure_fused_case(classes, dtype):
    """Return the whole pass over rows of 1 whose logits are those of a sure case; also its exact loss and residual."""
    sure, (loss, residual) = make_sure_case(classes, dtype)
    params = np.zeros((2, 1, classes), sure.dtype)
    params[0] = sure.z[0, :, :classes]
    case = FusedCase(np.ones((3, 1), sure.dtype), params, sure.labels, None, sure.weights, 0.0, has_intercept=False)
    return case, (loss.sum(), residual.sum(axis=0))


def solve_fused(kernels, case, *, shared_limit=launches.DEFAULT_SHARED_BYTES, X=None, by_problem=False):
    """Return each problem's loss, the tile losses and the gradient, as the fused kernel and the sums give them."""
    X = device(case.X) if X is None else X
    n_rows, features = X.shape
    _, problems, classes = case.params.shape
    launch = launches.fused_small(n_rows, features, classes, problems, case.X.dtype, shared_limit)
    parts = empty((launch.grid, *case.params.shape), case.X.dtype)
    tile_loss, gradient = empty((problems, launches.n_tiles(n_rows))), empty(case.params.shape, case.X.dtype)
    loss = empty((problems,))
    kernels.fused_small(
        X,
        device(case.params),
        parts,
        tile_loss,
        labels=device(case.labels),
        targets=device(case.targets),
        label_smoothing=case.label_smoothing,
        weights=device(case.weights.T).T if by_problem else device(case.weights),
        has_intercept=case.has_intercept,
        shared_limit=shared_limit,
    )
    kernels.sum_parts(parts, gradient)
    kernels.sum_losses(tile_loss, loss)
    return np.asarray(loss), np.asarray(tile_loss), np.asarray(gradient)


def assert_fused_right(case, loss, tile_loss, gradient):
    """Assert that the fused pass agrees with the reference."""
    expected_loss, expected_gradient = case.expected()
    name = case.X.dtype.name
    assert largest_error(gradient, expected_gradient) <= TOLERANCE[name]
    # The logits are sums in the kernel's dtype: their rounding is part of the losses here.
    assert relative_error(loss, expected_loss) <= 5 * LOSS_TOLERANCE[name]
    assert relative_error(tile_loss.sum(axis=1), loss) <= 1e-14
