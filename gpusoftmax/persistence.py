"""Models on disk: what is kept of a fitted estimator, and what a file must hold to become one again.

`model_file` knows the container; here is what its tensors and metadata mean. What is about to be written passes the
same checks as what was read, so that what can be saved can be loaded.
"""

import math
import re
from copy import copy
from importlib.metadata import version
from reprlib import repr as shown  # in a few words, however large or deep
from types import NoneType
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpusoftmax.atomic_file import write_atomically
from gpusoftmax.cross_validation import SoftmaxRegressionCV
from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.exceptions import ModelFileError
from gpusoftmax.model_file import pack, unpack
from gpusoftmax.solvers.base import Status

# What JSON holds exactly, by the kind of a dtype that labels may have; "O" are Python objects.
LABEL_DTYPES = re.compile(r"\|b1|\|[iu]1|<[iu][248]|<f[248]|<U[1-9]\d{0,8}|\|O")
LABEL_TYPES = {"b": (bool,), "i": (int,), "u": (int,), "f": (float,), "U": (str,), "O": (bool, int, float, str)}
LABELS = "booleans, integers, finite floats or strings"
FREE_LABEL_BYTES = 1 << 20  # that labels padded to the longest may take however small the coefficients
NUMBERS_OF_FIT = ("objective", "gradient_norm", "n_passes", "temperature")
KEPT = ("coef_", "intercept_", "classes_", "_center", "n_features_in_", "feature_names_in_", "status_")


def save_model(model, path) -> None:
    """Write a fitted model to a safetensors file: numbers and text, nothing that could be run.

    At every moment there is the old file or the new one under its name. The guide says what is in it.

    Parameters
    ----------
    model : SoftmaxRegression or SoftmaxRegressionCV
        Of the latter its chosen model is kept, as a `SoftmaxRegression` with ``C=C_``; scores and paths are for pickle.
        Arrays of other libraries and devices become NumPy's.
    path : str or path-like

    Raises
    ------
    NotFittedError
    TypeError
        It is no such model.
    ModelFileError
        Something would not come back as it is: a parameter, such as a RandomState; labels other than integers,
        booleans, floats and strings; coefficients that are not finite. Nothing was written.
    OSError
        It could not be written; what was there is unchanged.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from sklearn.datasets import load_iris
    >>> import gpusoftmax as gs
    >>> X, y = load_iris(return_X_y=True)
    >>> with TemporaryDirectory() as folder:
    ...     gs.save_model(gs.SoftmaxRegression().fit(X, y), f"{folder}/iris.safetensors")
    ...     gs.load_model(f"{folder}/iris.safetensors").predict(X[:2])
    array([0, 0])
    """
    model = plain_model(model)
    try:
        tensors, metadata = _describe(model)
        _restore(tensors, metadata)
        parts = pack(tensors, metadata)
    except ModelFileError as error:
        raise ModelFileError(f"The model cannot be saved to {path}: {error}.") from error
    write_atomically(path, *parts)


def load_model(path) -> SoftmaxRegression:
    """Return the model that `save_model` wrote; its predictions are the same bits. Nothing of a file is run.

    The SHA-256 in a file tells damage, not who wrote it. Beside the text of its header, at most twice the size of the
    file is allocated.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    model : SoftmaxRegression
        Fitted, on NumPy arrays. Its `device` is the one saved: ``set_params(device="auto")`` leaves that to the data.

    Raises
    ------
    ModelFileError
        The file is damaged, of a newer format, or holds no model.
    OSError
        It cannot be read.
    """
    try:
        return _restore(*unpack(path))
    except ModelFileError as error:
        raise ModelFileError(f"{path} cannot be loaded: {error}.") from error


def plain_model(model) -> SoftmaxRegression:
    """Return a fitted model as a `SoftmaxRegression` on NumPy arrays: of a `SoftmaxRegressionCV`, the chosen one.

    Raises
    ------
    NotFittedError
    TypeError
        It is neither.
    """
    if type(model) not in (SoftmaxRegression, SoftmaxRegressionCV):
        raise TypeError(f"Expected a SoftmaxRegression or a SoftmaxRegressionCV, got {type(model).__name__}.")
    check_is_fitted(model)
    model = copy(model)  # copies hold NumPy arrays
    if type(model) is SoftmaxRegression:
        return model
    given = model.get_params(deep=False) | {"C": model.C_}
    chosen = SoftmaxRegression(**{name: given[name] for name in SoftmaxRegression().get_params() if name in given})
    for name in (*KEPT, *(f"{name}_" for name in NUMBERS_OF_FIT)):  # not n_iter_: that of the folds
        if hasattr(model, name):
            setattr(chosen, name, getattr(model, name))
    return chosen


def _describe(model) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors and the metadata of a fitted model."""
    tensors = {"coef": model.coef_, "intercept": model.intercept_}
    if model._center is not None:
        tensors["center"] = model._center
    dtype = model.classes_.dtype
    names = getattr(model, "feature_names_in_", None)
    status = model.status_
    return tensors, {
        "library_version": version("gpusoftmax"),
        "estimator": "SoftmaxRegression",
        "parameters": {name: _to_json(value, name) for name, value in model.get_params(deep=False).items()},
        "classes": {"dtype": dtype.newbyteorder("<").str, "labels": model.classes_.tolist()},
        "feature_names": None if names is None else names.tolist(),
        "training": {
            "status": None if status is None else status.name,
            "n_iter": int(model.n_iter_[0]) if hasattr(model, "n_iter_") else None,
            **{name: _to_json(getattr(model, f"{name}_", None), name) for name in NUMBERS_OF_FIT},
            "dtype": model.coef_.dtype.name,
            "n_features": int(model.n_features_in_),
        },
    }


def _restore(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> SoftmaxRegression:
    """Return the model of tensors and metadata that are not to be trusted."""
    if _entry(metadata, "estimator", str) != "SoftmaxRegression":
        raise ModelFileError(f"it holds a {shown(metadata['estimator'])}, not a SoftmaxRegression")
    model = _unfitted(_entry(metadata, "parameters", dict), metadata.get("library_version"))
    classes = _classes(_entry(metadata, "classes", dict), sum(tensor.nbytes for tensor in tensors.values()))
    training = _entry(metadata, "training", dict)
    _check_tensors(tensors, len(classes), _entry(training, "n_features", int), _entry(training, "dtype", str))
    model.coef_, model.intercept_, model._center = tensors["coef"], tensors["intercept"], tensors.get("center")
    model.classes_ = classes
    model.n_features_in_ = training["n_features"]
    names = _entry(metadata, "feature_names", list, NoneType)
    if names is not None:
        if len(names) != model.n_features_in_ or not all(type(name) is str for name in names):
            raise ModelFileError(f"its feature_names are not {model.n_features_in_} strings")
        model.feature_names_in_ = np.array(names, object)
    _restore_training(model, training)
    return model


def _unfitted(parameters: dict[str, Any], written_by) -> SoftmaxRegression:
    """Return an estimator with these parameters, and by default those that an older version did not have."""
    unknown = sorted(parameters.keys() - SoftmaxRegression().get_params().keys())
    if unknown:
        raise ModelFileError(
            f"it has parameters that are unknown here: {shown(unknown)}. gpusoftmax {shown(written_by)} wrote it and "
            f"this is {version('gpusoftmax')}: update gpusoftmax"
        )
    model = SoftmaxRegression(**{name: _from_json(value) for name, value in parameters.items()})
    try:
        model._validate_params()
    except ValueError as error:
        raise ModelFileError(str(error).rstrip(".")) from error
    return model


def _restore_training(model, training: dict[str, Any]) -> None:
    """Set what is known of the fit."""
    status = _entry(training, "status", str, NoneType)
    if status is not None and status not in Status.__members__:
        raise ModelFileError(f"its status is {shown(status)}, expected one of {', '.join(Status.__members__)}")
    model.status_ = None if status is None else Status[status]
    n_iter = _entry(training, "n_iter", int, NoneType)
    if n_iter is not None:
        if not 0 <= n_iter < 1 << 31:
            raise ModelFileError(f"its n_iter is {n_iter}")
        model.n_iter_ = np.array([n_iter], np.int32)
    for name in NUMBERS_OF_FIT:
        value = _from_json(training.get(name))
        if type(value) not in (float, NoneType):
            raise ModelFileError(f"its {name} is {shown(value)}, expected a float")
        setattr(model, f"{name}_", 1.0 if value is None and name == "temperature" else value)


def _check_tensors(tensors: dict[str, np.ndarray], n_classes: int, n_features: int, dtype: str) -> None:
    """Raise unless there are the tensors of a model with so many classes, and all their numbers are finite."""
    n_rows = 1 if n_classes == 2 else n_classes
    expected = {  # shape and dtypes
        "coef": ((n_rows, n_features), {dtype} & {"float32", "float64"}),
        "intercept": ((n_rows,), {dtype, "float64"}),
        "center": ((n_features,), {"float64"}),
    }
    if tensors.keys() | {"center"} != expected.keys():
        raise ModelFileError(f"its tensors are {', '.join(sorted(tensors))}; expected coef, intercept and maybe center")
    for name in sorted(tensors):
        tensor, (shape, dtypes) = tensors[name], expected[name]
        if tensor.shape != shape or tensor.dtype.name not in dtypes:
            raise ModelFileError(
                f"its {name} is {tensor.dtype.name} of shape {tensor.shape}; {n_classes} classes and {n_features} "
                f"features of {dtype} want {' or '.join(sorted(dtypes)) or 'float32 or float64'} of shape {shape}"
            )
        if not np.isfinite(tensor).all():
            raise ModelFileError(f"its {name} holds NaN or infinite numbers")


def _classes(record: dict[str, Any], n_other_bytes: int) -> np.ndarray:
    """Return the labels: distinct, finite, at least two."""
    name, labels = _entry(record, "dtype", str), _entry(record, "labels", list)
    if not LABEL_DTYPES.fullmatch(name):
        raise ModelFileError(
            f"its labels are of dtype {shown(name)}, and labels must be {LABELS}: fit with y as one of "
            "these, for instance y.astype(str)"
        )
    dtype = np.dtype(name)
    if len(labels) * dtype.itemsize > n_other_bytes + FREE_LABEL_BYTES and dtype.kind == "U":
        raise ModelFileError(
            f"its {len(labels):,} labels would take {len(labels) * dtype.itemsize:,} bytes when padded to the longest, "
            "more than the coefficients: fit with y.astype(object)"
        )
    types = LABEL_TYPES[dtype.kind]
    for label in labels:
        if type(label) not in types or (type(label) is float and not math.isfinite(label)):
            raise ModelFileError(
                f"among its labels of dtype {shown(name)} is {shown(label)}, and labels must be {LABELS}"
            )
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ModelFileError(f"its {len(labels)} labels are not two or more different ones")
    with np.errstate(over="ignore"):
        try:
            classes = np.array(labels, dtype)
        except OverflowError as error:
            raise ModelFileError(f"its labels do not fit dtype {shown(name)}") from error
    if classes.tolist() != labels:
        raise ModelFileError(f"its labels do not fit dtype {shown(name)}")
    return classes


def _entry(record: dict[str, Any], name: str, *types: type) -> Any:
    """Return an entry that must have one of these types."""
    value = record.get(name)
    if type(value) not in types:
        expected = " or ".join("null" if each is NoneType else each.__name__ for each in types)
        raise ModelFileError(f"its {name} is {shown(value)}, expected {expected}")
    return value


def _to_json(value, name: str) -> Any:
    """Return a parameter as JSON: a scalar, or a dict of scalars as a marked object, since its keys may be no text."""
    if isinstance(value, dict):
        return {"dict": [[_scalar_to_json(key, name), _scalar_to_json(each, name)] for key, each in value.items()]}
    return _scalar_to_json(value, name)


def _scalar_to_json(value, name: str) -> Any:
    """Return a scalar as JSON, of floats that JSON lacks a marked object."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) not in (bool, int, float, str, NoneType):
        raise ModelFileError(
            f"its parameter {name} holds a {type(value).__name__}, and only numbers, strings, None and dicts of these "
            f"are kept: change it by set_params({name}=…), which leaves the fit as it is"
        )
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value) -> Any:
    """Return what `_to_json` was given."""
    match value:
        case {"dict": [*pairs]} if all(type(pair) is list and len(pair) == 2 for pair in pairs):
            return {_scalar_from_json(key): _scalar_from_json(each) for key, each in pairs}
    return _scalar_from_json(value)


def _scalar_from_json(value) -> Any:
    """Return what `_scalar_to_json` was given."""
    match value:
        case {"float": "nan" | "inf" | "-inf" as name}:
            return float(name)
        case bool() | int() | float() | str() | None:
            return value
    raise ModelFileError(f"one of its parameters is {shown(value)}, which save_model does not write")
