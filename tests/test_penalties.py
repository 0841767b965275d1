import numpy as np
import pytest
from oracle import assert_close, complex_step

from gpusoftmax.backends.cpu import NumpyBackend
from gpusoftmax.penalties import L2

NUMPY = NumpyBackend()
STRENGTH = np.array([0.0, 0.5, 3.0])
W = np.random.default_rng(0).normal(size=(4, 3, 5))


def test_value_is_half_the_squared_norm_times_the_strength():
    expected = [s / 2 * sum(w**2 for w in W[:, p].ravel()) for p, s in enumerate(STRENGTH)]
    value = L2(NUMPY, STRENGTH).value(W)
    assert value.dtype == np.float64
    assert_close(value, expected, 1e-14)


def test_gradient_is_the_derivative_of_the_value():
    gradient = np.zeros_like(W)
    L2(NUMPY, STRENGTH).add_gradient(W, gradient)
    assert_close(gradient, complex_step(lambda params: STRENGTH / 2 * (params**2).sum(axis=(0, 2)), W), 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_is_added_in_place_and_in_its_dtype(dtype):
    coefficients, gradient = W.astype(dtype), np.ones(W.shape, dtype)
    given = gradient
    L2(NUMPY, STRENGTH).add_gradient(coefficients, gradient)
    assert gradient is given
    assert gradient.dtype == dtype
    assert_close(gradient, 1 + STRENGTH[:, np.newaxis] * W, 1e-6)


def test_float32_coefficients_are_squared_and_summed_in_float64():
    coefficients = np.full((1000, 1, 1000), 0.1, np.float32)
    np.testing.assert_allclose(
        L2(NUMPY, np.array([2.0])).value(coefficients), [1e6 * float(np.float32(0.1)) ** 2], rtol=1e-12
    )


def test_overflow_is_infinite_and_a_zero_strength_stays_zero():
    np.testing.assert_array_equal(L2(NUMPY, STRENGTH).value(np.full((2, 3, 2), 1e200)), [0.0, np.inf, np.inf])


def test_select():
    chosen = L2(NUMPY, STRENGTH).select(np.array([2, 0]))
    assert_close(chosen.value(W[:, [2, 0]]), L2(NUMPY, STRENGTH).value(W)[[2, 0]], 1e-15)
