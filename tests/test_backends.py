import contextlib
import linecache
import os
import signal
import sys
import threading

import numpy as np
import pytest
from oracle import FLOAT64, assert_close, hand_plan, make_data
from threadpoolctl import threadpool_info

from gpusoftmax.backends import cpu
from gpusoftmax.backends.choice import get_backend
from gpusoftmax.backends.cpu import NumpyBackend, _Crew
from gpusoftmax.kernels import reference
from gpusoftmax.plan import DeviceFacts, MetricPlan
from gpusoftmax.sources import ArraySource


def made_pass(data, **options):
    source = ArraySource(data.X, data.targets, data.weights, FLOAT64)
    return NumpyBackend().fused_pass(source, hand_plan(data, **options))


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_lanes", [3, 5])
def test_lanes_add_up_to_the_reference(n_lanes, n_threads):
    data = make_data(101, 7, 2, 3, weights="each")
    fused_pass = made_pass(data, block_rows=4, stack=2, n_lanes=n_lanes, n_threads=n_threads)
    loss, gradient = fused_pass.loss_and_gradient(data.params, 0.1)
    expected = reference.loss_and_gradient(data.X, data.targets, data.full_weights(), data.params, 0.1)
    assert_close(loss, expected[0], 1e-13)
    assert_close(gradient, expected[1], 1e-13)


def test_threads_do_not_change_a_bit():
    data = make_data(1009, 7, 2, 3, weights="each")
    alone = made_pass(data, block_rows=16, n_lanes=6).loss_and_gradient(data.params, 0.0)
    for n_threads in (2, 3, 6):
        together = made_pass(data, block_rows=16, n_lanes=6, n_threads=n_threads)
        for _ in range(5):
            for one, other in zip(together.loss_and_gradient(data.params, 0.0), alone, strict=True):
                np.testing.assert_array_equal(one, other)


def test_every_thread_has_its_own_workspace_and_every_item_is_done_once():
    plan = hand_plan(make_data(120, 2, 1, 2), block_rows=2, n_lanes=6, n_threads=3)
    crew, in_use, done, lock = _Crew(plan, shares_tasks=False), set(), [], threading.Lock()

    def run(item, work):
        for _ in range(5):
            with lock:
                assert id(work) not in in_use
                in_use.add(id(work))
            threading.Event().wait(0.001)
            with lock:
                in_use.remove(id(work))
            yield
        done.append(item)

    crew.map(run, range(20))
    assert sorted(done) == list(range(20))


@pytest.mark.parametrize("shares_tasks", [True, False])
def test_only_tasks_that_are_shared_share_memory(shares_tasks):
    plan = hand_plan(make_data(120, 2, 1, 2), n_threads=2, is_direct=False)
    one, other = _Crew(plan, shares_tasks=shares_tasks).workspaces
    for name in ("logits", "rows"):
        assert np.shares_memory(getattr(one, name), getattr(other, name)) == shares_tasks
    for name in ("scratch", "places", "product"):
        assert not np.shares_memory(getattr(one, name), getattr(other, name))
    assert not any(np.shares_memory(*vectors) for vectors in zip(one.vectors, other.vectors, strict=True))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_error_in_any_item_ends_the_work_and_the_next_goes_on(n_threads):
    plan = hand_plan(make_data(120, 2, 1, 2), block_rows=1, n_lanes=n_threads, n_threads=n_threads)
    crew, done = _Crew(plan, shares_tasks=False), []

    def run(item, work):
        for step in range(200):
            if (item, step) == (0, 3):
                raise KeyError("item 0")
            threading.Event().wait(0.001)
            done.append((item, step))
            yield

    with pytest.raises(KeyError, match="item 0"):
        crew.map(run, range(3))
    assert len(done) < 100
    done.clear()
    crew.map(run, (1, 2))
    assert len(done) == 400


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("task_rows", [8, 40, 101])
@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("n_classes", [3, 70])
def test_threads_that_share_a_gradient_give_the_reference(n_classes, is_soft, task_rows, n_threads):
    data = make_data(101, 7, 2, n_classes, weights="each", targets="soft" if is_soft else "labels")
    plan = {"block_rows": 8, "n_threads": n_threads, "is_shared": True, "is_class_major": False}
    fused_pass = made_pass(data, task_rows=task_rows, facts=DeviceFacts(n_threads, cache_bytes=4096), **plan)
    loss, gradient = fused_pass.loss_and_gradient(data.params, 0.1)
    expected = reference.loss_and_gradient(data.X, data.targets, data.full_weights(), data.params, 0.1)
    assert_close(loss, expected[0], 1e-13)
    assert_close(gradient, expected[1], 1e-13)
    again = fused_pass.loss_and_gradient(data.params, 0.1)
    for one, other in zip((loss, gradient), again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_of_a_shared_pass_survive_the_next():
    data = make_data(53, 3, 2, 4)
    fused_pass = made_pass(data, block_rows=8, n_threads=2, is_shared=True, is_class_major=False)
    _, gradient = fused_pass.loss_and_gradient(data.params, 0.0)
    before = gradient.copy()
    fused_pass.loss_and_gradient(-data.params, 0.0)
    np.testing.assert_array_equal(gradient, before)


def test_facts_know_which_products_blas_does_not_pack():
    facts = NumpyBackend().facts()
    kernels = {library.get("architecture") for library in threadpool_info() if library["internal_api"] == "openblas"}
    assert facts.unpacked_size == (1_000_000 if kernels & {"SkylakeX", "Cooperlake", "SapphireRapids"} else 0)
    assert NumpyBackend().facts() == facts


def test_blas_gets_its_threads_back():
    before = blas_threads()
    data = make_data(101, 7, 1, 3)
    fused_pass = made_pass(data, block_rows=4, n_lanes=3, n_threads=3)
    fused_pass.loss_and_gradient(data.params, 0.0)
    assert blas_threads() == before
    with NumpyBackend().session():
        assert set(blas_threads()) <= {1}
        fused_pass.loss_and_gradient(data.params, 0.0)
        assert set(blas_threads()) <= {1}
        assert NumpyBackend().facts().n_threads == max(before, default=1)
    assert blas_threads() == before


def interrupt_at(n_lines):
    """Raise KeyboardInterrupt at a line of backends/cpu.py, the next being the first.

    Python is back at the line of a `with` before it leaves the block, where a signal would wait until it has been left.
    """
    left, locked = iter(range(n_lines - 1)), set()

    def trace(frame, event, _):
        code = frame.f_code
        if code.co_filename != cpu.__file__:
            return None
        if event == "call":
            locked.discard(code)
        is_lock = "with self._lock" in linecache.getline(cpu.__file__, frame.f_lineno)
        if event == "line" and not (is_lock and code in locked):
            if next(left, None) is None:
                sys.settrace(None)
                raise KeyboardInterrupt
            if is_lock:
                locked.add(code)
        return trace

    sys.settrace(trace)


def test_blas_gets_its_threads_back_wherever_ctrl_c_comes():
    before, tracer, n_interrupts, n_waiting = blas_threads(), sys.gettrace(), 0, 0
    is_over = False
    while not is_over:
        try:
            interrupt_at(n_interrupts + 1)
            with NumpyBackend().session():
                pass
            is_over = True
        except KeyboardInterrupt as error:
            n_interrupts += 1
            sys.settrace(tracer)
            assert NumpyBackend().facts().n_threads == max(before, default=1)
            n_waiting += blas_threads() != before
            del error  # until here its traceback was kept, as notebooks do
        finally:
            sys.settrace(tracer)
        assert NumpyBackend().facts().n_threads == max(before, default=1)
        assert blas_threads() == before
        with NumpyBackend().session():
            assert set(blas_threads()) <= {1}
        assert blas_threads() == before
    assert n_interrupts > 20
    assert n_waiting <= 1  # at the first line of `__exit__`


def test_a_user_of_blas_that_never_began_is_forgotten():
    before = blas_threads()
    cpu._OneBlasThread().__enter__()
    assert NumpyBackend().facts().n_threads == max(before, default=1)
    assert blas_threads() == before


def exit_code_of_child(run):
    """Fork, and return how the child ended: 0 if `run` returned true there within a while."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        with contextlib.suppress(BaseException):
            os._exit(not run())
        os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_changing", [False, True])
def test_a_child_has_blas_for_itself_whatever_other_threads_did_with_it(monkeypatch, is_changing):
    before, control, has_begun, is_over = blas_threads(), cpu._control_openblas, threading.Event(), threading.Event()

    def linger():
        has_begun.set()
        is_over.wait(0.5)
        control()

    def fit():
        with NumpyBackend().session():
            has_begun.set()
            is_over.wait()

    def fits_anew():
        monkeypatch.undo()
        found = blas_threads()
        with NumpyBackend().session():
            held = set(blas_threads())
        return found == blas_threads() == before and held <= {1}

    if is_changing:
        monkeypatch.setattr(cpu, "_control_openblas", linger)
    thread = threading.Thread(target=fit)
    thread.start()
    has_begun.wait()
    try:
        assert exit_code_of_child(fits_anew) == 0
    finally:
        is_over.set()
        thread.join()
    assert blas_threads() == before


@pytest.mark.parametrize("n_lanes", [1, 2, 3])
def test_lanes_of_the_curvature_add_up_to_the_reference(n_lanes):
    data = make_data(67, 5, 3, 4, weights="each")
    rows = np.arange(0, 67, 2)
    sums = made_pass(data).curvature(data.params, np.ones(5), MetricPlan(FLOAT64, 7, n_lanes, True, True, 0), rows)
    gram, classes = reference.curvature(data.X[rows], data.full_weights()[rows], data.params)
    assert_close(sums.gram, gram, 1e-13)
    assert_close(sums.classes, classes, 1e-13)
    assert_close(sums.weight, data.full_weights()[rows].sum(axis=0), 1e-14)


@pytest.mark.parametrize("weights", [None, "shared", "each"])
def test_select_is_the_pass_of_those_problems(weights):
    data = make_data(101, 7, 3, 4, weights=weights)
    fused_pass = made_pass(data)
    loss, gradient = fused_pass.loss_and_gradient(data.params, 0.0)
    kept = np.array([2, 0])
    chosen_loss, chosen = fused_pass.select(kept).loss_and_gradient(data.params[:, kept], 0.0)
    assert_close(chosen_loss, loss[kept], 1e-13)
    assert_close(chosen, gradient[:, kept], 1e-13)


def test_unknown_device():
    assert get_backend("auto").name == get_backend("cpu").name == "cpu"
    with pytest.raises(ValueError, match="device='tpu' is unknown"):
        get_backend("tpu")
