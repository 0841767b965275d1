"""Each detector sees its bug, and does not accuse code that is correct."""

import numpy as np
import pytest

from emulator.ptx import Buffer, Fault, SparseBuffer, Unsupported, load_program
from emulator.toolchain import compile_ptx

SHARED = "__shared__ float s[64];"

BUGS = {
    "one behind the end": ("bounds", "out[i + 1] = 1;"),
    "one before the start": ("bounds", "out[i - 1] = 1;"),
    "far away": ("bounds", "out[i + (1LL << 36)] = 1;"),
    "behind a static shared array": (
        "bounds",
        "__shared__ float a[64], b[64]; a[i] = b[i] = 1; __syncthreads(); out[i] = a[i + 1] + b[i];",
    ),
    "a vector across the end of a static shared array": (
        "bounds",
        "__shared__ __align__(16) float a[3]; if (i < 3) a[i] = i; __syncthreads();"
        "const float2 v = ((float2*)a)[i % 2]; out[i] = v.x + v.y;",
    ),
    "behind all shared memory": ("bounds", "extern __shared__ float d[]; d[i] = i; out[i] = d[i];"),
    "before all shared memory": (
        "bounds",
        "extern __shared__ float d[]; if (i < 16) d[i] = i; __syncthreads(); if (i < 16) out[i] = d[i - 1];",
    ),
    "a vector at an odd address": ("alignment", "reinterpret_cast<float4*>(out + 1)[0] = make_float4(1, 2, 3, 4);"),
    "a vector at an odd address of shared memory": (
        "alignment",
        f"{SHARED} s[i] = i; __syncthreads(); const float2 v = *(float2*)(s + i % 32); out[i] = v.x + v.y;",
    ),
    "shared memory nobody wrote": (
        "uninitialised",
        f"{SHARED} if (i < 40) s[i] = i; __syncthreads(); out[i] = s[i];",
    ),
    "no barrier": ("race", f"{SHARED} s[i] = i; out[i] = s[63 - i];"),
    "no barrier before the second write": (
        "race",
        f"{SHARED} s[i] = i; __syncthreads(); out[i] = s[63 - i]; s[i] = 0;",
    ),
    "two lanes of a warp": ("race", f"{SHARED} s[i ^ 1] = i; out[i] = s[i];"),
    "a warp that is ahead": (
        "race",
        f"{SHARED} s[i] = i; __syncthreads(); if (i < 32) s[i] = 1; if (i >= 32) out[i] = s[i - 32];",
    ),
    "a fence is no barrier": ("race", f"{SHARED} s[i] = i; __threadfence_block(); out[i] = s[63 - i];"),
    "a shuffle is no barrier": (
        "race",
        f"{SHARED} s[i] = i; float v = __shfl_xor_sync(~0u, (float)i, 1); out[i] = s[i ^ 1] + v;",
    ),
    "__syncwarp does not reach other warps": ("race", f"{SHARED} s[i] = i; __syncwarp(); out[i] = s[63 - i];"),
    "global memory without a barrier": ("race", "out[i] = i; out[63 - i] += 1;"),
    "one word in one instruction": ("race", "out[i / 2] = i;"),
    "one byte in one instruction": ("race", "((char*)out)[i / 2] = i;"),
    "the other half of a word, read as a whole": (
        "race",
        "unsigned short* h = (unsigned short*)out; h[i] = i; float v = out[i / 2]; __syncthreads(); out[i] = v;",
    ),
    "barriers on two ways": (
        "divergence",
        "if (i < 32) { out[i] = 2; __syncthreads(); } else { out[i] = 1; __syncthreads(); }",
    ),
    "threads that leave before the barrier": ("divergence", "if (i > 50) return; __syncthreads(); out[i] = 1;"),
    "a shuffle without all lanes": (
        "divergence",
        "if (i < 8) out[i] += __shfl_xor_sync(0xffffffffu, (float)i, 1);",
    ),
    "a shuffle from a lane outside the mask": (
        "divergence",
        "if (i % 8 < 4) out[i] = __shfl_down_sync(0x0f0f0f0fu, (float)i, 4);",
    ),
    "a lane that is not in its mask": ("divergence", "out[i] = __shfl_xor_sync(0x7fffffffu, (float)i, 1);"),
    "__syncwarp without all lanes": ("divergence", "if (i < 7) __syncwarp(); out[i] = 1;"),
    "written behind the read-only path": ("read-only", "const float v = __ldg(out + i); out[i] = v + 1;"),
    "read-only path behind a write": ("read-only", "out[i] = 1; __syncthreads(); out[i] = __ldg(out + 63 - i);"),
    "a trap": ("trap", 'if (i == 63) asm volatile("trap;"); out[i] = 1;'),
    "a local array nobody wrote": (
        "uninitialised",
        "volatile int l[4]; if (i < 63) l[i % 4] = 1; out[i] = l[i % 4];",
    ),
    "beyond a local array": ("bounds", "volatile int l[4] = {1, 2, 3, 4}; out[i] = l[i];"),
}


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_seen(run_body, name):
    kind, body = BUGS[name]
    with pytest.raises(Fault) as caught:
        run_body(body, [np.zeros(64, "f4")], block=64)
    assert caught.value.kind == kind


BETWEEN_BLOCKS = {
    "two blocks write one word": "out[0] = blockIdx.x;",
    "one reads what another writes": "if (blockIdx.x) out[0] = 1; else out[1] = out[0];",
    "one reads what another adds": "if (blockIdx.x) atomicAdd(out, 1.0f); else out[1] = out[0];",
    "a fence does not reach other blocks": (
        "if (blockIdx.x) out[1] = 1; __threadfence(); if (!blockIdx.x) out[0] = out[1];"
    ),
}


@pytest.mark.parametrize("body", BETWEEN_BLOCKS.values(), ids=BETWEEN_BLOCKS)
@pytest.mark.parametrize("options", [{}, {"threads_at_once": 32}, {"threads_at_once": 32, "order": (1, 0)}])
def test_races_between_blocks_are_seen_in_any_schedule(run_body, body, options):
    with pytest.raises(Fault) as caught:
        run_body(f"if (threadIdx.x == 0) {{ {body} }}", [np.zeros(64, "f4")], 2, **options)
    assert caught.value.kind == "race"


CORRECT = {
    "exchange through shared memory": (
        f"{SHARED} s[i] = i; __syncthreads(); const float v = s[63 - i]; __syncthreads(); s[i] = v; out[i] = s[i];"
    ),
    "exchange within warps": (
        f"{SHARED} s[i] = i; __syncwarp(); const float v = s[i ^ 5]; __syncwarp(); s[i] = v; out[i] = s[i];"
    ),
    "all read one word, then one writes it": (
        f"{SHARED} s[i] = i; __syncthreads(); out[i] = s[0]; __syncthreads(); if (i == 9) s[0] = 1;"
    ),
    "a warp reads one word, then one lane writes it": (
        f"{SHARED} s[i] = i; __syncwarp(); out[i] = s[i & 32]; __syncwarp(); if (i % 32 == 9) s[i & 32] = 1;"
    ),
    "neighbouring bytes": "((char*)out)[i] = i; __syncthreads(); ((char*)out)[63 - i] += 1;",
    "neighbouring halves": "((unsigned short*)out)[i] = i;",
    "atomics": "atomicAdd(out, 1.0f); atomicAdd(out, 2.0f);",
    "through global memory": "out[i] = i; __syncthreads(); const float v = out[63 - i]; __syncthreads(); out[i] = v;",
    "half a warp shuffles": "if (i % 32 < 16) out[i] = __shfl_xor_sync(0x0000ffffu, (float)i, 8);",
    "an early way out without a barrier": "if (i > 50) return; out[i] = 1;",
}


@pytest.mark.parametrize("name", CORRECT)
def test_correct_code_is_not_accused(run_body, name):
    run_body(CORRECT[name], [np.zeros(64, "f4")], block=64)


def test_blocks_may_share_what_they_only_read_or_add_to(run):
    source = r"""
    extern "C" __global__ void k(float* out, int* count, const float* in)
    {
        const int i = blockIdx.x * 64 + threadIdx.x;
        atomicAdd(count, 1); out[i] = in[0]; __syncthreads(); out[i ^ 63] += in[i % 2];
    }"""
    out, count = np.zeros(192, "f4"), np.zeros(1, "i4")
    run(source, [out, count, np.array([1, 2], "f4")], 3, 64)
    assert count[0] == 192
    assert out.sum() == 192 + 96 * 3


def test_half_written_words_are_not_valid(run_body):
    """Validity has the size of the smallest access."""
    values, valid = np.zeros(64, "f4"), np.zeros(64, bool)
    with pytest.raises(Fault, match="uninitialised"):
        run_body("((unsigned short*)out)[2 * i] = 1; __syncthreads(); out[i] += 1;", [Buffer(values, valid)], block=64)
    assert not valid.any()
    run_body(
        "unsigned short* h = (unsigned short*)out; h[2 * i] = 1; h[2 * i + 1] = 0; out[i] += 1;",
        [Buffer(values, valid)],
        block=64,
    )
    assert valid.all()


TABLE = "b[threadIdx.x] = a[threadIdx.x / 4 * ld + threadIdx.x % 4];"


def test_gaps_between_the_rows_of_a_view(run_body):
    table, out = np.arange(64, dtype="f4").reshape(8, 8), np.zeros(32, "f4")
    how = {"parameters": "const float* a, float* b, int ld"}
    run_body(TABLE, [table[:, :4], out, np.int32(8)], **how)
    assert (out == table[:, :4].ravel()).all()
    with pytest.raises(Fault, match="bounds"):
        run_body(TABLE, [table[:, :4], out, np.int32(7)], **how)


def test_a_vector_across_the_end_of_a_row(run_body):
    table, out = np.zeros((8, 8), "f4"), np.zeros(32, "f4")
    body, how = "b[i] = ((const float4*)a)[i % 4].w;", {"parameters": "const float* a, float* b"}
    with pytest.raises(Fault, match="bounds"):
        run_body(body, [table[:, :6], out], **how)
    run_body(body, [table, out], **how)


def test_memory_that_two_arguments_share_must_not_be_written(run_body):
    table = np.arange(64, dtype="f4").reshape(8, 8)
    how = {"parameters": "const float* a, float* b, int ld"}
    with pytest.raises(Fault, match="alias"):
        run_body(TABLE, [table, table, np.int32(8)], **how)
    left, right = np.zeros((8, 8), "f4")[:, :4], np.zeros((8, 8), "f4")[:, 4:]
    run_body("if (i < 4) { a[i] = 1; b[i] = 2; }", [left, right], parameters="float* a, float* b")


def test_uninitialised_arguments(run_body):
    table, out = np.zeros((8, 8), "f4"), np.zeros(32, "f4")
    with pytest.raises(Fault, match="uninitialised"):
        run_body(
            TABLE, [Buffer(table, np.zeros((8, 8), bool)), out, np.int32(8)],
            parameters="const float* a, float* b, int ld",
        )  # fmt: skip


def test_a_view_keeps_its_misalignment(run_body):
    body = "reinterpret_cast<float4*>(out)[i] = make_float4(1, 2, 3, 4);"
    run_body(body, [np.zeros(132, "f4")[4:]], block=32)
    with pytest.raises(Fault, match="alignment"):
        run_body(body, [np.zeros(132, "f4")[1:]], block=32)


def test_a_null_pointer_is_not_followed(run_body):
    body = "out[i] = p ? p[i] : 7;"
    out = np.zeros(32, "f4")
    run_body(body, [out, None], parameters="float* out, const float* p")
    assert (out == 7).all()
    with pytest.raises(Fault, match="null pointer"):
        run_body("out[i] = p[i];", [out, None], parameters="float* out, const float* p")


def test_a_read_only_array_is_not_written(run_body):
    array = np.zeros(64, "f4")
    array.flags.writeable = False
    with pytest.raises(Fault, match="read-only"):
        run_body("out[i] = 1;", [array], block=64)


def test_an_endless_loop_ends(run_body):
    with pytest.raises(Fault, match="hang"):
        run_body("volatile float* p = out; while (p[0] == 0) p[1] = 1;", [np.zeros(2, "f4")], block=1, issue_limit=1000)


@pytest.mark.parametrize(
    ("grid", "block"), [(0, 32), (1, 1025), (1, (32, 33)), ((1, 65536), 32), (1, (1, 1, 65)), (1, 0), (2**31, 1)]
)
def test_launches_that_the_driver_refuses(run_body, grid, block):
    with pytest.raises(Fault, match="launch"):
        run_body("out[0] = 1;", [np.zeros(64, "f4")], grid, block)


def test_launch_bounds(run):
    source = 'extern "C" __global__ void __launch_bounds__(64) k(float* out) { out[threadIdx.x] = 1; }'
    run(source, [np.zeros(64, "f4")], block=64)
    with pytest.raises(Fault, match="launch"):
        run(source, [np.zeros(96, "f4")], block=96)


@pytest.mark.parametrize("args", [[], [np.zeros(4, "f4"), np.int32(1)], [np.int32(1)]])
def test_arguments_that_do_not_fit(run_body, args):
    if len(args) == 1:
        args = [np.zeros(4, "f4"), None]
        with pytest.raises(TypeError):
            run_body("out[i] = n;", args, parameters="float* out, int n")
    else:
        with pytest.raises(TypeError):
            run_body("out[i] = 1;", args)


def test_shared_memory_of_its_own_for_every_block(run_body):
    out = np.zeros(256, "f4")
    body = "extern __shared__ float d[]; d[threadIdx.x] = i; __syncthreads(); out[i] = d[63 - threadIdx.x];"
    run_body(body, [out], 4, 64, shared=256)
    assert (out.reshape(4, 64) == np.arange(256).reshape(4, 64)[:, ::-1]).all()


# ---- arrays larger than this machine ----------------------------------------------------------

ROWS, COLUMNS = 3_000_000, 1000  # three thousand million elements
PRODUCT = r"""
extern "C" __global__ void k(const float* x, const int* targets, float* z, long long columns)
{
    const INDEX row = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
    z[row * columns + targets[row]] = x[row * columns + columns - 1] + 1;
}"""


def giant():
    return (
        SparseBuffer(ROWS * COLUMNS, "f4", lambda element: element % 1009),
        SparseBuffer(ROWS, "i4", lambda element: element % 7),
        SparseBuffer(ROWS * COLUMNS, "f4"),
    )


def test_offsets_beyond_two_to_the_31(run):
    x, targets, z = giant()
    grid = ROWS // 32
    source = PRODUCT.replace("INDEX", "long long")
    run(source, [x, targets, z, np.int64(COLUMNS)], grid, 32, order=(0, grid // 2, grid - 1))
    rows = np.concatenate([np.arange(32) + 32 * block for block in (0, grid // 2, grid - 1)])
    elements = rows * COLUMNS + rows % 7
    assert elements[-1] > 2**31
    assert (z.written() == elements).all()
    assert (z.values(elements) == (rows * COLUMNS + COLUMNS - 1) % 1009 + 1).all()
    with pytest.raises(ValueError, match="not been written"):
        z.values([elements[0] + 1])


def test_offsets_of_32_bits_are_seen(run):
    x, targets, z = giant()
    source = PRODUCT.replace("INDEX", "int").replace("long long columns", "int columns")
    with pytest.raises(Fault, match="bounds"):
        run(source, [x, targets, z, np.int32(COLUMNS)], ROWS // 32, 32, order=(ROWS // 32 - 1,))


def test_sparse_memory_nobody_wrote(run):
    x, targets, z = giant()
    with pytest.raises(Fault, match="uninitialised"):
        run(PRODUCT.replace("INDEX", "long long"), [z, targets, x, np.int64(COLUMNS)], 4, 32)


def test_imitated_row_strides(run):
    source = r"""
    extern "C" __global__ void k(float* z, INDEX ld) { INDEX row = threadIdx.x; z[row * ld + 1] += row; }
    """
    values = np.zeros((5, 4), "f4")
    run(source.replace("INDEX", "long long"), [Buffer(values, row_stride=2**32), np.int64(2**30)], block=5)
    assert (values[:, 1] == np.arange(5)).all()
    with pytest.raises(Fault, match="bounds"):
        run(source.replace("INDEX", "int"), [Buffer(values, row_stride=2**32), np.int32(2**30)], block=5)


def test_a_program_says_how_fine_its_checks_are(nvrtc):
    source = (
        'extern "C" __global__ void k(float4* a, unsigned short* b) { a[threadIdx.x] = make_float4(1, 2, 3, 4); BODY }'
    )
    for body, granule in (("", 16), ("b[threadIdx.x] = 1;", 2)):
        code = compile_ptx(source.replace("BODY", body), ("k",))
        assert load_program(code.ptx, "k").granules["global"] == granule


def test_only_whole_blocks_meet_at_named_barriers(run_body):
    body = f'{SHARED} s[i] = i; asm volatile("bar.sync 1, 64;"); out[i] = s[63 - i];'
    run_body(body, [np.zeros(64, "f4")], block=64)
    with pytest.raises(Unsupported, match="64 of 128"):
        run_body(f"if (i < 64) {{ {body} }}", [np.zeros(64, "f4")], block=128)
