"""The fused pass as a function: loss and gradients of softmax regression, for use in other people's training loops."""

import numpy as np
from sklearn.utils.validation import check_array

from gpusoftmax.backends.choice import get_backend
from gpusoftmax.exceptions import NonFiniteError
from gpusoftmax.sources import ArraySource, compute_dtype
from gpusoftmax.targets import check_class_indices, check_soft_targets


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
        Any real dtype; float32 and float16 compute in float32, others in float64.
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
    X = check_array(X, dtype="numeric", input_name="X")
    dtype = compute_dtype(X.dtype)
    W = check_array(W, dtype=dtype, input_name="W")
    n_rows, n_features = X.shape
    if len(W) != n_features:
        raise ValueError(f"W must have shape (n_features, n_classes) = ({n_features}, …), got {W.shape}.")
    params = np.zeros((n_features + 1, 1, W.shape[1]), dtype)
    params[:-1, 0] = W
    if b is not None:
        b = check_array(b, dtype=dtype, ensure_2d=False, input_name="b")
        if b.shape != W.shape[1:]:
            raise ValueError(f"b must have shape (n_classes,) = {W.shape[1:]}, got {b.shape}.")
        params[-1, 0] = b
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")
    targets = np.asarray(targets)
    if targets.shape not in ((n_rows,), (n_rows, W.shape[1])):
        raise ValueError(
            f"targets must have shape (n_samples,) = ({n_rows},) or (n_samples, n_classes) = ({n_rows}, {W.shape[1]}), "
            f"got {targets.shape}."
        )
    targets = check_soft_targets(targets) if targets.ndim == 2 else check_class_indices(targets, W.shape[1])
    weights = None if sample_weight is None else check_weights(sample_weight, n_rows, dtype)[:, np.newaxis]

    backend = get_backend(device)
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
    sums = backend.fused_pass(source, plan).loss_and_gradient(backend.to_device(params), label_smoothing)
    loss, gradient = map(backend.to_host, sums)
    if not (np.isfinite(loss).all() and np.isfinite(gradient).all()):
        raise NonFiniteError(f"Logits, loss or gradient left the range of {dtype.name}: rescale X, W or the weights.")
    total = n_rows if weights is None else weights.sum(dtype=np.float64)
    gradient /= total
    return float(loss[0] / total), gradient[:-1, 0], gradient[-1, 0] if b is not None else None


def check_weights(sample_weight, n_rows: int, dtype) -> np.ndarray:
    """Return weights (n_rows,), or raise ValueError unless they are finite, non-negative and not all zero."""
    weights = check_array(sample_weight, dtype=dtype, ensure_2d=False, input_name="sample_weight")
    if weights.shape != (n_rows,):
        raise ValueError(f"sample_weight must have shape (n_samples,) = ({n_rows},), got {weights.shape}.")
    if weights.min() < 0:
        raise ValueError(f"sample_weight must not be negative, got a smallest value of {weights.min():.6g}.")
    if not weights.max() > 0:
        raise ValueError("sample_weight is zero for every sample: give at least one a positive weight.")
    return weights
