"""Arrays of the stand-in: CuPy's semantics, and a refusal wherever CuPy would be silent."""

import copy
import inspect

import numpy as np
import pytest

from emulator.cupy_standin import Facts, ImplicitTransfer, OutOfMemoryError, installed
from emulator.cupy_standin.errors import Refused
from emulator.ptx import Fault


@pytest.fixture
def x(cp):
    return cp.asarray(np.arange(12, dtype="f4").reshape(3, 4))


TRANSFERS = {
    "float": lambda cp, x: float(x.sum()),
    "int": lambda cp, x: int(x.argmax()),
    "bool": lambda cp, x: bool(cp.any(x)),
    "if": lambda cp, x: 1 if cp.isfinite(x).all() else 0,
    "iteration": lambda cp, x: list(x),
    "unpacking": lambda cp, x: [*x],
    "range": lambda cp, x: range(x.argmax()),
    "numpy.asarray": lambda cp, x: np.asarray(x),
    "numpy.exp": lambda cp, x: np.exp(x),
    "numpy.sum": lambda cp, x: np.sum(x),
    "numpy.concatenate": lambda cp, x: np.concatenate([x, x]),
    "tolist": lambda cp, x: x.tolist(),
    "pickle": lambda cp, x: copy.copy(x).__reduce_ex__(4),
    "format": lambda cp, x: f"{float(x[0, 0]):.3f}",
    "math": lambda cp, x: __import__("math").sqrt(x[0, 0]),
    "index of a list": lambda cp, x: [1, 2, 3][x.argmax()],
    "max of scalars": lambda cp, x: max(x[0, 0], 1.0),
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_implicit_transfers_are_refused(cp, x, machine, name):
    machine.counters.reset()
    with pytest.raises(ImplicitTransfer):
        TRANSFERS[name](cp, x)
    assert machine.counters.transfers == 0


MIXTURES = {
    "x + numpy": lambda cp, x, h: x + h,
    "numpy + x": lambda cp, x, h: h + x,
    "x += numpy": lambda cp, x, h: x.__iadd__(h),
    "x < numpy": lambda cp, x, h: x < h,
    "x[...] = numpy": lambda cp, x, h: x.__setitem__(..., h),
    "x[numpy]": lambda cp, x, h: x[np.array([0, 1])],
    "x[list]": lambda cp, x, h: x[[0, 1]],
    "matmul": lambda cp, x, h: cp.matmul(x, h.T),
    "operator @": lambda cp, x, h: x @ h.T,
    "maximum": lambda cp, x, h: cp.maximum(x, h),
    "where": lambda cp, x, h: cp.where(x > 0, h, 0),
    "out=numpy": lambda cp, x, h: cp.exp(x, out=h),
    "exp(numpy)": lambda cp, x, h: cp.exp(h),
    "sum(numpy)": lambda cp, x, h: cp.sum(h),
    "fill(numpy)": lambda cp, x, h: x.fill(h),
    "einsum": lambda cp, x, h: cp.einsum("ij,ij->i", x, h),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_numpy_arrays_do_not_mix_with_device_arrays(cp, x, name):
    with pytest.raises(TypeError):
        MIXTURES[name](cp, x, np.ones((3, 4), "f4"))


def test_numpy_scalars_mix_as_in_cupy(cp, x):
    for result in (np.float32(2) * x, x * np.float32(2), 2 * x, np.float32(24) / x.reshape(4, 3)[1:]):
        assert result.dtype == np.float32
    assert (np.float64(2) * x).dtype == np.float64  # NEP 50
    assert ((np.float32(2) < x).get() == (np.arange(12).reshape(3, 4) > 2)).all()


@pytest.mark.parametrize(
    "operation",
    [
        lambda cp, x: cp.nothing,
        lambda cp, x: cp.linalg.nothing,
        lambda cp, x: cp.errstate(),  # cupyx has it
        lambda cp, x: cp.special,
        lambda cp, x: x.nothing,
        lambda cp, x: x.to_device("cpu"),
        lambda cp, x: cp.cuda.nothing,
    ],
)
def test_what_cupy_lacks_is_an_attribute_error(cp, x, operation):
    with pytest.raises(AttributeError):
        operation(cp, x)


def test_what_only_the_standin_lacks_says_so(cp, real_cupy):
    with pytest.raises(NotImplementedError, match="the stand-in does not have it"):
        cp.fft  # noqa: B018


@pytest.mark.parametrize(
    "call",
    [
        lambda cp, x: cp.sum(x, axes=0),
        lambda cp, x: cp.sum(x, where=x > 0),
        lambda cp, x: cp.max(x, initial=0),
        lambda cp, x: cp.exp(x, where=True),
        lambda cp, x: cp.concatenate([x, x], axes=1),
        lambda cp, x: cp.zeros(3, "f4", like=x),
        lambda cp, x: x.astype("f8", dtype="f8"),
        lambda cp, x: cp.unique(x, sorted=False),
    ],
)
def test_calls_that_do_not_fit_cupys_signature(cp, real_cupy, x, call):
    with pytest.raises(TypeError):
        call(cp, x)


def test_own_signatures_are_cupys(real_cupy):
    from emulator.cupy_standin import functions, linalg, real

    checked = 0
    for path, function in [(f.__name__, f) for f in functions.OWN] + [
        (f"linalg.{f.__name__}", f) for f in linalg.EXPORTED
    ]:
        signature = real.signature(path)
        if signature is not None:
            assert list(inspect.signature(function).parameters) == list(signature.parameters), path
            checked += 1
    assert checked > 40


# ---- values -----------------------------------------------------------------------------------


def test_memory_nobody_wrote_is_not_read(cp):
    y = cp.empty((4, 3))
    y[:, :2] = 1
    assert y[:, :2].sum().item() == 8
    for read in (y.sum, y.get, lambda: y + 1, lambda: cp.exp(y), y[2].copy):
        with pytest.raises(Fault, match="uninitialised"):
            read()
    y[:, 2] = 0
    assert y.sum().item() == 8


def test_validity_follows_views_of_other_types(cp):
    y = cp.empty(4, "f4")
    y.view("u2")[1::2] = 0x3F80
    with pytest.raises(Fault, match="uninitialised"):
        y.sum()
    y.view("u2")[::2] = 0
    assert (y.get() == 1).all()


def test_reductions_give_arrays_without_axes(cp, x):
    for result in (x.sum(), x.max(), x.argmax(), cp.mean(x), x[1, 2], cp.linalg.norm(x), cp.array_equal(x, x)):
        assert isinstance(result, cp.ndarray)
        assert result.shape == ()
    assert x.argmax().item() == 11
    assert x.sum(axis=0, dtype="f8").dtype == np.float64


@pytest.mark.parametrize(
    "key", [0, (slice(None), 1), (Ellipsis, None, slice(1, 3)), (None, 2), (slice(None, None, -1),), (1, 2), -1, ()]
)
def test_indexing_gives_views(cp, x, key):
    view = x[key]
    assert (view.get() == x.get()[key]).all()
    view[...] = -1
    assert (x.get()[key] == -1).all()


def test_device_integers_index(cp, x):
    rows, columns = cp.asarray(np.array([2, 0, 2])), cp.asarray(np.array([1, 3, 0]))
    host = x.get()
    assert (x[rows].get() == host[[2, 0, 2]]).all()
    assert (x[rows, columns].get() == host[[2, 0, 2], [1, 3, 0]]).all()
    assert (x[:, columns].get() == host[:, [1, 3, 0]]).all()
    assert (x.take(columns, axis=1).get() == host[:, [1, 3, 0]]).all()
    x[rows, columns] = 50
    host[[2, 0, 2], [1, 3, 0]] = 50
    assert (x.get() == host).all()
    x[x > 10] = 0
    assert x.get().max() <= 10


def test_indices_that_cupy_would_treat_silently(cp, x):
    far, twice = cp.asarray(np.array([0, 3])), cp.asarray(np.array([1, 1]))
    for read in (lambda: x[far], lambda: x.take(far, axis=0), lambda: x.__setitem__(far, 0)):
        with pytest.raises(Fault, match="bounds"):
            read()
    with pytest.raises(Fault, match="race"):
        x[twice, 0] = cp.asarray(np.array([1, 2], "f4"))
    x[twice, 0] = 5
    with pytest.raises(NotImplementedError):
        x[x > 3]


def test_functions_agree_with_numpy(cp):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(4, 5)).astype("f4")
    x = cp.asarray(h)
    same = {
        "exp": (), "log1p": (), "abs": (), "sqrt": (), "square": (), "isfinite": (), "isnan": (), "sum": (0,),
        "max": (1,), "min": (), "mean": (0,), "argmax": (1,), "argmin": (), "all": (), "any": (1,), "sort": (),
        "cumsum": (1,), "clip": (-0.5, 0.5), "transpose": (), "ravel": (), "diagonal": (), "trace": (), "var": (0,),
        "expand_dims": (1,), "swapaxes": (0, 1), "count_nonzero": (), "argsort": (), "broadcast_to": ((3, 4, 5),),
    }  # fmt: skip
    with np.errstate(all="ignore"):
        for name, args in same.items():
            got, want = getattr(cp, name)(x, *args), getattr(np, name)(h, *args)
            np.testing.assert_array_equal(got.get(), want, err_msg=name)
    two = cp.asarray(h * 2)
    for name in ("maximum", "minimum", "multiply", "add", "subtract", "divide", "outer"):
        np.testing.assert_array_equal(getattr(cp, name)(x, two).get(), getattr(np, name)(h, h * 2), err_msg=name)
    np.testing.assert_array_equal(cp.concatenate([x, two], axis=1).get(), np.concatenate([h, 2 * h], 1))
    np.testing.assert_array_equal(cp.stack([x, two]).get(), np.stack([h, 2 * h]))
    np.testing.assert_array_equal(cp.where(x > 0, x, 0).get(), np.where(h > 0, h, 0))
    np.testing.assert_allclose(cp.einsum("ij,kj->ik", x, two).get(), np.einsum("ij,kj->ik", h, 2 * h), rtol=1e-5)
    np.testing.assert_allclose(cp.tensordot(x, two, axes=[[1], [1]]).get(), h @ (2 * h).T, rtol=1e-5)
    np.testing.assert_allclose((x @ two.T).get(), h @ (2 * h).T, rtol=1e-5)
    numbers = cp.asarray(np.array([3, 1, 1, 0]))
    assert cp.bincount(numbers, minlength=6).get().tolist() == [1, 2, 0, 1, 0, 0]
    assert cp.unique(numbers).get().tolist() == [0, 1, 3]
    assert cp.searchsorted(cp.arange(4), numbers).get().tolist() == [3, 1, 1, 0]
    assert cp.eye(3, k=1).get()[0, 1] == cp.full(2, 7).get()[0] - 6 == 1


def test_results_into_out(cp, x):
    out = cp.empty((3, 4), "f4")
    assert cp.exp(x, out=out) is out
    np.testing.assert_array_equal(out.get(), np.exp(np.arange(12, dtype="f4")).reshape(3, 4))
    assert cp.sum(x, axis=0, out=out[0]).get().tolist() == [12, 15, 18, 21]
    cp.multiply(x, 2, out=x)
    assert x.get()[2, 3] == 22
    with pytest.raises(TypeError):
        cp.add(x, x, out=cp.empty((3, 4), "i4"))
    cp.add(x, x, out=cp.empty((3, 4), "i4"), casting="unsafe")
    with pytest.raises(ValueError, match="shape"):
        cp.exp(x, out=cp.empty((4, 4), "f4"))


def test_in_place_operators_keep_the_type(cp, x):
    pointer = x.data.ptr
    x += 1
    x *= np.float32(2)
    x /= 2
    x -= x[:1]
    assert (x.data.ptr, x.dtype) == (pointer, np.float32)
    assert x.get()[1].tolist() == [4, 4, 4, 4]
    with pytest.raises(TypeError):
        cp.arange(3).__itruediv__(2)


def test_copies_nobody_asked_for_are_counted(cp, x, machine):
    machine.counters.reset()
    x.reshape(4, 3), x[:, :2].T, x.T.T.ravel(), x[None]
    assert machine.counters.silent_copies == 0
    copied = x.T.reshape(12)
    assert machine.counters.silent_copies == 1
    copied[...] = 0
    assert x.sum().item() == 66
    cp.matmul(x[:, :3], x[:, :3].T)  # padded rows, twice
    assert machine.counters.silent_copies == 3
    cp.matmul(x, x.T)
    assert machine.counters.silent_copies == 3


def test_arrays_made_like_others_keep_their_layout(cp, x):
    stack = cp.ones((2, 3, 4), np.float32).transpose(1, 0, 2)
    for like in (cp.empty_like, cp.zeros_like, cp.ones_like):
        assert like(stack).strides == stack.strides
        assert like(stack, np.float64).strides == (32, 96, 8)
        assert like(stack, order="C").flags.c_contiguous
        assert like(stack, shape=(5, 2)).shape == (5, 2)
    assert cp.full_like(x.T, 2).flags.f_contiguous
    assert (cp.full_like(stack, 2).get() == 2).all()


def test_einsum_adds_in_the_dtype_asked_for(cp):
    tenths = cp.full((1000,), 0.1, np.float32)
    total = cp.einsum("i,i->", tenths, tenths, dtype=np.float64)
    assert total.dtype == np.float64
    assert total.item() == pytest.approx(1000 * float(np.float32(0.1)) ** 2, rel=1e-14)


# ---- between host and device ------------------------------------------------------------------


def test_what_is_counted(cp, machine):
    machine.counters.reset()
    y = cp.asarray(np.ones(1000, "f4"))
    y = y * 2 + cp.zeros(1000, "f4")
    y.get(), y[0].item(), cp.asnumpy(y)
    counters = machine.counters
    assert (counters.uploads, counters.transfers, counters.allocations) == (1, 3, 4)
    assert (counters.uploaded_bytes, counters.transferred_bytes) == (4000, 8004)
    assert cp.asnumpy(np.ones(3)).shape == (3,)
    assert counters.transfers == 3


def test_set_takes_what_cupys_takes(cp, x):
    x.set(np.zeros((3, 4), "f4"))
    assert not x.get().any()
    for wrong, error in (
        (np.zeros((3, 4)), TypeError),
        (np.zeros((4, 3), "f4"), ValueError),
        ([[0.0] * 4] * 3, TypeError),
    ):
        with pytest.raises(error):
            x.set(wrong)
    with pytest.raises(RuntimeError, match="non-contiguous"):
        x[:, :2].set(np.zeros((3, 2), "f4"))


def test_get_copies(cp, x):
    host = x.get()
    host[...] = 9
    assert x.get()[0, 0] == 0
    out = np.empty((3, 4), "f4")
    assert x.get(out=out) is out
    for wrong, error in ((np.empty((3, 4)), TypeError), (np.empty((4, 3), "f4"), ValueError)):
        with pytest.raises(error):
            x.get(out=wrong)


def test_types_and_orders_of_arrays_made(cp):
    assert cp.zeros(3).dtype == cp.asarray([1.0, 2.0]).dtype == np.float64
    assert cp.asarray(np.ones((2, 3), order="F"), order="C").flags.c_contiguous
    assert cp.empty((2, 3), order="F").flags.f_contiguous
    y = cp.ones((2, 3), "f4")
    assert cp.asarray(y) is y
    assert cp.array(y) is not y
    assert y.astype("f4", copy=False) is y
    assert cp.ascontiguousarray(y.T).flags.c_contiguous
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(np.array(["a"]))
    assert cp.result_type(y, np.float64) == np.float64
    assert cp.get_array_module(y) is cp
    assert cp.get_array_module(np.ones(2)) is np


# ---- memory -----------------------------------------------------------------------------------


def test_memory_is_counted_as_cupys_pool_counts(cp):
    pool = cp.get_default_memory_pool()
    y = cp.empty(1000, "f4")
    view = y[10:]
    assert pool.used_bytes() == 4096
    del y
    assert pool.used_bytes() == 4096
    del view
    assert (pool.used_bytes(), pool.total_bytes(), pool.n_free_blocks()) == (0, 4096, 1)
    z = cp.empty(100, "f4")  # takes a part of the free block
    assert (pool.used_bytes(), pool.total_bytes()) == (512, 4096)
    pool.free_all_blocks()
    assert pool.total_bytes() == 512
    del z


def test_limits_of_memory():
    with installed(Facts(total_memory=2**20)):
        import cupy as cp

        kept = cp.empty(2**19, "u1")
        with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="Out of memory allocating 524,800 bytes"):
            cp.empty(2**19 + 1, "u1")
        pool = cp.get_default_memory_pool()
        pool.set_limit(size=2**19 + 512)
        cp.empty(512, "u1")
        with pytest.raises(OutOfMemoryError, match="limit set to"):
            cp.empty(513, "u1")
        assert pool.get_limit() == 2**19 + 512
        free, total = cp.cuda.runtime.memGetInfo()
        assert total == 2**20
        assert free == total - pool.total_bytes()
        del kept


def test_arrays_on_memory_allocated_by_hand(cp):
    memory = cp.cuda.alloc(1024)
    y = cp.ndarray((4, 4), "f4", memory + 64)
    y.fill(1)
    assert y.data.ptr == memory.ptr + 64
    assert y.data.mem is memory.mem


def test_interfaces_to_other_libraries(cp, x):
    interface = x.T.__cuda_array_interface__
    assert interface["shape"] == (4, 3)
    assert interface["data"] == (x.data.ptr, False)
    assert interface["strides"] == (4, 16)
    assert x.__dlpack_device__() == (2, 0)
    again = cp.from_dlpack(x)
    again[...] = 1
    assert x.sum().item() == 12

    class Foreign:
        __cuda_array_interface__ = interface

    assert (cp.asarray(Foreign()).get() == x.T.get()).all()
    with pytest.raises(TypeError, match="CPU arrays"):
        cp.from_dlpack(np.ones(3))
    with pytest.raises((BufferError, ValueError)):
        np.from_dlpack(x)


# ---- linear algebra ---------------------------------------------------------------------------


def test_linear_algebra_of_stacks(cp):
    from cupyx.scipy.linalg import solve_triangular

    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 4, 4))
    a = a @ a.swapaxes(1, 2) + np.eye(4)
    b = rng.normal(size=(3, 4, 2))
    A, B = cp.asarray(a), cp.asarray(b)
    factor = cp.linalg.cholesky(A)
    np.testing.assert_allclose((factor @ factor.mT).get(), a, rtol=1e-12)
    np.testing.assert_allclose(cp.linalg.solve(A, B).get(), np.linalg.solve(a, b), rtol=1e-10)
    np.testing.assert_allclose((cp.linalg.inv(A) @ A).get(), np.tile(np.eye(4), (3, 1, 1)), atol=1e-10)
    half = solve_triangular(factor, B, lower=True)
    np.testing.assert_allclose(solve_triangular(factor, half, trans=1, lower=True).get(), np.linalg.solve(a, b))
    values, vectors = cp.linalg.eigh(A)
    np.testing.assert_allclose((vectors * values[:, None] @ vectors.mT).get(), a, rtol=1e-10)
    with pytest.raises(TypeError):
        cp.linalg.cholesky(a)


def test_a_failed_factorisation_is_silent_as_in_cupy(cp):
    import cupyx

    a = cp.asarray(np.array([[[1.0, 2], [2, 1]], [[4, 0], [0, 9]]]))
    result = cp.linalg.cholesky(a).get()
    assert np.isnan(result[0]).all()
    assert result[1].tolist() == [[2, 0], [0, 3]]
    with cupyx.errstate(linalg="raise"), pytest.raises(np.linalg.LinAlgError):
        cp.linalg.cholesky(a)
    with pytest.raises(NotImplementedError), cupyx.errstate(divide="raise"):
        pass


REFUSALS = {  # CuPy does these; why the stand-in does not
    "reading memory that is not ready": lambda cp, x: x.get(blocking=False),
    "reading by a mask, which waits for its count": lambda cp, x: x[x > 1],
    "writing an array by a mask": lambda cp, x: x.__setitem__(x > 1, cp.ones(3, "f4")),
    "the places of a mask": lambda cp, x: cp.where(x > 1),
    "arrays of others over DLPack": lambda cp, x: cp.from_dlpack(Foreign()),
    "the step of linspace": lambda cp, x: cp.linspace(0, 1, 3, retstep=True),
    "compiling a file": lambda cp, x: cp.RawModule(path="kernels.cubin"),
}


class Foreign:
    """An array of another library on the device."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, stream=None):
        return object()


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_stand_in_refuses(name, cp, x):
    with pytest.raises(Refused, match=r"\w+"):
        REFUSALS[name](cp, x)


def test_a_kernel_whose_parameters_cannot_be_read_is_refused(cp, nvrtc):
    code = '#define BOTH float* x, int n\nextern "C" __global__ void k(BOTH) { x[n] = 0; }'
    with pytest.raises(Refused, match="could not be read from the source"):
        cp.RawKernel(code, "k").compile()
