import math
import re
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oracle import FLOAT32, FLOAT64, hand_plan, make_data

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.kernels.curvature import CurvatureSums
from gpusoftmax.kernels.workspace import Sums, Workspace
from gpusoftmax.plan import METRIC_ROWS, DeviceFacts, metric_sample, plan_fit, plan_pass, plan_row_space
from gpusoftmax.sources import ArraySource

SIZES = st.tuples(
    st.one_of(st.integers(1, 50), st.integers(1, 3_000_000)),  # rows
    st.one_of(st.integers(1, 20), st.integers(1, 9000)),  # features
    st.one_of(st.integers(1, 4), st.integers(1, 300)),  # problems
    st.one_of(st.integers(1, 10), st.integers(1, 3000)),  # classes
    st.sampled_from([FLOAT32, FLOAT64]),
)
FACTS = st.builds(DeviceFacts, st.integers(1, 64), st.sampled_from([1 << 15, 1 << 20, 1 << 24]))
KIND = st.fixed_dictionaries({"is_soft": st.booleans(), "is_direct": st.booleans()})
BUDGET = st.floats(10, 36).map(lambda exponent: int(2**exponent))


def named_budget(error):
    return int(re.search(r"memory_budget=(\d+)\.$", str(error)).group(1))


def rows_of(plan):
    return [range(rows.start, rows.stop) for lane in range(plan.n_lanes) for rows in plan.tasks(lane)]


def assert_sound(plan):
    """Check what every plan promises, and that its tasks, of all lanes together, hold each row once."""
    assert 1 <= plan.block_rows <= plan.task_rows <= plan.n_rows
    assert plan.task_rows % plan.block_rows == 0 or plan.task_rows == plan.n_rows
    assert 1 <= plan.n_lanes <= plan.n_tasks
    assert plan.n_threads >= 1
    assert plan.is_shared or plan.n_threads <= plan.n_lanes
    assert not (plan.is_shared and plan.is_class_major)
    tasks = sorted(rows_of(plan), key=lambda rows: rows.start)
    assert len(tasks) - plan.n_tasks in (0, 1)  # rows that fill no block are a task of their own
    assert all(len(rows) % plan.block_rows == 0 for rows in tasks[:-1])
    assert len(tasks[-1]) % plan.block_rows == 0 or len(tasks[-1]) < plan.block_rows
    assert tasks[0].start == 0
    assert tasks[-1].stop == plan.n_rows
    assert all(one.stop == other.start for one, other in pairwise(tasks))
    assert all(0 < len(rows) <= plan.task_rows for rows in tasks)


class TestPlanPass:
    @given(SIZES, FACTS, KIND)
    def test_every_row_belongs_to_one_task(self, sizes, facts, kind):
        plan = plan_pass(*sizes, facts, **kind)
        assume(plan.n_tasks < 20_000)
        assert_sound(plan)

    @example((21_025, 986, 1, 10, FLOAT64), DeviceFacts(32, 32768), {"is_soft": False, "is_direct": False}, 1 << 27)
    @given(SIZES, FACTS, KIND, BUDGET)
    def test_budget_is_kept_or_a_budget_that_works_is_named(self, sizes, facts, kind, budget):
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError as error:
            named = named_budget(error)
            assert named > budget
            plan = plan_pass(*sizes, facts, budget_bytes=named, **kind)
            assert plan.workspace_bytes <= named
        else:
            assert plan.workspace_bytes <= budget
        assume(plan.n_tasks < 20_000)
        assert_sound(plan)

    @pytest.mark.parametrize("n_threads", [1, 3])
    @pytest.mark.parametrize("percent", range(2, 100, 3))
    def test_any_share_of_what_runs_best_gives_a_sound_plan(self, percent, n_threads):
        sizes = (1_000_003, 10, 1, 3, FLOAT32, DeviceFacts(n_threads))
        free = plan_pass(*sizes)
        assert free.task_rows > 4 * free.block_rows
        budget = free.workspace_bytes * percent // 100
        plan = plan_pass(*sizes, budget_bytes=budget)
        assert plan.workspace_bytes <= budget
        assert_sound(plan)

    @given(SIZES, FACTS, KIND, BUDGET, st.integers(0, 1 << 20))
    def test_reserved_bytes_are_left_alone(self, sizes, facts, kind, budget, reserved):
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=budget, reserved_bytes=reserved, **kind)
        except WorkspaceError as error:
            budget = named_budget(error)
            plan = plan_pass(*sizes, facts, budget_bytes=budget, reserved_bytes=reserved, **kind)
        assert plan.workspace_bytes + reserved <= budget

    @given(SIZES, FACTS, KIND, BUDGET, BUDGET)
    def test_more_budget_never_means_smaller_blocks(self, sizes, facts, kind, one, other):
        try:
            small = plan_pass(*sizes, facts, budget_bytes=min(one, other), **kind)
        except WorkspaceError:
            return
        large = plan_pass(*sizes, facts, budget_bytes=max(one, other), **kind)
        free = plan_pass(*sizes, facts, **kind)
        for name in ("block_rows", "task_rows", "n_threads"):
            assert getattr(small, name) <= getattr(large, name) <= getattr(free, name)

    @given(SIZES, FACTS, KIND)
    def test_a_generous_budget_changes_nothing(self, sizes, facts, kind):
        free = plan_pass(*sizes, facts, **kind)
        bound = plan_pass(*sizes, facts, budget_bytes=free.workspace_bytes, **kind)
        assert replace(bound, budget_bytes=None) == free

    @given(SIZES, FACTS, KIND, st.integers(1, 5))
    def test_with_problems_is_the_plan_made_for_that_many(self, sizes, facts, kind, n_problems):
        options = {"budget_bytes": 1 << 40, "reserved_bytes": 77, **kind}
        n_rows, n_features, _, n_classes, dtype = sizes
        actual = plan_pass(*sizes, facts, **options).with_problems(n_problems)
        assert actual == plan_pass(n_rows, n_features, n_problems, n_classes, dtype, facts, **options)

    @given(SIZES, FACTS, KIND, BUDGET)
    @example((1, 4, 4, 2161, FLOAT32), DeviceFacts(1), {"is_soft": False, "is_direct": True}, 440_871)
    def test_fewer_problems_fit_where_more_did(self, sizes, facts, kind, budget):
        # Problems that have ended leave the stack in the middle of a fit, which must not fail for want of memory.
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError:
            return
        for n_problems in {1, plan.n_problems // 2 or 1, max(1, plan.n_problems - 1)}:
            assert plan.with_problems(n_problems).workspace_bytes <= budget

    def test_small_gradients_are_summed_in_float64_and_large_ones_in_the_compute_dtype(self):
        assert plan_pass(1000, 10, 1, 3, FLOAT32, DeviceFacts()).gradient_dtype == FLOAT64
        assert plan_pass(1000, 4000, 1, 1000, FLOAT32, DeviceFacts()).gradient_dtype == FLOAT32

    def test_threads_share_a_gradient_that_is_enormous(self):
        narrow = plan_pass(10**6, 50, 1, 3, FLOAT32, DeviceFacts(8))
        assert narrow.n_threads == 8
        assert not narrow.is_shared
        wide = plan_pass(10**6, 8000, 1, 3000, FLOAT32, DeviceFacts(8))
        assert wide.n_threads == 8
        assert wide.is_shared
        assert wide.n_lanes == 1
        assert wide.workspace_bytes < 3 * 8000 * 3000 * 4

    @given(SIZES, FACTS, KIND)
    def test_columns_of_the_gradient_are_multiplied_once(self, sizes, facts, kind):
        plan = plan_pass(*sizes, facts, **kind)
        columns = [range(plan.n_columns)[part] for part in plan.columns()]
        assert columns[0].start == 0
        assert columns[-1].stop == plan.n_columns
        assert all(one.stop == other.start for one, other in pairwise(columns))
        assert all(0 < len(part) * plan.n_features <= plan.product_size for part in columns)

    @pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
    @pytest.mark.parametrize(
        "shape", [(2_000_000, 16, 3), (1_000_000, 32, 10), (20_000, 1024, 100), (50_000, 768, 1000), (60_000, 784, 10)]
    )
    def test_lanes_have_equal_work(self, shape, n_threads):
        n_rows, n_features, n_classes = shape
        plan = plan_pass(n_rows, n_features, 1, n_classes, FLOAT32, DeviceFacts(n_threads))
        work = [sum(rows.stop - rows.start for rows in plan.tasks(lane)) for lane in range(plan.n_lanes)]
        assert max(work) <= 1.02 * n_rows / plan.n_lanes + plan.task_rows * (plan.n_threads > 1)
        assert plan.n_lanes % plan.n_threads == 0

    @given(SIZES, FACTS, KIND, BUDGET)
    def test_a_plan_by_rows_needs_no_more_and_shares_nothing(self, sizes, facts, kind, budget):
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError:
            return
        by_rows = plan.by_rows()
        assert not by_rows.is_shared
        assert by_rows.n_threads * by_rows.task_bytes <= plan.task_bytes * (1 if plan.is_shared else plan.n_threads)
        assume(by_rows.n_tasks < 20_000)
        assert_sound(by_rows)

    def test_blocks_need_no_packing_where_blas_can_do_without(self):
        small = plan_pass(200_000, 784, 1, 10, FLOAT32, DeviceFacts(2, unpacked_size=1_000_000))
        assert small.block_rows * 784 * 10 <= 1_000_000
        assert plan_pass(200_000, 784, 1, 10, FLOAT32, DeviceFacts(2, unpacked_size=0)).block_rows > 300

    def test_a_tiny_pass_stays_on_one_thread(self):
        plan = plan_pass(100, 5, 1, 3, FLOAT32, DeviceFacts(8))
        assert plan.n_threads == plan.n_lanes == 1

    def test_a_plan_does_not_depend_on_its_thread_for_its_sums(self):
        # The lane of a task is a matter of its number alone: sums are the same whichever thread runs it.
        plan = plan_pass(1_000_000, 10, 1, 3, FLOAT64, DeviceFacts(3))
        assert plan.n_lanes > 3
        for lane in range(plan.n_lanes):
            starts = [rows.start // plan.task_rows for rows in plan.tasks(lane) if rows.start % plan.task_rows == 0]
            assert starts == list(range(lane, plan.n_tasks, plan.n_lanes))

    def test_error_says_what_was_given_and_what_to_do(self):
        with pytest.raises(
            WorkspaceError, match=r"memory_budget=10 bytes .* 7 features, 2 problems and 3 classes.* at le"
        ):
            plan_pass(100, 7, 2, 3, FLOAT64, DeviceFacts(), budget_bytes=10)

    def test_explain(self):
        plan = plan_pass(1_123_456, 10, 1, 3, FLOAT32, DeviceFacts(4))
        text = plan.explain()
        for mention in (
            "1,123,456 rows",
            f"{plan.n_tasks:,} tasks of {plan.task_rows:,}",
            f"({plan.block_rows:,} rows a block)",
            f"{plan.n_lanes} lanes on 4 threads",
            "logits class-major in float32",
            "gradient summed in float64",
            f"workspace {plan.workspace_bytes / 1e6:.1f} MB",
        ):
            assert mention in text
        wide = plan_pass(100_000, 8000, 1, 3000, FLOAT32, DeviceFacts(2)).explain()
        assert "shared by 2 threads; logits row-major in float32, gradient summed in float32" in wide


class TestWorkspaceBytes:
    @given(SIZES, FACTS, KIND, BUDGET)
    def test_bound_the_buffers_that_are_allocated(self, sizes, facts, kind, budget):
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=min(budget, 1 << 26), **kind)
        except WorkspaceError:
            return
        work, sums = Workspace(plan), Sums(plan)
        vectors = work.vectors[plan.n_spare_vectors :]
        own = [work.scratch, work.soft, *vectors, work.places, work.product, work.ones]
        of_task = [work.logits, *([] if work.rows is None else [work.rows])]
        assert sum(buffer.nbytes for buffer in own) <= plan.thread_bytes
        assert sum(buffer.nbytes for buffer in of_task) <= plan.task_bytes
        assert sums.gradient.nbytes + sums.intercept.nbytes <= plan.lane_bytes

    @pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
    @pytest.mark.parametrize("is_direct", [True, False])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("weights", [None, "each"])
    @pytest.mark.parametrize("targets", ["labels", "soft"])
    @pytest.mark.parametrize("shape", [(20_000, 5, 1, 2), (20_000, 5, 4, 3), (5000, 30, 1, 100)], ids=str)
    def test_bound_the_memory_of_an_evaluation(self, shape, targets, weights, label_smoothing, is_direct, dtype):
        data = make_data(*shape, targets=targets, weights=weights).cast(dtype)
        X = data.X if is_direct else data.X.astype(np.float16)
        source = ArraySource(X, data.targets, data.weights, dtype)
        plan = plan_pass(*shape, dtype, DeviceFacts(1), is_soft=targets == "soft", is_direct=source.is_direct)
        NumpyBackend().fused_pass(source, plan).loss_and_gradient(
            data.params, label_smoothing
        )  # what is made only once
        tracemalloc.start()
        try:
            NumpyBackend().fused_pass(source, plan).loss_and_gradient(data.params, label_smoothing)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        results = 3 * data.params.size * 8
        assert peak <= plan.workspace_bytes + results + 20_000


class TestPlanFit:
    @given(SIZES, FACTS, KIND, BUDGET)
    def test_budget_is_kept_or_a_budget_that_works_is_named(self, sizes, facts, kind, budget):
        try:
            plan, metric = plan_fit(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError as error:
            budget = named_budget(error)
            plan, metric = plan_fit(*sizes, facts, budget_bytes=budget, **kind)
        assert plan.workspace_bytes + metric.workspace_bytes <= budget

    @given(SIZES, FACTS, KIND, BUDGET, BUDGET)
    def test_more_budget_never_fails_where_less_did_not(self, sizes, facts, kind, one, other):
        try:
            plan_fit(*sizes, facts, budget_bytes=min(one, other), **kind)
        except WorkspaceError:
            return
        plan_fit(*sizes, facts, budget_bytes=max(one, other), **kind)

    @given(SIZES, FACTS, KIND)
    def test_without_a_budget_the_pass_is_the_plan_of_the_pass(self, sizes, facts, kind):
        plan, metric = plan_fit(*sizes, facts, **kind)
        assert plan == plan_pass(*sizes, facts, **kind)
        n_sample = metric_sample(sizes[0], sizes[1])
        assert 1 <= metric.block_rows <= n_sample <= sizes[0]
        assert n_sample >= min(sizes[0], METRIC_ROWS)

    @given(SIZES, FACTS, KIND, BUDGET)
    def test_metric_bytes_grow_with_what_it_holds(self, sizes, facts, kind, budget):
        try:
            _, metric = plan_fit(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError:
            return
        _, n_features, n_problems, n_classes, dtype = sizes
        held = CurvatureSums(np, min(n_features, 1500), n_problems, min(n_classes, 300), metric)
        if n_features <= 1500 and n_classes <= 300:
            rows = metric.block_rows * (n_features + n_problems * n_classes) * dtype.itemsize
            sums = held.gram.nbytes + held.classes.nbytes + held.weight.nbytes
            sums += 0 if held.offsets is None else held.offsets.nbytes
            assert sums + rows <= metric.workspace_bytes

    def test_factors_too_large_for_the_budget_are_diagonal(self):
        sizes = (10_000, 400, 1, 100, FLOAT64)
        kinds = set()
        for budget in np.geomspace(5e4, 5e7, 40).astype(int).tolist():
            try:
                _, metric = plan_fit(*sizes, DeviceFacts(), budget_bytes=budget)
            except WorkspaceError:
                continue
            kinds.add((metric.is_feature_full, metric.is_class_full))
        assert kinds == {(False, False), (False, True), (True, True)}

    def test_factors_too_large_for_an_eigenproblem_are_diagonal(self):
        _, metric = plan_fit(10_000, 5000, 1, 1000, FLOAT64, DeviceFacts())
        assert not metric.is_feature_full
        assert not metric.is_class_full

    @pytest.mark.parametrize(("n_features", "is_full"), [(255, True), (256, False)])
    def test_orthogonal_features_want_no_factor_but_where_it_is_cheap(self, n_features, is_full):
        _, metric = plan_fit(1000, n_features, 1, 3, FLOAT64, DeviceFacts(), is_orthogonal=True)
        assert metric.is_feature_full == is_full
        _, metric = plan_fit(1000, n_features, 1, 3, FLOAT64, DeviceFacts())
        assert metric.is_feature_full


class TestRowSpace:
    @pytest.mark.parametrize(
        ("n_rows", "n_features", "pays"),
        [
            (9, 256, False),
            (9, 257, True),
            (999, 1198, False),
            (999, 1199, True),
            (2047, 9999, True),
            (2048, 9999, False),
        ],
    )
    def test_pays_where_features_outnumber_rows_and_an_eigenproblem_of_the_rows_is_quick(
        self, n_rows, n_features, pays
    ):
        assert (plan_row_space(n_rows, n_features, math.inf) is not None) == pays

    @pytest.mark.parametrize("n_rows", [1, 30, 2000])
    def test_reads_a_few_megabytes_at_a_time(self, n_rows):
        block_features, workspace_bytes = plan_row_space(n_rows, 3000, math.inf)
        assert 1 <= block_features <= 3000
        assert 8 * n_rows * block_features <= 2**22 + 8 * n_rows
        assert plan_row_space(n_rows, 3000, 2 * workspace_bytes) == (block_features, workspace_bytes)
        assert plan_row_space(n_rows, 3000, 2 * workspace_bytes - 1) is None


@pytest.mark.parametrize("block_rows", [1, 3, 10, 64, None])
@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("n_lanes", [1, 2, 5, 16])
@pytest.mark.parametrize("n_rows", [1, 2, 37, 64, 101])
def test_tasks_of_any_plan_hold_every_row_once(n_rows, n_lanes, stack, block_rows):
    plan = hand_plan(make_data(n_rows, 2, 1, 2), block_rows=block_rows, stack=stack, n_lanes=n_lanes)
    rows = [row for task in rows_of(plan) for row in task]
    assert sorted(rows) == list(range(n_rows))
