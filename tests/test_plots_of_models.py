"""Pictures of fits and of models, but for the path of a sweep, which test_plots.py has."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics
from sklearn.datasets import load_digits

from gpusoftmax import SoftmaxRegression, calibrate, expected_calibration_error, plots
from gpusoftmax.plots.inline import inline_svg

matplotlib = pytest.importorskip("matplotlib")
figures = pytest.importorskip("matplotlib.figure")

X, Y = load_digits(return_X_y=True)
AWKWARD = np.array(["$a$", "_b", "c" * 50, "d\nd", "e", "f & <g>", "7 $", "ʒ", "i", "j"])  # and so on, as labels


@pytest.fixture(scope="module")
def digits():
    return SoftmaxRegression(C=0.1).fit(X[:1200], AWKWARD[Y[:1200]])


@pytest.fixture
def ax():
    return figures.Figure(layout="constrained").subplots()


def history(objectives, n_passes=None):
    n = len(objectives)
    return SimpleNamespace(
        n_passes=np.arange(1.0, n + 1) if n_passes is None else np.array(n_passes),
        objectives=np.array(objectives),
        gradient_norms=np.geomspace(1, 1e-4, n),
        seconds=np.linspace(0.1, 0.5, n),
    )


def lines_of(ax):
    return [line for line in ax.get_lines() if line.get_marker() == "None"]


def names_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.convergence(history([2.0, 1.0]), ax),
        lambda ax: plots.reliability_diagram([0, 1], [[0.9, 0.1], [0.3, 0.7]], ax),
        lambda ax: plots.confusion_matrix([0, 1], [0, 0], ax),
        lambda ax: plots.top_features(SoftmaxRegression().fit([[0.0], [1.0]], [0, 1]), ax),
    ],
)
def test_axes_given_are_returned_and_style_stays(draw, ax):
    before = dict(matplotlib.rcParams)
    assert draw(ax) is ax
    ax.figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before
    plt = pytest.importorskip("matplotlib.pyplot")
    with matplotlib.rc_context({"backend": "Agg"}):
        made = draw(None)
        made.figure.canvas.draw()
        plt.close(made.figure)


def test_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name, arguments in (("convergence", (history([1.0]),)), ("confusion_matrix", ([0, 1], [0, 1]))):
        with pytest.raises(ImportError, match=rf"{name} needs matplotlib: pip install 'gpusoftmax\[plots\]'"):
            getattr(plots, name)(*arguments)


# ---------------------------------------------------------------- convergence


def test_the_gap_is_that_of_the_lowest_so_far(ax):
    plots.convergence(history([5.0, 2.0, 3.0, 1.0]), ax)
    (line,) = lines_of(ax)
    np.testing.assert_allclose(line.get_ydata(), [4.0, 1.0, 1.0])  # the lowest itself has no logarithm
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    assert ax.get_yscale() == "log"
    assert ax.get_legend() is None


def test_several_histories_share_an_optimum(ax):
    plots.convergence({"a": history([4.0, 3.0]), "b": history([np.nan, 3.0, 2.0])}, ax)
    first, second = lines_of(ax)
    np.testing.assert_allclose(first.get_ydata(), [1.0, 0.5])
    np.testing.assert_allclose((second.get_xdata(), second.get_ydata()), [[2], [0.5]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_a_known_optimum_leaves_the_end_on_the_picture(ax):
    plots.convergence(history([5.0, 2.0]), ax, optimum=1.0)
    np.testing.assert_allclose(lines_of(ax)[0].get_ydata(), [4.0, 1.0])
    assert ax.get_ylabel() == "relative gap to the optimum"


@pytest.mark.parametrize(("by", "values"), [("objectives", [5.0, 2.0, 2.0]), ("gradient_norms", [1.0, 1e-2, 1e-4])])
@pytest.mark.parametrize("over", ["n_passes", "seconds"])
def test_what_is_drawn_over_what(ax, by, values, over):
    of_fit = history([5.0, 2.0, 3.0])
    plots.convergence(of_fit, ax, by=by, over=over)
    np.testing.assert_allclose(lines_of(ax)[0].get_ydata(), values)
    np.testing.assert_allclose(lines_of(ax)[0].get_xdata(), getattr(of_fit, over))


@pytest.mark.parametrize("by", ["gap", "objectives", "gradient_norms"])
def test_a_fit_that_began_at_its_optimum(by):
    of_fit = history([1.0])
    of_fit.gradient_norms = np.zeros(1)
    svg = inline_svg(lambda ax: plots.convergence(of_fit, ax, by=by), "a", "nothing to see", 4, 3)
    assert "passes over X" in svg


@pytest.mark.parametrize("histories", [{}, history([]), history([np.nan])])
def test_nothing_to_draw_is_an_error(histories):
    with pytest.raises(ValueError, match="at least one finite evaluation"):
        plots.convergence(histories)


@pytest.mark.parametrize("options", [{"by": "loss"}, {"over": "steps"}])
def test_an_unknown_axis_is_an_error(options):
    with pytest.raises(ValueError, match="by must be 'gap', 'objectives' or 'gradient_norms', and over"):
        plots.convergence(history([1.0]), **options)


# ---------------------------------------------------------------- reliability


def test_points_are_bins_and_empty_bins_have_none(ax):
    y = ["a", "c", "c", "a", "b"]
    rows = np.array([[0.6, 0.3, 0.1], [0.25, 0.45, 0.3], [0.05, 0.05, 0.9], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0]])
    weights = [1, 3, 1, 2, 0]
    plots.reliability_diagram(y, rows, ax, sample_weight=weights, n_bins=5)
    points = ax.get_lines()[2]
    np.testing.assert_allclose(points.get_xdata(), [(0.6 + 3 * 0.45) / 4, (0.9 + 2 * 1.0) / 3])
    np.testing.assert_allclose(points.get_ydata(), [1 / 4, 1.0])
    for bar, accuracy, n_rows in zip(ax.collections[0].get_segments(), (1 / 4, 1.0), (16 / 10, 9 / 5), strict=True):
        ends = bar[:, 1]  # Wilson's: as far from the accuracy as 1.96 of their own standard deviations
        np.testing.assert_allclose(n_rows * (accuracy - ends) ** 2, 1.96**2 * ends * (1 - ends), atol=1e-12)
    (shares,) = ax.patches
    np.testing.assert_allclose(shares.get_data().values, [0, 0, 4 / 7, 0, 3 / 7])
    error = expected_calibration_error(y, rows, sample_weight=weights, n_bins=5)
    assert points.get_label() == f"held-out rows: ECE {error:.3f}"


def test_intervals_are_those_of_scipy(ax):
    stats = pytest.importorskip("scipy.stats")
    y = np.array([0] * 7 + [1] * 3)
    plots.reliability_diagram(y, np.tile([0.9, 0.1], (10, 1)), ax)
    ((_, low), (_, high)) = ax.collections[0].get_segments()[0]
    expected = stats.binomtest(7, 10).proportion_ci(method="wilson")
    np.testing.assert_allclose((low, high), (expected.low, expected.high), rtol=1e-4)


def test_several_models_have_a_line_each(digits, ax):
    y = AWKWARD[Y[1200:]]
    models = {"as fitted": digits, "calibrated": calibrate(digits, X[1200:], y)}
    named = {name: model.predict_proba(X[1200:]) for name, model in models.items()}
    plots.reliability_diagram(y, named, ax, classes=digits.classes_)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.partition(":")[0] for label in labels] == ["as confident as right", "as fitted", "calibrated"]


# ---------------------------------------------------------------- confusion


@pytest.mark.parametrize("weights", [None, np.random.default_rng(0).random(597)])
def test_counts_and_colours_of_the_matrix(digits, ax, weights):
    y, predicted = AWKWARD[Y[1200:]], digits.predict(X[1200:])
    plots.confusion_matrix(y, predicted, ax, sample_weight=weights)
    counts = metrics.confusion_matrix(y, predicted, sample_weight=weights)
    shares = metrics.confusion_matrix(y, predicted, sample_weight=weights, normalize="true")
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    written = {text.get_position()[::-1]: float(text.get_text()) for text in ax.texts}
    assert set(written) == set(zip(*np.nonzero(counts), strict=True))
    assert all(abs(number - counts[place]) <= 0.5 for place, number in written.items())
    ax.figure.canvas.draw()


def test_names_are_written_as_they_are(digits, ax):
    y = AWKWARD[Y[1200:]]
    plots.confusion_matrix(y, digits.predict(X[1200:]), ax)
    ax.figure.canvas.draw()  # a dollar that began a formula would fail here
    assert names_of(ax.yaxis) == [
        r"\$a\$",
        r"7 \$",
        "_b",
        "c" * 15 + "…" + "c" * 8,
        "d d",
        "e",
        "f & <g>",
        "i",
        "j",
        "ʒ",
    ]


def test_many_classes_are_those_of_the_most_rows_and_others(ax):
    y = np.repeat(np.arange(100), np.r_[np.full(50, 1), np.full(50, 3)])
    predicted = np.roll(y, 1)
    plots.confusion_matrix(y, predicted, ax, max_classes=50)
    shares = np.asarray(ax.images[0].get_array())
    assert shares.shape == (51, 51)
    assert names_of(ax.yaxis) == [str(i) for i in range(50, 100)] + ["50 others"]
    np.testing.assert_allclose(np.diag(shares)[:-1], 2 / 3)
    assert shares[0, 50] == pytest.approx(1 / 3)
    assert not ax.texts
    assert len(ax.figure.axes) == 2  # a bar of colours instead of numbers


def test_many_classes_are_those_of_the_most_weight(ax):
    plots.confusion_matrix([0, 0, 1, 2], [0, 0, 1, 2], ax, sample_weight=[1, 1, 3, 4], max_classes=2)
    assert names_of(ax.yaxis) == ["1", "2", "1 others"]


def test_classes_without_rows_are_drawn_where_asked(ax):
    plots.confusion_matrix([1, 1], [2, 1], ax, classes=[2, 0, 1])
    np.testing.assert_allclose(ax.images[0].get_array(), [[0, 0, 0], [0, 0, 0], [0.5, 0, 0.5]])


def test_no_labels_are_an_error(digits):
    with pytest.raises(ValueError, match="There are no labels"):
        plots.confusion_matrix([], [])
    with pytest.raises(ValueError, match="There are no labels"):
        plots.top_features(digits, classes=[])


def test_labels_that_are_not_classes_are_an_error():
    with pytest.raises(ValueError, match="1 label not among the 2 classes: 7"):
        plots.confusion_matrix([0, 7], [0, 1], classes=[0, 1])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"),
        (9999, "9999"),
        (12345, "12k"),
        (2.5, "2.50"),
        (123.4, "123"),
        (3e160, "3e160"),
        (2e-9, "2e-09"),
    ],
)
def test_numbers_are_short(ax, count, text):
    plots.confusion_matrix([0, 1], [0, 1], ax, sample_weight=[count, 1])
    assert ax.texts[0].get_text() == text


# ---------------------------------------------------------------- top features


def bars_of(ax):
    """Return the length of each bar by the name beside it, from the top down, headings left out."""
    names = dict(zip(ax.get_yticks(), names_of(ax.yaxis), strict=True))
    return [(names[bar.get_y() + bar.get_height() / 2], bar.get_width()) for bar in ax.patches]


def test_largest_coefficients_of_each_class_largest_first(digits, ax):
    plots.top_features(digits, ax, n_features=3)
    bars = bars_of(ax)
    assert len(bars) == 30
    for k, coef in enumerate(digits.coef_):
        largest = np.argsort(-abs(coef))[:3]
        assert [name for name, _ in bars[3 * k :][:3]] == [f"x{i}" for i in largest]
        np.testing.assert_allclose([length for _, length in bars[3 * k :][:3]], coef[largest])
    bold = [label.get_text() for label in ax.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold[:2] == [r"\$a\$", r"7 \$"]


def test_two_classes_have_one_row_and_a_side_each(ax):
    clf = SoftmaxRegression().fit(X, np.where(Y < 5, "low", "high"))
    plots.top_features(clf, ax)
    largest = np.argsort(-abs(clf.coef_[0]))[:10]
    assert [name for name, _ in bars_of(ax)] == [f"x{i}" for i in largest]
    assert ax.get_xlabel().split() == ["←", "high", "coefficient", "low", "→"]


def test_scale_decides_what_is_large(digits, ax):
    scale = np.zeros(64)
    scale[7] = 1
    plots.top_features(digits, ax, n_features=1, scale=scale)
    assert {name for name, _ in bars_of(ax)} == {"x7"}
    assert ax.get_xlabel() == "coefficient × scale"
    with pytest.raises(ValueError, match=r"scale must have shape \(n_features,\) = \(64,\), got \(3,\)"):
        plots.top_features(digits, scale=np.ones(3))


def test_names_of_features_and_chosen_classes(ax):
    pd = pytest.importorskip("pandas")
    clf = SoftmaxRegression().fit(pd.DataFrame(X[:, 10:13], columns=["$a$", "b" * 99, "c"]), Y)
    plots.top_features(clf, ax, classes=[7, 2])
    ax.figure.canvas.draw()
    assert {name for name, _ in bars_of(ax)} == {r"\$a\$", "b" * 15 + "…" + "b" * 8, "c"}
    assert [label.get_text() for label in ax.get_yticklabels() if label.get_fontweight() == "bold"] == ["7", "2"]
    with pytest.raises(ValueError, match="1 label not among the 10 classes: 11"):
        plots.top_features(clf, classes=[11])


def test_the_first_ten_of_more_classes(ax):
    clf = SoftmaxRegression().fit(np.eye(12), np.arange(12))
    plots.top_features(clf, ax)
    assert ax.get_title() == "the first 10 of 12 classes"
    assert len(bars_of(ax)) == 50


def test_one_feature(ax):
    plots.top_features(SoftmaxRegression().fit(X[:, 20:21], Y % 3), ax)
    assert [name for name, _ in bars_of(ax)] == ["x0"] * 3
