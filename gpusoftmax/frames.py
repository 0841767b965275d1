"""Data frames: predictions in those of pandas, polars and pyarrow, tables in that of pandas.

Each library is imported by the function that needs it.
"""

import numpy as np


def to_table(columns: dict):
    """Return the pandas DataFrame of some columns, (n_rows,) each.

    Raises
    ------
    ImportError
        There is no pandas.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_frame needs pandas: pip install pandas") from error
    return pd.DataFrame(columns)


def as_frame(values: np.ndarray, library: str, X, classes: np.ndarray):
    """Return predictions as a data frame with a column for each class.

    Parameters
    ----------
    values : array of shape (n_samples, n_classes), or (n_samples,) for logits of the last of two classes
        On the host. The frame of pandas shares its memory.
    library : {"pandas", "polars", "pyarrow"}
    X : array-like of shape (n_samples, n_features)
        What was predicted for, as the user gave it: the index of a pandas frame is kept.
    classes : array of shape (n_classes,)
        Names of the columns: as they are for pandas, as text for polars and pyarrow, which have no other names.

    Returns
    -------
    frame : DataFrame or pyarrow.Table
        A Series named by the last class, or a pyarrow.Array, for values of one dimension.

    Raises
    ------
    ImportError
        There is no such library.
    """
    try:
        return LIBRARIES[library](values, X, classes)
    except ImportError as error:
        raise ImportError(
            f"Predictions are set to be frames of {library}, which is not installed: pip install {library}, or "
            'choose "default" by set_output.'
        ) from error


def _to_pandas(values, X, classes):
    import pandas as pd

    index = X.index if isinstance(X, pd.DataFrame) else None
    if values.ndim == 1:
        return pd.Series(values, index, name=classes[-1], copy=False)
    return pd.DataFrame(values, index, columns=classes, copy=False)


def _to_polars(values, _, classes):
    import polars as pl

    if values.ndim == 1:
        return pl.Series(str(classes[-1]), values)
    return pl.DataFrame(values, schema=[str(name) for name in classes])


def _to_pyarrow(values, _, classes):
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.table(list(values.T), names=[str(name) for name in classes])


LIBRARIES = {"pandas": _to_pandas, "polars": _to_polars, "pyarrow": _to_pyarrow}
