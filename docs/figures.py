"""Draw the figures of these pages: ``python docs/figures.py [FOLDER]``, docs/figures if none is given."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from bench.figures import draw_axes
from gpusoftmax import plots, sweep


def main() -> None:
    """Draw the path of docs/linear-probe.md, from the same data and strengths."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("figures")
    folder.mkdir(parents=True, exist_ok=True)
    X, y = load_digits(return_X_y=True)
    X_train, _, y_train, _ = train_test_split(X.astype(np.float32), y, stratify=y, random_state=0)
    result = sweep(X_train, y_train, Cs=np.logspace(-6, 2, 33), cv=5)
    draw_axes(lambda ax: plots.regularization_path(result, ax), folder, "regularization-path")


if __name__ == "__main__":
    main()
