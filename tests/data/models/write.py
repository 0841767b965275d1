"""Write the models of the current format, for every later version to load: ``python tests/data/models/write.py``.

Files of a format that was published are never written again: this refuses to touch a folder that is there.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from gpusoftmax import SoftmaxRegression, SoftmaxRegressionCV, save_model
from gpusoftmax.model_file import FORMAT_VERSION

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6))
Y = (3 * X @ RNG.normal(size=(6, 4)) + RNG.gumbel(size=(200, 4))).argmax(axis=1)
MANY = np.arange(200) % 60
NAMES = np.array(["ash", "birch", "cedar", "древо 樹"])
FRAME = pd.DataFrame(X, columns=["height", "girth, m", "leaf \N{MULTIPLICATION SIGN} 2", "d", "e", "f"])
WEIGHTED = SoftmaxRegression(C=np.inf, class_weight={0: 1.0, 1: 2, 2: 0.5, 3: 1.0}, tol=1e-2, random_state=3)

MODELS = {  # estimator, X, y
    "two-classes": (SoftmaxRegression(), X, Y % 2),
    "two-classes-float32-bool": (SoftmaxRegression(), X.astype(np.float32), Y > 1),
    "many-classes": (SoftmaxRegression(C=10.0), X, MANY),
    "text-labels": (SoftmaxRegression(), X, NAMES[Y]),
    "object-labels-and-feature-names": (SoftmaxRegression(), FRAME, NAMES[Y].astype(object)),
    "float32": (SoftmaxRegression(C=0.1), X.astype(np.float32), Y),
    "centred": (SoftmaxRegression(), X + 1000, Y),
    "centred-float32": (SoftmaxRegression(), (X + 1000).astype(np.float32), Y),
    "centred-two-classes-float32": (SoftmaxRegression(), (X + 1000).astype(np.float32), Y % 2),
    "no-intercept": (SoftmaxRegression(fit_intercept=False), X, Y),
    "parameters": (WEIGHTED, X, Y),
    "chosen-by-cross-validation": (SoftmaxRegressionCV(Cs=3, cv=3), X, Y),
    "mean-over-folds": (SoftmaxRegressionCV(Cs=3, cv=3, refit=False), X, Y),
}


def main():
    """Write every model and what it predicts of twenty rows."""
    folder = Path(__file__).parent / f"format-{FORMAT_VERSION}"
    folder.mkdir()
    for name, (estimator, data, y) in MODELS.items():
        model = estimator.fit(data, y)
        rows = data[:20]
        save_model(model, folder / f"{name}.safetensors")
        np.savez_compressed(
            folder / f"{name}.npz",
            X=np.asarray(rows),
            labels=np.asarray(model.predict(rows).tolist()),
            probabilities=model.predict_proba(rows),
            coef=model.coef_,
        )


if __name__ == "__main__":
    main()
