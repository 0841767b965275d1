"""The fused pass as a function: loss and gradients of softmax regression, for use in other people's training loops."""

from collections.abc import Callable
from functools import partial

import numpy as np
from sklearn.utils.validation import check_array

from gpusoftmax.backends.base import Backend
from gpusoftmax.backends.choice import get_backend
from gpusoftmax.exceptions import NonFiniteError
from gpusoftmax.interop import CHECKED_NUMBERS, Home, receive, receive_beside, validate
from gpusoftmax.sources import ArraySource, compute_dtype
from gpusoftmax.targets import BLOCK_ROWS, check_class_indices, check_soft_targets


def loss_and_gradient(
    X, targets, W, b=None, *, sample_weight=None, label_smoothing=0.0, device="auto", memory_budget=None
):
    """Return the weighted mean cross-entropy of ``softmax(X W + b)`` and its gradients, in one pass over X.

    With G = s ⊙ (softmax(X W + b) - T) and S = Σ s::

        loss = -1/S Σ_i s_i Σ_k t_ik log y_ik      grad_W = XᵀG / S      grad_b = 1ᵀG / S

    No array of shape (n_samples, n_classes) is made, and X is not copied. Checking that X is finite reads it a second
    time; ``sklearn.config_context(assume_finite=True)`` leaves that out.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        NumPy's, CuPy's or what speaks DLPack, on the host or a CUDA device, where all is computed and given back. Any
        real dtype; float32 and float16 compute in float32, others in float64.
    targets : array of shape (n_samples,) or (n_samples, n_classes)
        Class indices in [0, n_classes), or soft targets whose rows sum to one.
    W : array of shape (n_features, n_classes)
    b : array of shape (n_classes,), or None for no intercept
    sample_weight : array of shape (n_samples,), or None for ones
    label_smoothing : float in [0, 1)
    device : {"auto", "cpu", "cuda"}
    memory_budget : int or None
        Most bytes of workspace; None for what runs best.

    Returns
    -------
    loss : float
    grad_W : array of shape (n_features, n_classes), compute dtype
        Where X lives: NumPy's, CuPy's, or what else X was.
    grad_b : array of shape (n_classes,), compute dtype, or None without `b`

    Raises
    ------
    ValueError
        Shapes disagree, values are not finite, targets or weights are out of range.
    NonFiniteError
        The logits, the loss or the gradient overflow.
    WorkspaceError
        `memory_budget` is too small; the message names one that fits.

    Examples
    --------
    >>> import numpy as np
    >>> import gpusoftmax as gs
    >>> X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> loss, grad_W, grad_b = gs.loss_and_gradient(X, np.array([0, 1, 2]), np.zeros((2, 3)), np.zeros(3))
    >>> loss  # log 3: at W = 0 every class is as likely
    1.0986...
    >>> grad_W
    array([[-0.111...,  0.222..., -0.111...],
           [ 0.222..., -0.111..., -0.111...]])
    """
    X, home = receive(X)
    backend = get_backend(device, home.cuda_device)
    with backend.active():
        X = validate(X, home, partial(check_array, dtype="numeric", input_name="X"), input_name="X")
        dtype = compute_dtype(X.dtype)
        others = {"W": W, "b": b, "sample_weight": sample_weight}
        W, b, weights = (_beside(array, home, dtype, name) for name, array in others.items())
        n_rows, n_features = X.shape
        if W.ndim != 2 or len(W) != n_features:
            raise ValueError(f"W must have shape (n_features, n_classes) = ({n_features}, …), got {W.shape}.")
        if b is not None and b.shape != W.shape[1:]:
            raise ValueError(f"b must have shape (n_classes,) = {W.shape[1:]}, got {b.shape}.")
        params = backend.xp.zeros((n_features + 1, 1, W.shape[1]), dtype)
        params[:-1, 0] = backend.to_device(W, dtype)
        if b is not None:
            params[-1, 0] = backend.to_device(b, dtype)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")
        targets = _check_targets(targets, home, n_rows, W.shape[1], backend)
        total = n_rows if weights is None else check_weights(weights, n_rows, backend.to_host)
        if weights is not None:
            weights = backend.to_device(weights, dtype)[:, np.newaxis]

        source = backend.place(ArraySource(X, targets, weights, dtype))
        plan = backend.facts().plan_pass(
            n_rows,
            n_features,
            1,
            W.shape[1],
            dtype,
            is_soft=targets.ndim == 2,
            is_direct=source.is_direct,
            budget_bytes=memory_budget,
        )
        loss, gradient = backend.fused_pass(source, plan).loss_and_gradient(params, label_smoothing)
        is_finite = backend.xp.isfinite(gradient).all().astype(np.float64)
        loss, is_finite = backend.to_host(backend.xp.stack([loss[0], is_finite]))  # the one wait for a device
        if not (np.isfinite(loss) and is_finite):
            raise NonFiniteError(
                f"Logits, loss or gradient left the range of {dtype.name}: rescale X, W or the weights."
            )
        gradient /= total
        grad_b = None if b is None else home.send(gradient[-1, 0])
        return float(loss / total), home.send(gradient[:-1, 0]), grad_b


def _beside(array, home: Home, dtype: np.dtype, name: str):
    """Return an argument that goes with X as an array of finite numbers, on X's CUDA device or the host, or None."""
    if array is None:
        return None
    array, own = receive_beside(array, home, name)
    return validate(
        array, own, partial(check_array, dtype=dtype, ensure_2d=name == "W", input_name=name), input_name=name
    )


def _check_targets(targets, home: Home, n_rows: int, n_classes: int, backend: Backend):
    """Return class indices or soft targets, on X's CUDA device if they are there."""
    targets, own = receive_beside(targets, home, "targets")
    targets = targets if own.is_cuda else np.asarray(targets)
    if targets.shape not in ((n_rows,), (n_rows, n_classes)):
        raise ValueError(
            f"targets must have shape (n_samples,) = ({n_rows},) or (n_samples, n_classes) = ({n_rows}, {n_classes}), "
            f"got {targets.shape}."
        )
    if targets.ndim == 1:
        return check_class_indices(targets, n_classes, backend.to_host)
    return check_soft_targets(targets, backend.to_host, CHECKED_NUMBERS if own.is_cuda else BLOCK_ROWS)


def check_weights(weights, n_rows: int, to_host: Callable = np.asarray) -> float:
    """Return the sum of finite weights, or raise ValueError unless they are (n_rows,), non-negative, not all zero."""
    if weights.shape != (n_rows,):
        raise ValueError(f"sample_weight must have shape (n_samples,) = ({n_rows},), got {weights.shape}.")
    smallest = to_host(weights.min())
    if smallest < 0:
        raise ValueError(f"sample_weight must not be negative, got a smallest value of {smallest:.6g}.")
    total = float(to_host(weights.sum(dtype=np.float64)))
    if not total > 0:
        raise ValueError("sample_weight is zero for every sample: give at least one a positive weight.")
    return total
