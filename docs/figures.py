"""Draw the figures of these pages: ``python docs/figures.py [FOLDER]``, docs/figures if none is given."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits, make_classification
from sklearn.model_selection import train_test_split

from bench.figures import draw_axes
from gpusoftmax import SoftmaxRegression, calibrate, plots, sweep


def main() -> None:
    """Draw all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("figures")
    folder.mkdir(parents=True, exist_ok=True)
    draw_path(folder)
    draw_models(folder)


def draw_path(folder: Path) -> None:
    """Draw the path of docs/linear-probe.md, from the same data and strengths."""
    X, y = load_digits(return_X_y=True)
    X_train, _, y_train, _ = train_test_split(X.astype(np.float32), y, stratify=y, random_state=0)
    result = sweep(X_train, y_train, Cs=np.logspace(-6, 2, 33), cv=5)
    draw_axes(lambda ax: plots.regularization_path(result, ax), folder, "regularization-path")


def draw_models(folder: Path) -> None:
    """Draw the pictures of docs/guide.md, from the same data and models."""
    X, y = make_classification(5000, 40, n_informative=12, n_classes=5, class_sep=2, random_state=0)
    X_test, y_test = X[1000:], y[1000:]
    clf = SoftmaxRegression(C=10).fit(X[:300], y[:300])
    models = {"as fitted": clf, "calibrated": calibrate(clf, X[300:1000], y[300:1000])}
    probabilities = {name: model.predict_proba(X_test) for name, model in models.items()}
    draw_axes(lambda ax: plots.reliability_diagram(y_test, probabilities, ax), folder, "reliability", (5, 5.4))
    draw_axes(lambda ax: plots.confusion_matrix(y_test, clf.predict(X_test), ax), folder, "confusion", (5, 5))


if __name__ == "__main__":
    main()
