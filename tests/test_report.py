import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import pytest
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError

import gpusoftmax
from gpusoftmax import (
    SoftmaxRegression,
    SoftmaxRegressionCV,
    calibrate,
    evaluate,
    expected_calibration_error,
    load_model,
    save_model,
    sweep,
    write_report,
)

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

X, Y = load_digits(return_X_y=True)
FIT, HELD = slice(0, 900), slice(900, None)
VOID = {"meta", "br", "img", "link", "input", "hr"}
SECTIONS = [
    "In short",
    "The model",
    "Figures",
    "Classes",
    "Most frequent mistakes",
    "Top features",
    "What these figures do not say",
    "Parameters",
]


class Page(HTMLParser):
    """What a page holds: elements and their attributes, ids, text; tags must match."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.pieces = [], [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.pieces.append(" ".join(data.split()))

    @property
    def text(self):
        return " ".join(filter(None, self.pieces))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(tmp_path, *arguments, **options):
    path = tmp_path / "report.html"
    write_report(path, *arguments, **options)
    return Page(path)


@pytest.fixture(scope="module")
def result():
    return sweep(X[FIT], Y[FIT], Cs=[1e-3, 0.1, 10.0], cv=3)


@pytest.fixture(scope="module")
def fitted():
    clf = SoftmaxRegression(C=0.1).fit(X[FIT], Y[FIT])
    n_passes = np.arange(1.0, 20)
    clf.history_ = SimpleNamespace(
        n_passes=n_passes, objectives=0.1 + np.exp(-n_passes), gradient_norms=np.exp(-n_passes), seconds=n_passes
    )
    return clf


@pytest.fixture(scope="module")
def full(fitted, result, tmp_path_factory):
    """A page with everything on it."""
    folder = tmp_path_factory.mktemp("full")
    calibrated = calibrate(fitted, X[HELD], Y[HELD])
    page = report(folder, calibrated, X[HELD], Y[HELD], result=result, source="digits")
    return page, calibrated, folder / "report.html"


@pytest.mark.parametrize(("rows", "is_weighted"), [(HELD, False), (slice(None), True)])
def test_the_figures_are_those_of_scikit_learn(full, tmp_path, rows, is_weighted):
    page, clf, _ = full
    x, y, of = X[rows], Y[rows], {}
    if is_weighted:
        weights = np.random.default_rng(0).integers(1, 4, len(y)).astype(float)
        weights[np.flatnonzero(y == 4)[5:]] = 0  # few rows of this class count
        of["sample_weight"] = weights
        page = report(tmp_path, clf, x, y, **of)
    probabilities = clf.predict_proba(x)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(y, predicted, labels=range(10), **of)
    share, (low, high) = support / support.sum(), evaluate(clf, x, y, **of).accuracy_interval
    error = expected_calibration_error(y, probabilities, **of)
    for words in (
        f"accuracy {metrics.accuracy_score(y, predicted, **of):.1%}",
        f"95 % interval {low:.1%} to {high:.1%}; the most frequent class is {share.max():.1%}",
        f"mean recall {metrics.balanced_accuracy_score(y, predicted, **of):.1%}",
        f"log loss {metrics.log_loss(y, probabilities, **of):.4g} {-share @ np.log(share):.4g} for one that knows",
        f"calibration error {error:.3f} ",
        *(f" {k} {support[k]:.0f} {precision[k]:.1%} {recall[k]:.1%} {f1[k]:.1%}" for k in range(10)),
    ):
        assert words in page.text
    assert ("calibration error of few rows" in page.text) == (len(y) < 1000)
    assert ("1 class has fewer than 30 held-out rows" in page.text) == is_weighted


def test_the_page_says_what_the_model_is_and_how_its_fit_ended(full):
    page, clf, _ = full
    assert "digits · 897 held-out rows" in page.text
    assert "classes 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 " in page.text
    assert "coefficients 10 × 64 float64, and 10 intercepts" in page.text
    assert f"temperature {clf.temperature_:.4g}: calibrated" in page.text
    assert f"ended The fit {clf.status_.sentence}." in page.text
    assert "3 settings on 3 folds, 9 fits; the lowest mean held-out loss is at C = 0.1." in page.text
    assert all(f"{name} {value!r}" in page.text for name, value in clf.get_params().items())
    assert "Not at its optimum" not in page.text


def test_figures_are_inside_and_have_titles(full):
    page, _, _ = full
    figures = page.all("svg")
    assert len(figures) == 4  # convergence, path, reliability, confusion
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for figure in figures:
        assert figure["role"] == "img"
        assert figure["aria-labelledby"] in ids
    for _, attributes in page.elements:  # nothing comes from elsewhere
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert re.match("#|data:image/png;base64,", attributes.get(name, "#"))
    assert not re.findall(r"url\((?!#)", page.source)
    assert not page.all("script")


def test_what_is_written_does_not_depend_on_the_place_or_style(full, fitted, result, tmp_path):
    _, calibrated, path = full
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linestyle": ":"}):
        report(tmp_path, calibrated, X[HELD], Y[HELD], result=result, source="digits")
        assert mpl.rcParams["font.size"] == 20
    assert (tmp_path / "report.html").read_bytes() == path.read_bytes()


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{$",
    "a & b",
    "]]>\x00\x1b\n",
    "身長" * 200,
]


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A page of names that would break it."""
    pd = pytest.importorskip("pandas")
    folder = tmp_path_factory.mktemp("evil")
    frame = pd.DataFrame(X[:, 18:24], columns=EVIL)
    y = np.array(EVIL)[Y % 6]
    with pytest.warns(ConvergenceWarning):
        clf = SoftmaxRegression(max_iter=3).fit(frame[FIT], y[FIT])
    clf.history_ = None
    weights = 1e160 * np.random.default_rng(0).random(897)
    page = report(
        folder, clf, frame[HELD], y[HELD], sample_weight=weights, title="<b>bold</b>", source="{{ 1 }} <i>it</i>"
    )
    return page, folder / "report.html"


def test_names_are_text_only(evil):
    page, _ = evil
    assert not {"script", "img", "b", "i"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(
        name in page.text for name in ("<script>alert(1)</script>", "$\\frac{$", "a & b", "<b>bold</b>", "{{ 1 }}")
    )
    assert not re.search("[\x00\x1b]", page.source)
    assert max(len(word) for word in re.findall("[身長…]+", page.text)) <= 60


def test_a_fit_that_did_not_converge_is_said_first(evil):
    page, _ = evil
    assert "In short Not at its optimum. The fit stopped at max_iter before it converged." in page.text
    assert "897 held-out rows, weighted" in page.text
    assert re.search(r"they tell as much as \d+ rows", page.text)
    assert "nan" not in page.text
    assert max(len(word) for word in re.findall(r"[\d,]+", page.text)) < 10


def test_many_classes_and_features_are_bounded_and_said(tmp_path):
    rng = np.random.default_rng(0)
    few = SoftmaxRegression(max_iter=0)  # one evaluation is no picture
    with pytest.warns(ConvergenceWarning):
        few.fit(rng.normal(size=(3000, 2)).astype(np.float32), np.arange(3000) % 1000)
    few.n_features_in_ = 10_000
    few.coef_ = rng.normal(size=(1000, 10_000)).astype(np.float32)
    held_out = rng.normal(size=(300, 10_000)).astype(np.float32)
    page = report(tmp_path, few, held_out, rng.integers(0, 1000, 300))
    assert len(page.source) < 150_000
    for words in (
        "1,000: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 980 more",
        "The 50 of 1,000 classes with the most held-out rows",
        "960 others are one",
        "Shown are the 12 of 1,000 classes",
        "Of 10,000 features, the largest 6 of each class",
        "no held-out row",
        "fewer than 30 held-out rows",
    ):
        assert words in page.text, words


def test_two_classes_one_feature_and_no_mistake(tmp_path):
    x = np.arange(-10.0, 10)[:, np.newaxis] + 0.5
    y = np.where(x[:, 0] > 0, "yes", "no")
    clf = SoftmaxRegression(C=np.inf).fit(x, y)
    clf.history_ = None
    page = report(tmp_path, clf, x, y)
    assert "None on these rows." in page.text
    assert "yes rather than no" in page.text
    assert "1 × 1 float64, and 1 intercept " in page.text
    assert "Of 1 features" not in page.text
    assert len(page.all("svg")) == 2


def test_a_model_without_a_record_of_its_fit(tmp_path):
    clf = SoftmaxRegressionCV(Cs=[0.01, 1.0], cv=3, refit=False).fit(X[FIT], Y[FIT])
    page = report(tmp_path, clf, X[HELD], Y[HELD])
    assert "estimator SoftmaxRegressionCV" in page.text
    assert f"C {clf.C_:.6g} " in page.text
    assert "ended not recorded" in page.text


def test_a_model_that_was_saved_has_the_same_page(tmp_path):
    clf = calibrate(SoftmaxRegression().fit(X[FIT], Y[FIT]), X[HELD], Y[HELD])
    save_model(clf, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    clf.history_ = None  # which files do not hold
    assert report(tmp_path, loaded, X[HELD], Y[HELD]).source == report(tmp_path, clf, X[HELD], Y[HELD]).source


def test_features_are_scaled_by_their_spread(tmp_path):
    clf = SoftmaxRegression().fit(X[FIT, 20:22], Y[FIT] % 2)
    page = report(tmp_path, clf, X[HELD, 20:22], Y[HELD] % 2)
    values = clf.coef_[0] * X[HELD, 20:22].std(axis=0)
    values = values[np.argsort(-abs(values))]
    for value in values:
        assert f"{value:+.3g}".replace("-", "−") in page.text
    bars = [span["class"] for span in page.all("span") if span.get("class", "").startswith("bar")]
    assert bars == ["bar" if value > 0 else "bar against" for value in values]


def test_what_is_wrong_leaves_no_file(fitted, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    with pytest.raises(NotFittedError):
        write_report(path, SoftmaxRegression(), X, Y)
    with pytest.raises(ValueError, match="1 label not among the 10 classes: 11"):
        write_report(path, fitted, X[:2], [1, 11])
    with pytest.raises(ValueError, match="give cv"):
        write_report(path, fitted, X[HELD], Y[HELD], result=sweep(X[:100], Y[:100], Cs=[0.1]))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"matplotlib and jinja2: pip install 'gpusoftmax\[plots\]'"):
        write_report(path, fitted, X[HELD], Y[HELD])
    assert not path.exists()


# ---------------------------------------------------------------- in a real browser

needs_browser = pytest.mark.skipif(
    browser.find() is None, reason=f"none of {', '.join(browser.NAMES)} is on this machine"
)


@needs_browser
@pytest.mark.parametrize("is_dark", [False, True])
def test_the_page_in_a_browser(full, evil, tmp_path, is_dark):
    _, path = evil if is_dark else (None, full[2])
    widths, console = browser.look(path, tmp_path, is_dark=is_dark)
    assert console == []
    for facts in widths.values():
        assert (facts["overflow"], facts["cut"], facts["requests"], facts["scripts"]) == (0, 0, [], 0)
        assert facts["sections"] == SECTIONS
        assert facts["unlabelled"] == 0
        assert len(facts["figures"]) == (2 if is_dark else 4)
        assert all(role == "img" and title for role, title in facts["figures"])
        assert len(facts["ids"]) == len(set(facts["ids"]))
        assert facts["background"] == ("rgb(13, 17, 23)" if is_dark else "rgb(255, 255, 255)")
        assert set(facts["drawn"]) <= {facts["text"], "rgb(255, 255, 255)"}  # white on what is blue
        assert facts["smallest"] > 6  # pixels: text of figures is read on a phone


@needs_browser
def test_the_browser_sees_what_is_wrong(full, tmp_path):
    path = tmp_path / "broken.html"
    wrong = '<main><img src="http://127.0.0.1:9/x.png"><div style="width: 700px">wide</div>'
    path.write_text(full[2].read_text("utf-8").replace("<main>", wrong), "utf-8")
    widths, console = browser.look(path, tmp_path)
    assert console
    assert widths[360]["overflow"] > 300
    assert widths[1280]["overflow"] == 0
    assert widths[360]["requests"] == ["http://127.0.0.1:9/x.png"]
    assert widths[360]["unlabelled"] == 1


@needs_browser
def test_the_page_prints(full, tmp_path):
    pdf = tmp_path / "report.pdf"
    command = [browser.find(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={pdf}", full[2].as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    n_pages = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 3 <= n_pages <= 6


def test_a_page_from_a_package_in_an_archive(tmp_path):
    package = Path(gpusoftmax.__file__).parent
    archive = shutil.make_archive(tmp_path / "package", "zip", package.parent, package.name)
    code = "from gpusoftmax import report; assert '.zip' in report.__file__; report.page_template()"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": archive}, cwd=tmp_path)
