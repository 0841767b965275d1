"""The interpreter computes what the CUDA programming guide says, compared with NumPy and Python."""

import numpy as np
import pytest

from emulator.ptx import Buffer, Unsupported
from emulator.ptx import arithmetic as math
from emulator.ptx.arithmetic import round_to

ARCHITECTURES = ("compute_75", "compute_90", "compute_120")


@pytest.mark.parametrize("width", [2, 8, 32])
@pytest.mark.parametrize("mode", ["xor", "up", "down", "idx"])
def test_shuffles_of_any_width(run_body, mode, width):
    call = {
        "xor": f"__shfl_xor_sync(m, v, 1, {width})",
        "up": f"__shfl_up_sync(m, v, 3, {width})",
        "down": f"__shfl_down_sync(m, v, 3, {width})",
        "idx": f"__shfl_sync(m, v, 5, {width})",
    }[mode]
    out = np.zeros(64, "i4")
    run_body(f"const int v = i * 10; const unsigned m = ~0u; out[i] = {call};", [out], block=64, parameters="int* out")
    lane, inside = np.arange(64), np.arange(64) % width
    origin = {
        "xor": inside ^ 1,
        "up": np.where(inside >= 3, inside - 3, inside),
        "down": np.where(inside + 3 < width, inside + 3, inside),
        "idx": np.full(64, 5 % width),
    }[mode]
    assert (out == 10 * (lane - inside + origin)).all()


def test_shuffles_after_each_other(run_body):
    body = "int v = i; v += __shfl_xor_sync(~0u, v, 1); v += __shfl_xor_sync(~0u, v, 2); out[i] = v;"
    out = np.zeros(64, "i4")
    run_body(body, [out], block=64, parameters="int* out")
    assert (out == np.arange(64).reshape(-1, 4).sum(1).repeat(4)).all()


@pytest.mark.parametrize("guard", ["@%p", "@!%p"])
def test_guarded_instructions(run_body, guard):
    step = f"{{ .reg .pred %p; setp.lt.s32 %p, %1, 20; {guard} mov.b32 %0, 7; }}"
    out = np.zeros(64, "i4")
    run_body(f'int v = i; asm("{step}" : "+r"(v) : "r"(i)); out[i] = v;', [out], block=64, parameters="int* out")
    assert (out == np.where((np.arange(64) < 20) == (guard == "@%p"), 7, np.arange(64))).all()


def test_known_amounts_are_like_others(run_body):
    """Shifts and insertions by constants are decoded into fewer steps."""
    text = """
        const int v = i * 0x01234567 - 99; const unsigned w = i * 0x9ABCDEF1u; int r[2][6];
        {calls}
        for (int j = 0; j < 6; ++j) { out[12 * i + j] = r[0][j]; out[12 * i + 6 + j] = r[1][j]; }
    """
    amounts = {"five": 5, "thirty": 30, "far": 35, "start": 7, "length": 9, "past": 28}
    forms = ("shl.b32 %0, %1, {five}", "shr.s32 %0, %1, {five}", "shr.u32 %0, %1, {thirty}", "shl.b32 %0, %1, {far}")
    forms += ("bfi.b32 %0, %2, %1, {start}, {length}", "bfi.b32 %0, %2, %1, {past}, {length}")
    calls = []
    for known in (0, 1):
        for j, form in enumerate(forms):
            names = amounts if known else {name: f"%{3 + k}" for k, name in enumerate(amounts)}
            given = ", ".join(f'"r"({n} + (w == 0xFFFFFFFFu))' for n in amounts.values())
            operands = f': "=r"(r[{known}][{j}]) : "r"(v), "r"(w), {given}'
            calls.append(f'asm("{form.format(**names)};" {operands});')
    out = np.zeros((64, 2, 6), "i4")
    run_body(text.replace("{calls}", "\n".join(calls)), [out], block=64, parameters="int* out")
    assert (out[:, 0] == out[:, 1]).all()
    v = ((np.arange(64) * 0x01234567 - 99) & 0xFFFFFFFF).astype("u4").view("i4")
    w = (np.arange(64) * 0x9ABCDEF1 & 0xFFFFFFFF).astype("u4")
    assert (out[:, 1, :2] == np.stack([v << 5, v >> 5], 1)).all()
    assert (
        out[:, 1, 4].view("u4") == (v.view("u4") & ~np.uint32(511 << 7) | (w & np.uint32(511)) << np.uint32(7))
    ).all()


MATH = r"""
template <typename real> __global__ void math(const real* in, real* out, int n)
{
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i >= n) return;
    out[i] = exp(in[i]); out[n + i] = log(fabs(in[i])); out[2 * n + i] = log1p(fabs(in[i]));
    out[3 * n + i] = in[i] / real(3.1); out[4 * n + i] = sqrt(fabs(in[i])); out[5 * n + i] = tanh(in[i]);
    out[6 * n + i] = exp2(in[i]); out[7 * n + i] = rsqrt(fabs(in[i]));
}
"""


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["float", "double"])
def test_math_functions(run, kind, arch):
    dtype, wide = ("f4", np.float64) if kind == "float" else ("f8", np.longdouble)
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=200) * 10.0 ** rng.integers(-6, 2, 200), rng.uniform(-80, 80, 100)])
    values = np.clip(values, -80, 80).astype(dtype)
    out = np.zeros((8, 300), dtype)
    run(MATH, [values, out, np.int32(300)], 3, 128, name=f"math<{kind}>", arch=arch)
    x, size = values.astype(wide), abs(values).astype(wide)
    third = wide(np.dtype(dtype).type(3.1))
    wanted = (
        np.exp(x), np.log(size), np.log1p(size), x / third, np.sqrt(size), np.tanh(x), np.exp2(x), 1 / np.sqrt(size)
    )  # fmt: skip
    for got, want in zip(out, wanted, strict=True):
        ulp = abs(got - want) / np.spacing(abs(want).astype(dtype)).astype(wide)
        assert ulp.max() < 2.5


def test_integers_and_divergence(run):
    source = r"""
    extern "C" __global__ void k(const int* a, const int* b, long long* out)
    {
        const int i = blockIdx.x * 32 + threadIdx.x;
        long long sum = a[i] / b[i] * 1000LL + a[i] % b[i];
        for (int j = 0; j < i % 7; ++j) { if ((i + j) & 1) sum = sum * 3 - j; else sum ^= 1LL << (j + 35); }
        out[i] = sum;
    }"""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-1000, 1000, 96).astype("i4"), rng.integers(1, 50, 96).astype("i4")
    b[::3] *= -1
    out = np.zeros(96, "i8")
    run(source, [a, b, out], 3)
    for i in range(96):
        quotient = int(abs(a[i]) // abs(b[i])) * (1 if (a[i] < 0) == (b[i] < 0) else -1)
        expected = quotient * 1000 + int(a[i]) - quotient * int(b[i])
        for j in range(i % 7):
            expected = expected * 3 - j if (i + j) & 1 else expected ^ (1 << (j + 35))
        assert out[i] == expected


def test_bit_operations(run_body):
    x = np.random.default_rng(0).integers(0, 2**32, 32, dtype="u4")
    x[:3] = 0, 1, 2**32 - 1
    out = np.zeros((7, 32), "u4")
    body = """
    const unsigned v = x[i];
    out[i] = __popc(v); out[32 + i] = __clz(v); out[64 + i] = __brev(v); out[96 + i] = __ffs(v);
    out[128 + i] = __byte_perm(v, 0x01020304u, 0x7250); out[160 + i] = __funnelshift_l(v, ~v, i);
    out[192 + i] = __umulhi(v, 0xdeadbeefu);
    """
    run_body(body, [x, out], parameters="const unsigned* x, unsigned* out")
    for i, v in enumerate(x.tolist()):
        low = (v & -v).bit_length()
        octets = [(v >> 8 * j) & 255 for j in range(4)] + [4, 3, 2, 1]
        permuted = sum(octets[(0x7250 >> 4 * j) & 7] << 8 * j for j in range(4))
        shifted = ((((~v & 0xFFFFFFFF) << 32 | v) << i) >> 32) & 0xFFFFFFFF
        wanted = [v.bit_count(), 32 - v.bit_length(), int(f"{v:032b}"[::-1], 2), low, permuted, shifted]
        assert out[:6, i].tolist() == wanted
        assert out[6, i] == v * 0xDEADBEEF >> 32


@pytest.mark.parametrize("dtype", ["u4", "i4"])
@pytest.mark.parametrize("shape", [(0, 8), (4, 28), (31, 1), (20, 32), (5, 0)])
def test_bit_fields(dtype, shape):
    position, length = shape
    values = np.random.default_rng(1).integers(0, 2**32, 50, dtype="u4").view(dtype)
    got = math.extract_bits(values, *(np.full(50, n, "u4") for n in shape))
    for value, field in zip(values.tolist(), got.tolist(), strict=True):
        wanted = 0
        if length:
            width = min(length, 32 - position)
            wanted = (value >> position) & ((1 << width) - 1)
            if dtype == "i4" and wanted >> (width - 1) & 1:
                wanted -= 1 << width
        assert field == wanted


def test_fused_multiply_add_rounds_once():
    """Cases where rounding to float64 first gives the wrong float32."""
    a, b = np.float32(1 + 2**-12), np.float32(1 + 2**-12)
    for sign in (1, -1):
        c = np.float32(sign * 2**-60)
        exact_is_above = sign > 0
        got = math.fma32(np.full(4, a), np.full(4, b), np.full(4, c), "rn")[0]
        tie = np.float64(a) * np.float64(b)  # lies halfway between two floats
        above, below = (
            round_to(np.array([tie]), np.dtype("f4"), "rp")[0],
            round_to(np.array([tie]), np.dtype("f4"), "rm")[0],
        )
        assert got == (above if exact_is_above else below)


HALF = r"""
typedef unsigned short u16;
__device__ u16 to_bf16(float x) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
__device__ u16 to_f16(float x) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
__device__ float from_f16(u16 x)
{
    float r;
    asm volatile("{ .reg .b16 t; mov.b16 t, %1; cvt.f32.f16 %0, t; }" : "=f"(r) : "h"(x));
    return r;
}
__device__ float from_bf16(u16 x) { return __uint_as_float((unsigned)x << 16); }
__device__ unsigned pack_bf16(float lo, float hi)
{
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
__device__ unsigned pack_f16(float lo, float hi)
{
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
"""


def bfloat16(x):
    """Round to nearest even on Python integers."""
    bits = int(np.float32(x).view("u4"))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def test_half_precision_both_ways(run):
    source = (
        HALF
        + r"""
    extern "C" __global__ void k(const float* x, u16* out, float* back, unsigned* packed)
    {
        const int i = threadIdx.x;
        out[i] = to_bf16(x[i]); out[64 + i] = to_f16(x[i]);
        back[i] = from_bf16(to_bf16(x[i])); back[64 + i] = from_f16(to_f16(x[i]));
        packed[i] = pack_bf16(x[i], 3.0f); packed[64 + i] = pack_f16(x[i], 3.0f);
    }"""
    )
    rng = np.random.default_rng(0)
    x = (rng.normal(size=64) * 10.0 ** rng.integers(-7, 5, 64)).astype("f4")
    x[:6] = 0, -0.0, 65504, 65520, 1 + 2**-8, 1 + 3 * 2**-8  # overflow of float16, ties of bfloat16
    out, back, packed = np.zeros((2, 64), "u2"), np.zeros((2, 64), "f4"), np.zeros((2, 64), "u4")
    run(source, [x, out, back, packed], block=64)
    with np.errstate(over="ignore"):
        halves = x.astype("f2")
    assert out[0].tolist() == [bfloat16(value) for value in x]
    assert (out[1] == halves.view("u2")).all()
    assert (back[1] == halves.astype("f4")).all()
    assert (back[0].view("u4") >> 16 == out[0]).all()
    assert (packed[0] == (0x4040 << 16 | out[0].astype("u4"))).all()
    assert (packed[1] == (0x4200 << 16 | out[1].astype("u4"))).all()


def test_float64_to_bfloat16_rounds_once():
    just_above = np.array([1 + 2**-8 + 2**-40])  # a tie once it is a float32
    assert math.to_bfloat16_bits(just_above)[0] == 0x3F81
    assert math.to_bfloat16_bits(just_above.astype("f4"))[0] == 0x3F80


def test_nan_of_half_precision_is_canonical():
    nan = np.array([np.nan], "f4")
    assert math.to_bfloat16_bits(nan)[0] == math.to_float16_bits(nan)[0] == 0x7FFF


@pytest.mark.parametrize("kind", ["char", "signed char", "unsigned char", "short", "unsigned short"])
def test_narrow_loads_and_stores(run_body, kind):
    dtype = {"char": "i1", "signed char": "i1", "unsigned char": "u1", "short": "i2", "unsigned short": "u2"}[kind]
    x = np.random.default_rng(0).integers(0, 256**2, 40).astype(dtype)
    out, wide = np.zeros(40, dtype), np.zeros(40, "i4")
    body = f"if (i < 40) {{ wide[i] = x[i]; out[i] = ({kind})(x[i] * 3 + 1); }}"
    run_body(body, [x, out, wide], block=64, parameters=f"const {kind}* x, {kind}* out, int* wide")
    assert (wide == x).all()
    assert (out == (x.astype("i4") * 3 + 1).astype(dtype)).all()


def test_narrow_loads_extend_the_sign_into_wide_registers(run_body):
    x, out = np.array([-3, 100, -128, 127] * 8, "i1"), np.zeros((2, 32), "i4")
    body = """
    int v, u;
    asm volatile("ld.global.s8 %0, [%1];" : "=r"(v) : "l"(x + i));
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(u) : "l"(x + i));
    out[i] = v; out[32 + i] = u;
    """
    run_body(body, [x, out], parameters="const char* x, int* out")
    assert (out[0] == x).all()
    assert (out[1] == x.view("u1")).all()


def test_vectors_of_sixteen_bits(run_body):
    x = np.arange(32 * 8, dtype="u2")
    out = np.zeros_like(x)
    body = """
    const ushort4 q = x[2 * i]; const uint4 w = ((const uint4*)x)[i];
    out[2 * i] = make_ushort4(q.w, q.z, q.y, q.x); ((ushort2*)out)[4 * i + 2] = make_ushort2(w.z, w.z >> 16);
    ((ushort2*)out)[4 * i + 3] = make_ushort2(7, 8);
    """
    run_body(body, [x, out], parameters="const ushort4* x, ushort4* out")
    rows = x.reshape(32, 8)
    wanted = np.concatenate([rows[:, 3::-1], rows[:, 4:6], np.tile([7, 8], (32, 1))], 1)
    assert (out.reshape(32, 8) == wanted).all()


def test_grids_and_blocks_of_three_dimensions(run):
    source = r"""
    extern "C" __global__ void k(int* out)
    {
        const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        const int i = block * blockDim.x * blockDim.y * blockDim.z + thread;
        out[i] = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z
            + 1000 * (blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z);
    }"""
    grid, block = (2, 3, 4), (5, 6, 2)
    out = np.full(24 * 60, -1, "i4")
    run(source, [out], grid, block)
    z, y, x, tz, ty, tx = np.indices((4, 3, 2, 2, 6, 5))
    assert (out == (tx + 10 * ty + 100 * tz + 1000 * (x + 10 * y + 100 * z)).ravel()).all()


def test_a_struct_is_passed_by_value(run):
    source = r"""
    struct S { int a; double b; unsigned short c[3]; };
    extern "C" __global__ void k(double* out, S s) { out[threadIdx.x] = s.a + s.b + s.c[threadIdx.x % 3]; }
    """
    layout = {"names": ["a", "b", "c"], "formats": ["i4", "f8", ("u2", 3)], "offsets": [0, 8, 16], "itemsize": 24}
    value = np.zeros((), np.dtype(layout))
    value["a"], value["b"], value["c"] = 3, 2.5, (10, 20, 30)
    out = np.zeros(32)
    run(source, [out, value])
    assert (out == 5.5 + np.array([10, 20, 30])[np.arange(32) % 3]).all()


def test_local_arrays_and_dynamic_indices(run_body):
    out = np.zeros(32, "i4")
    body = "int l[8]; for (int j = 0; j < 8; ++j) l[j] = i * j; l[i % 5] += 1000; out[i] = l[i % 8] + l[(i + 3) % 8];"
    run_body(body, [out], parameters="int* out")
    for i in range(32):
        local = [i * j for j in range(8)]
        local[i % 5] += 1000
        assert out[i] == local[i % 8] + local[(i + 3) % 8]


def test_a_pointer_that_may_be_shared_or_global(run_body):
    out = np.arange(64, dtype="f4")
    body = """
    __shared__ float s[64]; s[i] = 100 + i; __syncthreads();
    const float* p = i % 2 ? s + i : other + i; out[i] = *p;
    """
    run_body(body, [out, np.arange(64, dtype="f4")], block=64, parameters="float* out, const float* other")
    assert (out == np.where(np.arange(64) % 2, 100 + np.arange(64), np.arange(64))).all()


def test_cache_hints_and_volatile(run_body):
    x = np.arange(128, dtype="f4")
    out = np.zeros(128, "f4")
    body = """
    float a, b, c, d;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.f32 %0, [%1];" : "=f"(a) : "l"(x + i));
    asm volatile("ld.global.nc.L1::evict_last.v2.f32 {%0, %1}, [%2];" : "=f"(b), "=f"(c) : "l"(x + 2 * i));
    d = *(volatile const float*)(x + i); __stcs(out + i, a + b); __stcg(out + 32 + i, c + d);
    out[64 + i] = __ldcs(x + i) + __ldcg(x + i) + __ldca(x + i); *(volatile float*)(out + 96 + i) = d;
    """
    run_body(body, [x, out], parameters="const float* x, float* out")
    i = np.arange(32)
    assert (out == np.concatenate([3 * i, 3 * i + 1, 3 * i, i])).all()


def test_votes_and_warp_reductions(run_body):
    out = np.zeros((6, 64), "u4")
    body = """
    out[i] = __ballot_sync(~0u, i % 3 == 0); out[64 + i] = __any_sync(~0u, i == 40);
    out[128 + i] = __all_sync(~0u, i < 40); out[192 + i] = __reduce_add_sync(~0u, (unsigned)i);
    out[256 + i] = __reduce_max_sync(~0u, (unsigned)i);
    if (i % 2) out[320 + i] = __reduce_add_sync(0xaaaaaaaau, 1u);
    """
    run_body(body, [out], block=64, parameters="unsigned* out")
    for warp in (0, 1):
        lanes = range(32 * warp, 32 * warp + 32)
        row = out[:, 32 * warp : 32 * warp + 32]
        ballot = sum(1 << (i - 32 * warp) for i in lanes if i % 3 == 0)
        wanted = [ballot, warp, 1 - warp, sum(lanes), max(lanes)]
        assert (row[:5] == np.array(wanted)[:, np.newaxis]).all()
        assert row[5].tolist() == [0, 16] * 16


def test_warp_instructions_wait_for_lanes_on_a_longer_way(run_body):
    """Lanes reach one shuffle by ways of different length, also when the compiler puts one way behind it."""
    out = np.zeros(32, "i4")
    body = """
    int v = i;
    for (int j = 0; j < i; ++j) {
        v = v * 3 + j;
        if (__builtin_expect(v % 11 == 0, 0)) for (int t = 0; t < 3; ++t) v ^= t + j;
    }
    out[i] = __shfl_xor_sync(~0u, v, 1);
    """
    run_body(body, [out], parameters="int* out")
    values = []
    for i in range(32):
        v = i
        for j in range(i):
            v = (v * 3 + j + 2**31) % 2**32 - 2**31
            if (abs(v) % 11) == 0:
                for t in range(3):
                    v ^= t + j
        values.append(v)
    assert out.tolist() == [values[i ^ 1] for i in range(32)]


def test_atomics(run_body):
    out = np.zeros(8, "i4")
    old = np.zeros(64, "i4")
    body = """
    old[i] = atomicAdd(out, 1); atomicMax(out + 1, i); atomicOr(out + 2, 1 << (i % 5)); atomicExch(out + 3, 9);
    atomicCAS(out + 4, 0, i + 1); atomicAdd(out + 5, i); atomicMin(out + 6, -i);
    """
    run_body(body, [out, old], block=64, parameters="int* out, int* old")
    assert out.tolist() == [64, 63, 31, 9, 1, 2016, -63, 0]
    assert sorted(old) == list(range(64))


def test_switch_becomes_a_branch_table(run_body):
    out = np.zeros(32, "i4")
    cases = " ".join(f"case {j}: for (int t = 0; t < i; ++t) v = v * {j + 3} + t; break;" for j in range(8))
    run_body(f"int v = i; switch (i % 9) {{ {cases} default: v = -1; }} out[i] = v;", [out], parameters="int* out")
    for i in range(32):
        v = i
        for t in range(i if i % 9 < 8 else 0):
            v = (v * (i % 9 + 3) + t + 2**31) % 2**32 - 2**31
        assert out[i] == (v if i % 9 < 8 else -1)


def test_constant_tables(run):
    source = """
    __device__ const int table[4] = {10, -20, 30, 40};
    extern "C" __global__ void k(int* out) { out[threadIdx.x] = table[threadIdx.x % 4]; }
    """
    out = np.zeros(32, "i4")
    run(source, [out])
    assert out.tolist() == [10, -20, 30, 40] * 8


@pytest.mark.parametrize(
    "body",
    [
        "out[i] = __sinf(i);",
        "out[i] = __activemask();",
        'if (i < 16) { asm volatile("bar.sync 1, 32;"); } out[i] = 0;',
        "out[i] = clock();",
    ],
)
def test_what_is_not_known_is_refused(run_body, body):
    with pytest.raises(Unsupported):
        run_body(body, [np.zeros(64, "f4")], block=64)


def test_the_number_of_thread_instructions_is_returned(run_body):
    assert run_body("out[i] = 1;", [np.zeros(64, "f4")], block=64) % 64 == 0


def test_validity_is_kept_by_the_buffer(run_body):
    values, valid = np.full(64, np.nan, "f4"), np.zeros(64, bool)
    run_body("if (i % 2) out[i] = i;", [Buffer(values, valid)], block=64)
    assert valid.tolist() == [False, True] * 32
