"""Fitted models as those of other libraries, with the same predictions: scikit-learn, ONNX and PyTorch.

Each library is imported by the one function that needs it.
"""

import json
from importlib.metadata import version
from typing import Any

import numpy as np

from gpusoftmax.atomic_file import write_atomically
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.persistence import plain_model

SHARED_WITH_SKLEARN = (
    *("C", "fit_intercept", "class_weight", "tol", "max_iter"),
    *("warm_start", "random_state", "verbose"),
)
OPSET = 13  # of 2020, the first in which all operators that we use mean what they do today
IR_VERSION = 7  # of the same release


def to_sklearn(model):
    """Return a fitted ``sklearn.linear_model.LogisticRegression`` with the same labels and probabilities.

    It shares no memory with the model and needs no gpusoftmax. Probabilities differ by rounding. Label smoothing is no
    parameter of it, though its coefficients have it in them. Where the model keeps a centre of its features, the
    coefficients become float64 for the digits that the original features need, and so do the predictions.

    Parameters
    ----------
    model : SoftmaxRegression or SoftmaxRegressionCV
        Of the latter, the chosen model.

    Returns
    -------
    model : LogisticRegression
        With `C`, `class_weight`, `fit_intercept`, `tol`, `max_iter`, `warm_start`, `random_state` and `verbose` of the
        model, its classes and the names of its features.

    Raises
    ------
    NotFittedError, TypeError
        It is no fitted model.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> import gpusoftmax as gs
    >>> X, y = load_iris(return_X_y=True)
    >>> gs.to_sklearn(gs.SoftmaxRegression(C=0.1).fit(X, y))
    LogisticRegression(C=0.1, max_iter=1000)
    """
    from sklearn.linear_model import LogisticRegression

    model = plain_model(model)
    exported = LogisticRegression(**{name: getattr(model, name) for name in SHARED_WITH_SKLEARN})
    exported.coef_ = np.array(model.coef_, _dtype(model))
    for name in ("intercept_", "classes_", "n_iter_", "feature_names_in_"):
        if hasattr(model, name):
            setattr(exported, name, np.array(getattr(model, name)))
    exported.n_features_in_ = model.n_features_in_
    return exported


def to_onnx(model, path=None):
    """Return the model as an ONNX graph of standard operators, and write it to a file if there is a path.

    Its input ``X`` (n_samples, n_features) has the dtype of `coef_`; its outputs are ``label`` (n_samples,), the labels
    themselves, and ``probabilities`` (n_samples, n_classes), of X's dtype. A centre of the features is subtracted in
    float64 before anything is rounded. The names of the features are in the metadata, as JSON.

    Parameters
    ----------
    model : SoftmaxRegression or SoftmaxRegressionCV
        Of the latter, the chosen model.
    path : str or path-like, default=None

    Returns
    -------
    graph : onnx.ModelProto
        Of opset 13.

    Raises
    ------
    NotFittedError, TypeError
        It is no fitted model, or its labels are neither numbers nor strings.
    ImportError
        There is no onnx.
    OSError
        The file could not be written; what was there is unchanged.
    """
    try:
        from onnx import helper
    except ImportError as error:
        raise ImportError("to_onnx needs onnx: pip install 'gpusoftmax[onnx]'") from error
    model = plain_model(model)
    exported = helper.make_model(
        _onnx_graph(model),
        producer_name="gpusoftmax",
        producer_version=version("gpusoftmax"),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    if hasattr(model, "feature_names_in_"):
        helper.set_model_props(exported, {"feature_names": json.dumps(model.feature_names_in_.tolist())})
    if path is not None:
        write_atomically(path, exported.SerializeToString(deterministic=True))
    return exported


def to_torch(model) -> dict[str, Any]:
    """Return the model as the state of a ``torch.nn.Linear``: ``{"weight": …, "bias": …}``.

    The weight is (n_classes, n_features), the bias (n_classes,), and the softmax of the layer's output are the
    probabilities. Two classes are two rows too, minus and plus half of `coef_`. The dtype is that of `coef_`, but
    float64 where the model keeps a centre of its features: their large offsets would lose the digits that matter.

    Parameters
    ----------
    model : SoftmaxRegression or SoftmaxRegressionCV
        Of the latter, the chosen model.

    Returns
    -------
    state : dict of torch.Tensor
        On the CPU, sharing no memory with the model.

    Raises
    ------
    NotFittedError, TypeError
        It is no fitted model.
    ImportError
        There is no PyTorch.

    Examples
    --------
    >>> state = gs.to_torch(clf)  # doctest: +SKIP
    >>> layer = torch.nn.Linear(clf.n_features_in_, len(clf.classes_), dtype=state["weight"].dtype)  # doctest: +SKIP
    >>> layer.load_state_dict(state)  # doctest: +SKIP
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("to_torch needs PyTorch: pip install torch") from error
    model = plain_model(model)
    weight, bias = _two_or_more_rows(model)
    dtype = _dtype(model)
    return {"weight": torch.tensor(weight.astype(dtype)), "bias": torch.tensor(bias.astype(dtype))}


def _onnx_graph(model: SoftmaxRegression):
    """Return the graph from X to label and probabilities."""
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = _two_or_more_rows(model)
    labels, dtype, center, features = _labels(model.classes_), model.coef_.dtype, model._center, "X"
    number = helper.np_dtype_to_tensor_dtype(dtype)
    constants, nodes = {"classes": labels}, []
    if center is not None:
        constants["center"], features = center, "centred"
        bias = bias + weight @ center
        nodes = [
            helper.make_node("Cast", ["X"], ["X_float64"], to=TensorProto.DOUBLE),
            helper.make_node("Sub", ["X_float64", "center"], ["difference"]),
            helper.make_node("Cast", ["difference"], ["centred"], to=number),
        ]
    constants |= {"weight": weight.astype(dtype), "bias": bias.astype(dtype)}
    nodes += [
        helper.make_node("Gemm", [features, "weight", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "index"], ["label"], axis=0),
    ]
    info = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "softmax_regression",
        [info("X", number, ["n_samples", model.n_features_in_])],
        [
            info("label", helper.np_dtype_to_tensor_dtype(labels.dtype), ["n_samples"]),
            info("probabilities", number, ["n_samples", len(labels)]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )


def _two_or_more_rows(model: SoftmaxRegression) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients (n_classes, n_features) and intercepts (n_classes,) in float64."""
    params = model._params(model.coef_)[:, 0]
    return params[:-1].T, params[-1]


def _dtype(model: SoftmaxRegression) -> np.dtype:
    """Return in which dtype coefficients give the logits of features that are not centred."""
    return model.coef_.dtype if model._center is None else np.dtype(np.float64)


def _labels(classes: np.ndarray) -> np.ndarray:
    """Return labels in a dtype that ONNX has: a numeric one, or object for strings."""
    if all(isinstance(name, str) for name in classes.tolist()):  # NumPy's own text loses NUL at its end
        return classes.astype(object)
    if classes.dtype.kind == "O":
        classes = np.array(classes.tolist())
    if classes.dtype.kind in "biuf" and classes.dtype.itemsize <= 8:
        return classes.astype(classes.dtype.newbyteorder("="), copy=False)
    raise TypeError(
        f"ONNX has no labels of dtype {classes.dtype}, only booleans, numbers and strings: fit with y as one of these, "
        "for instance y.astype(str)."
    )
