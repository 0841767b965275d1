import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris

from gpusoftmax import plots, sweep

matplotlib = pytest.importorskip("matplotlib")
figures = pytest.importorskip("matplotlib.figure")

X, Y = load_iris(return_X_y=True)
CS = [1.0, 1e-3, 0.1, 30.0]  # not in order
ORDER = np.argsort(CS)
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def result():
    # The first strength is best, the third within one standard error of it.
    loss = np.array([0.2, 0.3, 0.4, 0.9, 1.0, 1.05, 0.25, 0.31, 0.4, 0.8, 0.9, 1.0])
    return replace(sweep(X, Y, Cs=CS, cv=3), held_out_loss=loss, held_out_accuracy=1.1 - loss)


@pytest.fixture
def ax():
    return figures.Figure().subplots()


def labelled(ax):
    """Return the lines of the legend by what it says."""
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def line_of(ax, words):
    (found,) = [line for label, line in labelled(ax).items() if label.startswith(words)]
    return found


def test_returns_the_axes_given(result, ax):
    assert plots.regularization_path(result, ax) is ax
    assert (ax.get_xscale(), len(ax.figure.axes)) == ("log", 1)


def test_makes_a_figure_and_changes_no_style(result):
    plt = pytest.importorskip("matplotlib.pyplot")
    with matplotlib.rc_context({"backend": "Agg"}):
        before = dict(matplotlib.rcParams)
        ax = plots.regularization_path(result)
        assert dict(matplotlib.rcParams) == before
        ax.figure.canvas.draw()
        plt.close(ax.figure)


@pytest.mark.parametrize("by", ["held_out_loss", "held_out_accuracy"])
def test_draws_the_numbers_of_the_result(result, ax, by):
    plots.regularization_path(result, ax, by=by)
    folds = result.by_fold(by)[ORDER]
    means, error = folds.mean(axis=1), folds.std(axis=1, ddof=1) / np.sqrt(3)
    held_out, train = line_of(ax, "held out, mean of 3 folds"), line_of(ax, "rows fitted")
    np.testing.assert_allclose(held_out.get_xdata(), np.sort(CS))
    np.testing.assert_allclose(held_out.get_ydata(), means)
    np.testing.assert_allclose(train.get_ydata(), result.by_fold(by.replace("held_out", "train"))[ORDER].mean(axis=1))
    faint = [line.get_ydata() for line in ax.get_lines() if line.get_linewidth() < 1]
    np.testing.assert_allclose(np.transpose(faint), folds)
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose((band[:, 1].min(), band[:, 1].max()), ((means - error).min(), (means + error).max()))


@pytest.mark.parametrize("by", ["held_out_loss", "held_out_accuracy"])
def test_marks_both_choices(result, ax, by):
    plots.regularization_path(result, ax, by=by)
    for words, options in (("best", {}), ("one standard error", {"one_standard_error": True})):
        setting = result.best_setting(by, **options)
        mark = line_of(ax, words)
        assert mark.get_xdata() == result.settings[setting].C
        assert mark.get_ydata() == result.by_fold(by)[setting].mean()
        assert mark.get_label().endswith(f"C = {result.settings[setting].C:.3g}")


def test_marks_one_place_where_both_choices_are_one(ax):
    plots.regularization_path(sweep(X, Y, Cs=[1e-4, 10.0], cv=3), ax)
    assert line_of(ax, "best, also by one standard error").get_xdata() == 10.0
    assert len(labelled(ax)) == 4  # and the mean, each fold, rows fitted


def test_one_fold_has_neither_band_nor_standard_error(ax):
    is_train = np.arange(len(X)) % 4 > 0
    plots.regularization_path(sweep(X, Y, Cs=CS, cv=is_train[:, np.newaxis]), ax)
    assert not ax.collections
    assert len(ax.get_lines()) == 3  # held out, rows fitted, best


def test_settings_swept_over_have_lines_of_their_own(ax):
    result = sweep(X, Y, Cs=CS, cv=3, class_weight=[None, "balanced"], label_smoothing=[0.0, 0.1])
    plots.regularization_path(result, ax)
    for i, setting in enumerate(result.settings[:: len(CS)]):
        line = labelled(ax)[f"class_weight={setting.class_weight!r}, label_smoothing={setting.label_smoothing!r}"]
        means = result.by_fold("held_out_loss").mean(axis=1)[i * len(CS) :][: len(CS)]
        np.testing.assert_allclose(line.get_ydata(), means[ORDER])


def test_no_penalty_is_beyond_the_others(ax):
    result = sweep(X[:, :2], Y, Cs=[np.inf, 0.01, 1.0], cv=3)
    plots.regularization_path(result, ax)
    x = line_of(ax, "held out, mean").get_xdata()
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[:2], [0.01, 1.0])
    assert x[2] > 2 * x[1]
    ax.figure.canvas.draw()
    ticks = {label.get_text(): place for label, place in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)}
    assert ticks["∞"] == x[2]
    assert max(place for label, place in ticks.items() if label != "∞") <= 1.0


def test_no_penalty_alone(ax):
    plots.regularization_path(sweep(X[:, :2], Y, Cs=[np.inf], cv=3), ax)
    assert line_of(ax, "best").get_label().endswith("C = ∞")


def test_unfinished_settings_are_left_out(result, ax):
    held_out = result.held_out_loss.copy()
    held_out[4] = np.nan  # a fold of the second strength given, the smallest
    plots.regularization_path(replace(result, held_out_loss=held_out), ax)
    np.testing.assert_allclose(line_of(ax, "held out, mean").get_xdata(), np.sort(CS)[1:])
    assert all(np.isfinite(line.get_ydata()).all() for line in ax.get_lines())


def test_losses_of_rows_fitted_do_not_flatten_the_others(ax):
    result = sweep(X, Y, Cs=[1e-3, 1.0], cv=3)
    result = replace(result, train_loss=np.full(len(result), 1e-9))
    plots.regularization_path(result, ax)
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] > result.held_out_loss.min() / 2


def test_nothing_held_out_is_an_error(ax):
    with pytest.raises(ValueError, match="give cv"):
        plots.regularization_path(sweep(X, Y, Cs=CS), ax)
    assert not ax.get_lines()


def test_an_unknown_score_is_an_error(result, ax):
    with pytest.raises(ValueError, match="by must be one of"):
        plots.regularization_path(result, ax, by="train_loss")


def test_without_matplotlib_says_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'gpusoftmax\[plots\]'"):
        plots.regularization_path(result)


def test_the_documented_command_draws_the_figures_of_the_documents(tmp_path):
    assert "`python docs/figures.py`" in (DOCS / "linear-probe.md").read_text()
    command = [sys.executable, str(DOCS / "figures.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "figures").iterdir()}
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert all(f"figures/{name}" in pages for name in drawn)
