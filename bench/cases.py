"""What is measured: cases as data, and the rows they stand for. Knows no library."""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from sklearn import datasets

BLOCK_ROWS = 2000  # rows drawn at a time: random data need no second array of their size
PIXEL_RANGE = 255
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
BUNDLED: dict[str, Callable] = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}
OPENML = {"letters": 6, "spam": 44, "mnist10k": 554, "fashion_mnist": 40996}  # data_id


@dataclass(frozen=True)
class Case:
    """One problem.

    Parameters
    ----------
    source : {"random", "teacher"} or the name of a data set
        Normal features with targets that know nothing of them; or those of `teacher`.
    n_rows, n_features, n_classes : int
        Zero for a data set, which has its own.
    dtype : of the features
    C : inverse strength of the penalty, as scikit-learn means it
    density : share of the features that are not zero; they are stored all the same
    is_soft : whether targets are (n_rows, n_classes)
    seed : of everything random
    """

    source: str
    n_rows: int = 0
    n_features: int = 0
    n_classes: int = 0
    dtype: str = "float32"
    C: float = 1.0
    density: float = 1.0
    is_soft: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        shape = f"-{self.n_rows}x{self.n_features}x{self.n_classes}" if self.n_rows else ""
        return f"{self.source}{shape}-{self.dtype}" + "-soft" * self.is_soft + "-sparse" * (self.density < 1)


@dataclass(frozen=True)
class Data:
    """X (n_rows, n_features); targets: class indices (n_rows,), or soft (n_rows, n_classes) in the dtype of X."""

    X: np.ndarray
    targets: np.ndarray
    n_classes: int
    C: float

    @property
    def is_soft(self) -> bool:
        return self.targets.ndim == 2

    def zeros(self) -> tuple[np.ndarray, np.ndarray]:
        """Return W and b with which no class is likelier than another."""
        return np.zeros((self.X.shape[1], self.n_classes), self.X.dtype), np.zeros(self.n_classes, self.X.dtype)

    def head(self, n_rows: int) -> Self:
        """Return the first rows."""
        return replace(self, X=self.X[:n_rows], targets=self.targets[:n_rows])


def make(case: Case, folder: Path, *, is_fetched: bool = False) -> Data:
    """Return the rows of a case; see `load` for the errors."""
    if case.source == "random":
        X, targets = random(case)
    elif case.source == "teacher":
        X, targets = teacher(case.n_rows, 0, case.n_features, case.n_classes, seed=case.seed)[:2]
    else:
        X, targets = load(case.source, folder, is_fetched=is_fetched)
    X = np.ascontiguousarray(X, case.dtype)
    return Data(X, targets, case.n_classes or int(targets.max()) + 1, case.C)


def random(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return features and targets that have nothing to do with one another, drawn block by block."""
    rng = np.random.default_rng(case.seed)
    dtype = np.dtype(case.dtype)
    X = np.empty((case.n_rows, case.n_features), dtype)
    for x in _blocks(X):
        rng.standard_normal(out=x, dtype=dtype)
        if case.density < 1:
            x[rng.random(x.shape) >= case.density] = 0
    if not case.is_soft:
        return X, rng.integers(case.n_classes, size=case.n_rows)
    targets = np.empty((case.n_rows, case.n_classes), dtype)
    for t in _blocks(targets):
        rng.standard_exponential(out=t, dtype=dtype)
        np.divide(t, t.sum(axis=1, keepdims=True), out=t)
    return X, targets


def teacher(n_rows=200_000, n_test=20_000, n_features=784, n_classes=10, n_factors=32, seed=0):
    """Return X, y, X_test, y_test: correlated features of unequal scales, labelled at random by a softmax.

    x = scale * (noise + factors @ loadings), log scale ~ N(0, 0.4²); the classes overlap, so that no fit is perfect.
    """
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((n_factors, n_features), np.float32) / np.float32(np.sqrt(n_factors))
    scale = np.exp(rng.normal(0, 0.4, n_features)).astype(np.float32)
    weights = rng.standard_normal((n_features, n_classes), np.float32) * np.float32(5 / np.sqrt(n_features))
    X = np.empty((n_rows + n_test, n_features), np.float32)
    y = np.empty(len(X), np.int64)
    for x, labels in zip(_blocks(X), _blocks(y), strict=True):
        rng.standard_normal(out=x, dtype=np.float32)
        np.add(x, rng.standard_normal((len(x), n_factors), np.float32) @ loadings, out=x)
        logits = x @ weights
        labels[:] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        np.multiply(x, scale, out=x)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[start : start + BLOCK_ROWS] for start in range(0, len(array), BLOCK_ROWS))


def load(name: str, folder: Path, *, is_fetched: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return features and class indices of a real data set; pixels of one byte are divided by 255.

    Looked for in scikit-learn's bundled sets, then as NAME.npz with X and y or as IDX files in `folder`, then where
    Debian keeps it, then, if `is_fetched`, at OpenML.

    Raises
    ------
    FileNotFoundError
        The set is nowhere; the message says where it was looked for.
    """
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True)
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz") as file:
            X, y = file["X"], file["y"]
    elif (idx := _find_idx(name, folder)) is not None:
        X, y = (_read_idx(idx / f"train-{kind}.gz") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    elif is_fetched and name in OPENML:
        X, y = datasets.fetch_openml(data_id=OPENML[name], return_X_y=True, as_frame=False, parser="liac-arff")
    else:
        remedy = "--fetch downloads it" if name in OPENML else "--data names the folder"
        raise FileNotFoundError(f"No such file: {name}.npz in {folder.name}; {remedy}")
    X = X[:10_000] if name == "mnist10k" else X
    is_image = X.shape[1] == 784
    return (X / PIXEL_RANGE if is_image else X), np.unique(y[: len(X)], return_inverse=True)[1]


def _find_idx(name: str, folder: Path) -> Path | None:
    places = (folder, FASHION_MNIST) if name == "fashion_mnist" else ()
    return next((place for place in places if (place / "train-images-idx3-ubyte.gz").exists()), None)


def _read_idx(path: Path) -> np.ndarray:
    """Return an IDX file's bytes, one row an image."""
    with gzip.open(path) as file:
        header = file.read(4)
        shape = np.frombuffer(file.read(4 * header[3]), ">i4")
        array = np.frombuffer(file.read(), np.uint8)
    return array.reshape(shape[0], -1) if len(shape) > 1 else array


SHAPES = (
    (2_000_000, 16, 3),
    (1_000_000, 32, 10),
    (581_000, 54, 7),
    (200_000, 784, 10),
    (20_000, 1024, 100),
    (50_000, 768, 1000),
    (4096, 512, 32_000),
)
PASS = (
    *(Case("random", *shape) for shape in SHAPES),
    *(Case("random", *SHAPES[i], dtype="float64") for i in (0, 1, 3, 4)),
    *(Case("random", *SHAPES[i], is_soft=True) for i in (0, 1, 3, 4, 5)),
)
FIT = (
    *(Case(name) for name in ("digits", "letters", "mnist10k", "fashion_mnist")),
    Case("teacher", *SHAPES[3]),
    Case("teacher", 1000, 10_000, 10),
)
MEMORY_OF_FIT = (Case("digits"), Case("mnist10k"), Case("teacher", *SHAPES[3]))

SMOKE_PASS = (
    Case("random", 3000, 7, 5, density=0.5),
    Case("random", 1000, 9, 3, dtype="float64"),
    Case("random", 1000, 9, 4, is_soft=True),
)
SMOKE_FIT = (Case("teacher", 600, 8, 3), Case("teacher", 60, 300, 3), Case("no_such_set"))
