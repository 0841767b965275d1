"""A data file read for a model that is there already: features matched by name, or by their number."""

from pathlib import Path

import numpy as np

from gpusoftmax.estimator import SoftmaxRegression
from gpusoftmax.exceptions import DataError
from gpusoftmax.held_out import places_of
from gpusoftmax.tables import SVMLIGHT, Selection, Table, read_table, suffix_of


def read_for(model: SoftmaxRegression, path: Path, selection: Selection) -> Table:
    """Read a file whose features are those of a model, in the model's order.

    Raises
    ------
    DataError
        A feature is missing, or there is another number of them.
    """
    names = getattr(model, "feature_names_in_", None)
    names = None if names is None else names.tolist()
    table = read_table(path, selection, feature_names=names, n_features=model.n_features_in_)
    n_features = table.X.shape[1]
    if n_features != model.n_features_in_:
        given = f" ({', '.join(table.feature_names[:12])})" if table.feature_names else ""
        advice = "leave out columns that are none with --drop or --target"
        if suffix_of(path) in SVMLIGHT:
            advice = "give --zero-based only if its indices start at 0"
        raise DataError(
            f"{path} has {n_features} features{given} and the model {model.n_features_in_}: {advice}, or take the "
            "model that was fitted to such data."
        )
    return table


def as_labels_of(model: SoftmaxRegression, y: np.ndarray) -> np.ndarray:
    """Return labels of a file as the model's: those of some rows alone may look like numbers, or like text.

    Raises
    ------
    ValueError
        Text that is none of the model's labels.
    """
    classes = model.classes_
    if all(isinstance(name, str) for name in classes.tolist()):
        return y.astype(str)
    if classes.dtype.kind == "b" and y.dtype.kind in "OU":
        written = np.char.capitalize(y.astype(str))  # pyarrow writes true, others TRUE or True
        y = np.where(np.isin(written, ["True", "False"]), written, y)
    return classes[places_of(y, classes.astype(str))] if y.dtype.kind in "OU" else y
