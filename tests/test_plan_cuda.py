import re
from dataclasses import replace

import numpy as np
import pytest
from cuda_device import cuda
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import FLOAT32, FLOAT64, make_data

from gpusoftmax import plan_cuda
from gpusoftmax.exceptions import WorkspaceError
from gpusoftmax.kernels import launches
from gpusoftmax.kernels.cuda import C_INT_MAX
from gpusoftmax.plan import plan_fit
from gpusoftmax.plan_cuda import CudaFacts, plan_pass
from gpusoftmax.sources import ArraySource

GIB, MIB = 1 << 30, 1 << 20
# Capability, multiprocessors, boost clock, memory bytes/s, free bytes and opt-in shared bytes, as the drivers say them
GPUS = {
    "A100": CudaFacts(80, 108, 1.41e9, 1.555e12, 39 * GIB, 163 << 10),
    "A100 80 GB": CudaFacts(80, 108, 1.41e9, 2.039e12, 79 * GIB, 163 << 10),
    "H100 SXM": CudaFacts(90, 132, 1.98e9, 3.35e12, 79 * GIB, 227 << 10),
    "L4": CudaFacts(89, 58, 2.04e9, 0.3e12, 22 * GIB, 99 << 10),
    "RTX 4090": CudaFacts(89, 128, 2.52e9, 1.008e12, 23 * GIB, 99 << 10),
    "T4": CudaFacts(75, 40, 1.59e9, 0.32e12, 14 * GIB, 64 << 10),
}
PUBLISHED_TERAFLOPS = {  # float32 outside tensor cores; float64, on tensor cores where the card has such
    "A100": (19.5, 19.5),
    "H100 SXM": (67, 67),
    "L4": (30.3, 0.47),
    "RTX 4090": (82.6, 1.29),
    "T4": (8.1, 0.254),
}
H100 = GPUS["H100 SXM"]

SIZES = st.tuples(
    st.one_of(st.integers(1, 300), st.integers(1, 3_000_000)),  # rows
    st.one_of(st.integers(1, 70), st.integers(1, 9000)),  # features
    st.one_of(st.integers(1, 4), st.integers(1, 300)),  # problems
    st.one_of(st.integers(1, 10), st.integers(1, 3000)),  # classes
    st.sampled_from([FLOAT32, FLOAT64]),
)
FACTS = st.sampled_from(list(GPUS.values()))
KIND = st.fixed_dictionaries({"is_soft": st.booleans(), "is_direct": st.booleans()})
BUDGET = st.floats(10, 40).map(lambda exponent: int(2**exponent))

SMALL = (1797, 64, 1, 10)  # launches are what it costs
NARROW = (100_000, 32, 1, 10)
WIDE = (1_280_000, 768, 1, 1000)
HUGE = [(10**9, 64, 1, 10), (10**9, 8192, 20, 25_000), (3 * 10**9, 4, 1, 2), (10**9, 1, 300, 1), (10**6, 2, 4000, 600)]


def named_budget(error):
    return int(re.search(r"memory_budget=(\d+)\.$", str(error)).group(1))


def product_columns(plan):
    """Return the output tiles of 128 columns of X W."""
    return -(-plan.n_columns // 128)


def assert_sound(plan):
    """Check what every plan promises: whole tiles, each row once, launches and products that CUDA takes."""
    assert plan.block_rows % 64 == 0
    assert plan.block_rows < plan.n_rows + 64
    assert 1 <= plan.n_splits <= max(1, plan.block_rows // 1024)
    assert plan.n_splits <= plan.facts.n_multiprocessors
    sizes = plan.n_classes, plan.n_problems, plan.dtype
    if plan.is_one_kernel:
        launches.fused_small(plan.block_rows, *plan.kernel_sizes)  # raises where a grid is too large
    else:
        launches.residual(plan.block_rows, *sizes)
        launches.tile_losses(plan.block_rows, plan.n_problems)
        launches.column_sums(plan.block_rows, plan.n_columns, plan.dtype)
        launches.pad_classes(plan.n_features + 1, *sizes, plan.dtype)
        assert plan.n_columns % (16 // plan.dtype.itemsize) == 0
    launches.unpad_classes(plan.n_features + 1, *sizes, plan.dtype)
    launches.sum_parts((plan.n_features + 1) * plan.n_columns, plan.dtype, plan.gradient_dtype)
    assert max(plan.block_rows, plan.n_columns, plan.n_features) <= C_INT_MAX
    if plan.n_blocks < 20_000:
        blocks = list(plan.blocks())
        assert len(blocks) == plan.n_blocks
        assert [rows.start for rows in blocks] == list(range(0, plan.n_rows, plan.block_rows))
        assert [rows.stop for rows in blocks] == [*(rows.start for rows in blocks[1:]), plan.n_rows]


class TestFacts:
    @pytest.mark.parametrize("name", PUBLISHED_TERAFLOPS)
    def test_peaks_are_those_that_are_published(self, name):
        single, double = PUBLISHED_TERAFLOPS[name]
        assert GPUS[name].flops(FLOAT32) == pytest.approx(single * 1e12, rel=0.02)
        assert GPUS[name].product_flops(FLOAT64) == pytest.approx(double * 1e12, rel=0.02)

    @pytest.mark.parametrize(("capability", "like"), [(87, 86), (103, 100), (121, 120), (130, 120)])
    def test_an_unknown_architecture_is_like_the_one_before(self, capability, like):
        facts = [replace(H100, compute_capability=c) for c in (capability, like)]
        assert facts[0].flops(FLOAT32) == facts[1].flops(FLOAT32)
        assert facts[0].flops(FLOAT64) == facts[0].flops(FLOAT32) / 64  # few have many units for float64

    def test_a_driver_that_says_zero_still_gets_a_plan(self):
        plan = plan_pass(*NARROW, FLOAT32, replace(H100, clock_hz=0.0, bytes_per_second=0.0))
        assert 0 < plan.seconds < 1


class TestBlocks:
    @given(SIZES, FACTS, KIND)
    def test_every_plan_is_sound(self, sizes, facts, kind):
        assert_sound(plan_pass(*sizes, facts, **kind))

    @pytest.mark.parametrize("sizes", HUGE, ids=str)
    @pytest.mark.parametrize("facts", GPUS.values(), ids=GPUS)
    def test_huge_passes_stay_within_the_integers_of_cuda(self, sizes, facts):
        plan = plan_pass(*sizes, FLOAT32, facts)
        assert_sound(plan)
        assert_sound(plan.by_products())
        assert_sound(plan_pass(*sizes, FLOAT32, facts, budget_bytes=1 << 50))

    @given(SIZES, FACTS, KIND)
    def test_the_same_input_gives_the_same_plan(self, sizes, facts, kind):
        plan, again = (plan_pass(*sizes, facts, **kind) for _ in range(2))
        assert plan == again
        assert plan.explain() == again.explain()

    @given(SIZES, FACTS)
    def test_blocks_are_equal(self, sizes, facts):
        plan = plan_pass(*sizes, facts, may_be_one_kernel=False)
        # What whole tiles leave over; unless memory cut the blocks
        assume(plan.block_bytes < 32 * MIB)
        assert sizes[0] - (plan.n_blocks - 1) * plan.block_rows > plan.block_rows - 64 * plan.n_blocks

    @pytest.mark.parametrize("facts", GPUS.values(), ids=GPUS)
    @pytest.mark.parametrize("sizes", [NARROW, (10**7, 784, 1, 10), WIDE, (10**6, 384, 20, 100), (10**6, 64, 1, 30000)])
    def test_a_block_hides_launches_gradient_traffic_and_uneven_waves(self, sizes, facts):
        plan = plan_pass(*sizes, FLOAT32, facts, may_be_one_kernel=False)
        assert plan.n_blocks == 1 or self.is_large_enough(plan)

    @staticmethod
    def is_large_enough(plan):
        rows, size = plan.block_rows, plan.dtype.itemsize
        one_block = replace(plan, n_rows=rows)
        gradient = 2 * plan.n_features * plan.n_columns * size / plan.facts.bytes_per_second
        product = 2 * rows * plan.n_features * plan.n_columns / plan.facts.flops(plan.dtype)
        n_tiles = -(-rows // 128) * product_columns(plan)
        assert sum(one_block._device_seconds) >= 0.99 * 1.5 * 36e-6
        assert gradient <= 0.5 * product
        assert n_tiles >= 4 * plan.facts.n_multiprocessors
        return True

    @pytest.mark.parametrize(
        ("constant", "value"), [("BLOCK_LAUNCHES", 50.0), ("GRADIENT_TRAFFIC", 0.002), ("WAVES", 400)]
    )
    def test_each_rule_can_make_blocks_larger(self, constant, value, monkeypatch):
        before = plan_pass(*WIDE, FLOAT32, H100).block_rows
        monkeypatch.setattr(plan_cuda, constant, value)
        assert plan_pass(*WIDE, FLOAT32, H100).block_rows > 1.5 * before

    @pytest.mark.parametrize("facts", GPUS.values(), ids=GPUS)
    @pytest.mark.parametrize("sizes", [NARROW, (200_000, 784, 1, 10), WIDE, (100_000, 64, 1, 3), (3000, 100, 1, 3)])
    def test_rows_are_split_where_the_gradient_has_few_tiles(self, sizes, facts):
        plan = plan_pass(*sizes, FLOAT32, facts, may_be_one_kernel=False)
        n_tiles = -(-plan.n_features // 128) * product_columns(plan)
        most = max(1, plan.block_rows // 1024)
        assert plan.n_splits == max(1, min(facts.n_multiprocessors // n_tiles, most))
        assert plan.n_splits * n_tiles <= max(n_tiles, facts.n_multiprocessors)  # one wave

    def test_a_gradient_with_many_tiles_is_not_split(self):
        plan = plan_pass(100_000, 2048, 1, 2048, FLOAT32, H100)
        assert plan.n_splits == 1
        assert plan.n_parts == 0


class TestDesign:
    @pytest.mark.parametrize("facts", GPUS.values(), ids=GPUS)
    def test_a_small_pass_is_one_kernel_and_a_wide_one_is_two_products(self, facts):
        assert plan_pass(*SMALL, FLOAT32, facts).is_one_kernel
        assert not plan_pass(*WIDE, FLOAT32, facts).is_one_kernel

    @given(SIZES, FACTS, KIND)
    def test_the_faster_of_the_two_is_chosen(self, sizes, facts, kind):
        plan = plan_pass(*sizes, facts, **kind)
        assert plan.seconds <= plan.by_products().seconds
        assert not plan.by_products().is_one_kernel

    def test_little_bandwidth_favours_reading_x_once(self):
        slow = replace(H100, bytes_per_second=0.3e12)
        sizes = (1_000_000, 32, 1, 10, FLOAT32)
        assert plan_pass(*sizes, slow).is_one_kernel
        assert not plan_pass(*sizes, H100).is_one_kernel

    def test_little_shared_memory_leaves_two_products(self):
        sizes = (1000, 784, 1, 10, FLOAT32)
        assert plan_pass(*sizes, H100).is_one_kernel
        assert not plan_pass(*sizes, replace(H100, shared_bytes=48 << 10)).is_one_kernel

    def test_one_kernel_takes_all_rows_of_a_direct_x_at_once(self):
        plan = plan_pass(*NARROW, FLOAT32, H100)
        assert plan.is_one_kernel
        assert plan.n_blocks == 1
        assert plan.block_bytes == 0

    @given(SIZES, FACTS)
    def test_rows_that_are_converted_stay_within_the_workspace(self, sizes, facts):
        plan = plan_pass(*sizes, facts, is_direct=False)
        assert plan.block_rows == 64 or plan.block_rows * plan.n_features * plan.dtype.itemsize <= GIB

    def test_a_converted_x_of_one_kernel_is_never_copied_whole(self):
        # The model would take two products; what is tested is that one kernel would keep the bound too.
        sizes = (10**8, 8, 1, 4, FLOAT32, replace(GPUS["L4"], bytes_per_second=1e11))
        plan = plan_pass(*sizes, is_direct=False)
        assert plan.is_one_kernel
        assert plan.n_blocks > 1
        assert GIB // 4 < plan.block_rows * 8 * 4 <= GIB

    def test_converting_is_in_the_model(self):
        direct, converted = (plan_pass(*WIDE, FLOAT32, H100, is_direct=is_direct) for is_direct in (True, False))
        assert converted.moved_bytes == direct.moved_bytes + 4 * WIDE[0] * WIDE[1] * 4

    def test_the_model_counts_every_read_and_write(self):
        n_rows, sizes = 10**6, (64, 1, 8, FLOAT32)
        products = plan_pass(n_rows, *sizes, H100, may_be_one_kernel=False)
        gradient = 65 * 8 * (2 * 8 + 2 * 4 * products.n_parts)  # in float64, and its parts
        rows = n_rows * (4 * (2 * 64 + 5 * 8) + 4)  # X twice; logits written, read, overwritten, read twice; labels
        assert products.moved_bytes == rows + products.n_blocks * gradient
        one = replace(products, is_one_kernel=True, block_rows=10**6, n_splits=1)
        assert one.moved_bytes == n_rows * (4 * 64 + 4) + 65 * 8 * (2 * 8 + 2 * 4 * 128)

    def test_few_classes_cost_a_whole_tile(self):
        slow = replace(H100, clock_hz=1e6)
        few, many, more = (plan_pass(10**5, 64, 1, k, FLOAT32, slow, may_be_one_kernel=False) for k in (2, 32, 64))
        assert few.seconds == pytest.approx(many.seconds, rel=1e-2)
        assert more.seconds == pytest.approx(2 * many.seconds, rel=1e-2)

    @pytest.mark.parametrize(
        ("sizes", "bound"), [(SMALL, "launches"), (WIDE, "arithmetic"), ((10**7, 64, 1, 4), "mem")]
    )
    def test_bound(self, sizes, bound):
        assert plan_pass(*sizes, FLOAT32, H100).bound.startswith(bound)

    def test_latency_bounds_the_one_kernel_where_rows_are_short(self):
        assert plan_pass(2_000_000, 16, 1, 3, FLOAT32, GPUS["L4"]).bound == "latency"

    def test_modelled_time_is_never_below_the_floors(self):
        for facts in GPUS.values():
            plan = plan_pass(*WIDE, FLOAT32, facts)
            n_rows, n_features, _, n_classes = WIDE
            assert plan.seconds > 4 * n_rows * n_features * n_classes / facts.flops(FLOAT32)
            assert plan.seconds > n_rows * n_features * 4 / facts.bytes_per_second


class TestWorkspace:
    @given(SIZES, FACTS, KIND, BUDGET, st.integers(0, 1 << 20))
    def test_budget_is_kept_or_a_budget_that_works_is_named(self, sizes, facts, kind, budget, reserved):
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=budget, reserved_bytes=reserved, **kind)
        except WorkspaceError as error:
            named = named_budget(error)
            assert named > budget
            plan, budget = plan_pass(*sizes, facts, budget_bytes=named, reserved_bytes=reserved, **kind), named
        assert plan.workspace_bytes + reserved <= budget
        assert plan.by_products().workspace_bytes + reserved <= budget
        assert_sound(plan)

    @pytest.mark.parametrize(
        ("free_bytes", "most"), [(1 << 20, 64 * MIB), (2 * GIB, 2 * GIB // 10), (5 * GIB, GIB // 2), (80 * GIB, GIB)]
    )
    @pytest.mark.parametrize("sizes", [(10**7, 784, 1, 10), (10**6, 8192, 20, 2500), (10**7, 4096, 1, 50_000)])
    def test_blocks_take_a_share_of_free_memory_between_floor_and_cap(self, sizes, free_bytes, most):
        plan = plan_pass(*sizes, FLOAT32, replace(H100, free_bytes=free_bytes), is_direct=False)
        assert plan.block_bytes <= most
        assert plan.block_bytes > min(most // 3, plan_pass(*sizes, FLOAT32, H100, is_direct=False).block_bytes - 1)

    def test_a_gradient_beyond_the_cap_leaves_blocks_large(self):
        # 16 GB of params and as many of gradient must not shrink blocks to 64 rows, for which they would be read again.
        plan = plan_pass(10**6, 8192, 20, 25_000, FLOAT32, H100)
        assert plan.fixed_bytes > 30e9
        assert plan.block_rows > 150

    @given(SIZES, FACTS, KIND, BUDGET)
    def test_halving_ends(self, sizes, facts, kind, budget):
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError:
            return
        while plan.block_rows > 64:
            half = plan.halved()
            assert half.block_rows <= max(64, plan.block_rows // 2 + 63)
            assert half.workspace_bytes <= plan.workspace_bytes
            assert_sound(half)
            plan = half
        with pytest.raises(MemoryError, match=str(plan.workspace_bytes)):
            plan.halved()

    @given(SIZES, FACTS, KIND, BUDGET)
    def test_fewer_problems_fit_where_more_did(self, sizes, facts, kind, budget):
        # Problems that have ended leave the stack in the middle of a fit, which must not fail for want of memory.
        try:
            plan = plan_pass(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError as error:
            budget = named_budget(error)
            plan = plan_pass(*sizes, facts, budget_bytes=budget, **kind)
        for n_problems in {1, plan.n_problems // 2 or 1, max(1, plan.n_problems - 1)}:
            fewer = plan.with_problems(n_problems)
            assert fewer.n_problems == n_problems
            assert fewer.workspace_bytes <= budget
            assert fewer.gradient_dtype == plan.gradient_dtype
            assert fewer.is_one_kernel == (plan.is_one_kernel and n_problems == plan.n_problems)
            assert_sound(fewer)

    @given(SIZES, FACTS, KIND)
    def test_products_pad_each_problem_to_16_bytes(self, sizes, facts, kind):
        plan = plan_pass(*sizes, facts, **kind).by_products()
        pack = 16 // plan.dtype.itemsize
        assert plan.class_stride % pack == 0
        assert 0 <= plan.class_stride - plan.n_classes < pack

    @given(SIZES, FACTS, KIND, BUDGET)
    def test_the_budget_that_a_fit_names_works(self, sizes, facts, kind, budget):
        try:
            plan, metric = plan_fit(*sizes, facts, budget_bytes=budget, **kind)
        except WorkspaceError as error:
            budget = named_budget(error)
            plan, metric = plan_fit(*sizes, facts, budget_bytes=budget, **kind)
        assert plan.workspace_bytes + metric.workspace_bytes <= budget

    def test_losses_of_many_rows_count(self):
        few, many = (plan_pass(n, 64, 10, 3, FLOAT32, H100, may_be_one_kernel=False) for n in (10**6, 10**9))
        assert many.fixed_bytes - few.fixed_bytes == pytest.approx(10 * (10**9 - 10**6) / 8, rel=1e-3)

    def test_small_gradients_are_summed_in_float64_and_large_ones_in_the_compute_dtype(self):
        assert plan_pass(1000, 10, 1, 3, FLOAT32, H100).gradient_dtype == FLOAT64
        assert plan_pass(1000, 4000, 1, 1000, FLOAT32, H100).gradient_dtype == FLOAT32

    def test_error_says_what_was_given_and_what_to_do(self):
        with pytest.raises(
            WorkspaceError, match=r"memory_budget=10 bytes .* 7 features, 2 problems and 3 classes.* at least memory_b"
        ):
            plan_pass(100, 7, 2, 3, FLOAT64, H100, budget_bytes=10)


class TestExplain:
    def test_two_products(self):
        plan = plan_pass(*WIDE, FLOAT32, H100)
        text = plan.explain()
        for mention in (
            "1,280,000 rows",
            f"{plan.n_blocks:,} blocks of {plan.block_rows:,}",
            "two products around residual_block<float, float, GRADIENT, 256>, XᵀG in 2 parts",
            "float32, gradient summed in float32",
            f"workspace {plan.workspace_bytes / 1e6:.1f} MB",
            "3.93e+03 GFLOP",
            f"{plan.moved_bytes / 1e9:.3g} GB moved",
            f"modelled {plan.seconds * 1e3:.3g} ms a pass, bound by arithmetic",
        ):
            assert mention in text

    def test_one_kernel(self):
        text = plan_pass(*SMALL, FLOAT32, H100).explain()
        assert text.startswith("1,797 rows in 1 block of 1,856: one kernel, fused_small<float, 64, 10, 1, 64>; float32")
        assert text.endswith("bound by launches")


PASSES = {
    "one kernel": ((1797, 8, 1, 3), {}),
    "one kernel, converted": ((300, 8, 2, 3), {"is_direct": False}),
    "two products": ((5000, 8, 2, 3), {"may_be_one_kernel": False}),
    "two products, one part": ((500, 8, 2, 3), {"may_be_one_kernel": False}),
    "two products, no parts": ((500, 3000, 1, 50), {}),
    "two products, soft and converted": ((700, 9, 2, 5), {"may_be_one_kernel": False, "is_direct": False}),
    "a block a row": ((1300, 5, 2, 600), {"may_be_one_kernel": False}),
}


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(("sizes", "options"), PASSES.values(), ids=PASSES)
def test_workspace_bytes_are_those_that_a_pass_allocates(sizes, options, dtype):
    with cuda() as machine:
        from gpusoftmax.backends.cuda import CupyBackend, CupyPass

        data = make_data(*sizes, targets="soft" if "is_direct" in options else "labels").cast(dtype)
        X = data.X if options.get("is_direct", True) else data.X.astype(np.float16)
        backend = CupyBackend()
        class_weight = np.ones((1, sizes[3])) if "is_direct" in options else None
        source = ArraySource(X, data.targets, None, dtype, class_weight=class_weight)
        if sizes[2] > 1:  # problems may share columns of weights
            source = replace(source, weights=np.ones((sizes[0], 3), dtype), columns=np.zeros(sizes[2], int))
        source = backend.place(source)
        plan = plan_pass(*sizes, dtype, H100, is_soft=data.targets.ndim == 2, **options)
        pool = backend.cupy.get_default_memory_pool()
        before = pool.used_bytes()
        fused = CupyPass(backend, source, plan)
        rows = fused._rows
        of_rows = [rows.targets, rows.weights, rows.class_weight, rows.factor]
        kept = sum(array.nbytes for array in of_rows if array is not None)
        allocated = pool.used_bytes() - before - kept
        assert machine is None or abs(allocated - plan.workspace_bytes) <= 512 * 14  # the pool rounds up
        del fused
