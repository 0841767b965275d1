import numpy as np
import pytest
from oracle import hand_plan, make_data

from gpusoftmax.kernels.workspace import Sums, Workspace

LAYOUTS = pytest.mark.parametrize("is_class_major", [True, False], ids=["class-major", "row-major"])


@pytest.mark.parametrize(("n_rows", "expected"), [(12, (3, 4)), (8, (2, 4)), (4, (1, 4)), (3, (1, 3)), (1, (1, 1))])
def test_stacks_hold_whole_blocks_or_what_is_left(n_rows, expected):
    stack = Workspace(hand_plan(make_data(100, 3, 1, 2), block_rows=4, stack=3)).stack(n_rows)
    assert stack.row_major.shape == (*expected, 2)
    assert stack.residual.shape == (expected[0], 2, expected[1])
    assert stack.product.shape == (expected[0], 2, 3)


@LAYOUTS
@pytest.mark.parametrize("n_problems", [1, 3])
def test_places_are_those_of_the_logits(n_problems, is_class_major):
    plan = hand_plan(make_data(40, 3, n_problems, 5), is_class_major=is_class_major)
    for start, n_rows in [(0, 40)] if is_class_major else [(0, 8), (8, 8), (16, 5)]:
        chunk = Workspace(plan).chunk(start, n_rows)
        chunk.z[:] = np.arange(chunk.z.size).reshape(chunk.z.shape)
        for k in range(5):
            np.testing.assert_array_equal(chunk.flat[chunk.row_places + k * chunk.class_step], chunk.z[:, k])


@LAYOUTS
def test_views_are_made_once_and_lie_in_the_memory_of_their_rows(is_class_major):
    work = Workspace(hand_plan(make_data(40, 3, 2, 5), is_class_major=is_class_major))
    assert work.chunk(0, 8) is work.chunk(0, 8)
    one, other = work.chunk(0, 8), work.chunk(8, 8)
    for name in ("z", "flat"):
        assert np.shares_memory(getattr(one, name), work.memory(0, 8))
        assert not np.shares_memory(getattr(one, name), getattr(other, name))


@LAYOUTS
def test_sums_add_up_in_the_shape_of_params(is_class_major):
    plan = hand_plan(make_data(4, 3, 2, 5), is_class_major=is_class_major)
    one, other = Sums(plan), Sums(plan)
    other.loss += 1
    other.gradient += np.arange(30.0).reshape(3, 10)
    other.intercept += 3
    one.add(other)
    one.add(other)
    assert (one.loss == 2).all()
    params = one.as_params(np.zeros((4, 2, 5)))
    assert params.flags.c_contiguous
    np.testing.assert_array_equal(params[:-1].reshape(3, 10), 2 * np.arange(30.0).reshape(3, 10))
    assert (params[-1] == 6).all()
    assert one.as_params(np.zeros((4, 2, 5), np.float32)).dtype == np.float32
