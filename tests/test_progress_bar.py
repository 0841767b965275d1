"""The bar of `verbose`: what it shows, where it is quiet, and that it costs little."""

import io
import re
import sys
from contextlib import redirect_stderr
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_iris

from gpusoftmax import SoftmaxRegression, fit_many, progress_bar, sweep
from gpusoftmax.progress_bar import ProgressBar, _in_short

X, Y = load_iris(return_X_y=True)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def drawn(self):
        """Return what was written, drawing by drawing, less what only a terminal reads."""
        return [line for line in re.split(r"[\r\n]+", ESCAPES.sub("", self.getvalue())) if line]


class Clock:
    """Time that passes by itself with every look at it."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def perf_counter(self):
        self.now += self.step
        return self.now


@pytest.fixture
def terminal(monkeypatch):
    """Return a context in which standard error is a terminal; it yields what is written there."""
    for name, value in {"TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    return lambda: redirect_stderr(Terminal())


@pytest.fixture
def draws_at_once(monkeypatch):
    for name in ("FIRST_SECONDS", "INTERVAL_SECONDS"):
        monkeypatch.setattr(progress_bar, name, 0.0)
    monkeypatch.setattr(progress_bar, "MAX_SHARE", np.inf)


def progress(gradient, n_passes=1.0, n_finished=0):
    return SimpleNamespace(
        n_passes=n_passes, values=np.array([0.5]), gradient_norms=np.array([gradient]), n_finished=n_finished
    )


RUNS = {
    "fit": (lambda: SoftmaxRegression(verbose=1).fit(X, Y), "CONVERGED, objective "),
    "sweep": (lambda: sweep(X, Y, Cs=3, cv=2, verbose=1), "6 of 6 problems, "),
    "many": (lambda: fit_many([X, X], [Y, Y], verbose=1), "2 of 2 problems, "),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_one_line_where_there_is_no_terminal(capsys, monkeypatch, run):
    monkeypatch.setitem(sys.modules, "rich.progress", None)  # to import it would fail
    monkeypatch.setattr(progress_bar, "FIRST_SECONDS", 0.0)
    run[0]()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(rf"gpusoftmax: {run[1]}.* s\n", shown.err)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_nothing_is_shown_where_standard_error_is_closed(monkeypatch, run):
    monkeypatch.setattr(sys, "stderr", None)
    run[0]()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_bar_and_a_line_on_a_terminal(terminal, draws_at_once, run):
    with terminal() as written:
        run[0]()
    *bars, line = written.drawn()
    assert len(bars) >= (2 if run is RUNS["fit"] else 1)
    assert any("━" in bar for bar in bars)
    assert line.startswith(f"gpusoftmax: {run[1]}")
    assert "━" not in line


def test_a_fit_shows_objective_gradient_passes_and_rows(terminal, draws_at_once):
    with terminal() as written:
        clf = SoftmaxRegression(verbose=1).fit(X, Y)
    assert max(map(len, written.drawn()[:-1])) <= 80
    pattern = r"objective [\d.]+, gradient \d\.\de[+-]\d+, \d+ passes, [\d.]+[kM]? rows/s, [\de.-]+ s"
    assert all(re.search(pattern, bar) for bar in written.drawn())
    assert f"objective {clf.objective_:.6g}, gradient {clf.gradient_norm_:.1e}" in written.drawn()[-1]
    assert f"{clf.n_passes_:.0f} passes" in written.drawn()[-1]


def test_quick_fits_draw_no_bar(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr(progress_bar, "FIRST_SECONDS", 60.0)
    with terminal() as written:
        SoftmaxRegression(verbose=1).fit(X, Y)
    assert len(written.drawn()) == 1


def test_nothing_is_written_unless_asked_for(terminal, draws_at_once):
    with terminal() as written:
        SoftmaxRegression().fit(X, Y)
        sweep(X, Y, Cs=2)
    assert written.getvalue() == ""


def test_an_error_ends_the_bar_without_a_line(terminal, draws_at_once):
    bars = []

    class Failing(ProgressBar):
        def hear(self, progress):
            super().hear(progress)
            bars.append(self)
            raise KeyError

    with terminal() as written, pytest.raises(KeyError), Failing(1, n_rows=10, tol=1e-4, is_shown=True) as bar:
        bar.hear(progress(1.0))
    assert not bars[0]._bar.live.is_started
    assert "objective" in written.getvalue()
    assert "gpusoftmax" not in written.getvalue()


@pytest.mark.parametrize("draw_seconds", [0.001, 0.02])
def test_drawing_takes_less_than_a_hundredth_of_the_time(terminal, monkeypatch, draw_seconds):
    clock, spent = Clock(1e-5), []
    monkeypatch.setattr(progress_bar.time, "perf_counter", clock.perf_counter)

    def draw(*_, **__):
        spent.append(draw_seconds)
        clock.now += draw_seconds

    with terminal(), ProgressBar(1, n_rows=10, tol=1e-4, is_shown=True) as bar:
        bar._start = lambda: setattr(bar, "_bar", SimpleNamespace(update=draw, stop=lambda: None))
        while clock.now < 60:
            clock.now += 0.004
            bar.hear(progress(1.0))
    assert 10 <= len(spent) <= 60 / progress_bar.INTERVAL_SECONDS
    assert sum(spent) < 0.01 * 60


def test_the_bar_of_a_fit_is_the_logarithm_of_its_gradient():
    bar = ProgressBar(1, n_rows=10, tol=1e-4, is_shown=True)
    with bar:
        shares = []
        for gradient in (1.0, 1e-1, 1e-3, 1e-2, 1e-4, 1e-5):
            bar.hear(progress(gradient))
            shares.append(bar._share())
    np.testing.assert_allclose(shares, [0, 0.25, 0.75, 0.75, 1, 1], atol=1e-12)


@pytest.mark.parametrize("tol", [0.0, 1e-4])
@pytest.mark.parametrize("gradient", [0.0, 1e-5, np.inf, np.nan])
def test_odd_gradients_make_an_empty_or_a_full_bar(gradient, tol):
    with ProgressBar(1, n_rows=10, tol=tol, is_shown=True) as bar:
        bar.hear(progress(gradient))
        assert bar._share() in (0, 1)


def test_the_bar_of_a_sweep_counts_what_has_ended(capsys):
    with ProgressBar(8, n_rows=10, is_shown=True) as bar:
        bar.hear(progress(1.0, 3.0, 1))
        assert bar._share() == 1 / 8
        bar.finish(4)
        bar.hear(progress(1.0, 5.0, 2))
        assert bar._share() == 6 / 8
        bar.finish(4)
    assert "8 of 8 problems, 8 passes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (12.3, "12.3"), (999, "999"), (1234, "1.23k"), (2.5e6, "2.5M"), (7e13, "7e+04G")]
)
def test_rates_are_short(number, text):
    assert _in_short(number) == text
