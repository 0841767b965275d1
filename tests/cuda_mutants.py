"""Seeded bugs of the CUDA kernels and of their host code, and the runs in which a detector must see them.

Detectors: the kinds of `emulator.ptx.Fault`; `numeric`, against the float64 reference; `determinism`, bits that change
with the order of blocks; `static`, a spill that ptxas reports; `compile`, NVRTC refuses; `host`, an argument that CuPy
would pass as another type. ``python tests/cuda_mutants.py`` prints who sees what; with ``--systematic [file ...]`` it
instead changes every operator and removes every barrier, one at a time, and lists the edits that nobody notices.
"""

import contextlib
import multiprocessing
import re
import sys
import types
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import cuda_cases as cases
import numpy as np
from cuda_cases import make_case, make_fused_case, make_sure_case, make_sure_fused_case, solve, solve_fused
from cuda_emulation import Emulation, StretchedArray, device, empty
from emulator.ptx import Fault, Unsupported
from emulator.toolchain import CompileError, compile_ptx, ptxas_facts

from gpusoftmax.kernels import cuda, launches

BARRIER = "__syncthreads();"
ROWS, BLOCK, FUSED = "residual_rows(const", "residual_block(const", "fused_small(const"
TILES, LOSSES, PARTS, COLUMNS = "tile_losses(const", "sum_losses(const", "sum_parts(const", "column_sums(const"
PAD, UNPAD = "pad_classes(const in", "unpad_classes(const in"


@dataclass(frozen=True)
class Mutant:
    """One edit: the first `old` behind `after`. `runs` and `detector` say where it must be seen and by whom."""

    name: str
    runs: str
    detector: str
    old: str = ""
    new: str = ""
    after: str = ""
    file: str = ""  # of host code; the kernels' own text where empty
    options: dict = field(default_factory=dict)  # of the emulation instead of an edit

    def edit(self, code):
        """Return the text of a kernel file with the edit, or unchanged where it does not belong there."""
        if not self.old or self.file:
            return code
        return replaced(code, self.old, self.new, self.after) if self.after in code else code

    def kernels(self, **options):
        """Return `Kernels` with this bug."""
        emulation = Emulation(edit=self.edit, **self.options | options)
        if not self.file:
            return cuda.Kernels(emulation)
        return mutated_host(self)["Kernels"](emulation)


def replaced(code, old, new, after):
    at = code.index(old, code.index(after))
    return code[:at] + new + code[at + len(old) :]


def mutated_host(mutant):
    """Return the names of cuda.py with the edit in it, or in the launch table that it uses."""
    module = {"cuda.py": cuda, "launches.py": launches}[mutant.file]
    text = replaced(Path(module.__file__).read_text(encoding="utf-8"), mutant.old, mutant.new, mutant.after)
    copy = types.ModuleType(module.__name__)
    exec(compile(text, mutant.file, "exec"), vars(copy))
    if module is cuda:
        return vars(copy)
    copy.FUSED_GRID = launches.FUSED_GRID
    names = dict(vars(cuda), launches=copy)
    source = Path(cuda.__file__).read_text(encoding="utf-8")
    source = source.replace("from gpusoftmax.kernels import launches\n", "")
    exec(compile(source, "cuda.py", "exec"), names)
    return names


def numerics(name, runs, old, new, after="", detector="numeric"):
    return Mutant(f"numerics: {name}", runs, detector, old, new, after)


MUTANTS = (
    numerics("maximum over half the lanes", "rows", "step = LANES / 2", "step = LANES / 4", "number lanes_max"),
    numerics("sum over half the lanes", "rows", "step = LANES / 2", "step = LANES / 4", "real lanes_sum"),
    numerics("no barrier in the block's sum", "block", BARRIER, "", "real block_sum", "race"),
    numerics("INFINITY, which needs a header", "rows", "__int_as_float(0xff800000)", "-INFINITY", "", "compile"),
    numerics("bfloat16 by cutting", "16 bits", " + 0x7fffu + ((bits >> 16) & 1u)", ""),
    numerics("bfloat16 rounds ties up", "16 bits", "0x7fffu + ((bits >> 16) & 1u)", "0x8000u"),
    numerics("bfloat16's NaN becomes a number", "16 bits", "value == value ? rounded : 0x7fffu", "0u"),
    numerics("halves of a word exchanged", "16 bits",
           "from[0], type) | to_bits(from[1]", "from[1], type) | to_bits(from[0]"),
    numerics("y - t at the largest logit", "sure",
           "target.second - rest * inverse_sum", "e * inverse_sum - target.first"),
    numerics("too much taken from the label", "rows", "spread * (classes - 1)", "spread * classes", "missing(spread"),
    numerics("soft targets keep everything", "soft", "keep * soft[column]", "soft[column]"),
    numerics("32-bit offset of soft targets", "stretched targets", "row * ld_t", "(int)row * (int)ld_t", "", "bounds"),
    numerics("half a tile's losses", "rows", "first_half + second_half", "first_half", "lanes_sum<32>(first"),
    Mutant("rows: no barrier before the tile sum", "rows", "race", BARRIER, "", ROWS),
    Mutant("rows: one row too many", "rows", "bounds", "in_tile < rows", "in_tile <= rows", ROWS),
    Mutant("rows: 32-bit offset of logits", "stretched", "bounds", "z + row * ld_z", "z + (int)row * (int)ld_z", ROWS),
    Mutant("rows: 32-bit offset of the output", "stretched", "bounds",
           "g + row * ld_g", "g + (int)row * (int)ld_g", ROWS),
    Mutant("rows: pad columns take part", "rows", "numeric", "column + p < classes ?", "column < classes ?"),
    Mutant("rows: maximum not subtracted", "rows", "numeric", "value[j] - top", "value[j]", ROWS),
    Mutant("rows: bias missing", "rows", "numeric", "value[p] + added[p]", "value[p]"),
    Mutant("rows: weight missing from the residual", "rows", "numeric",
           "weight * residual_value(v", "residual_value(v", ROWS),
    Mutant("rows: weight missing from the loss", "rows", "numeric",
           "(double)weight * ((double)log1p", "1.0 * ((double)log1p", ROWS),
    Mutant("rows: all problems have the first one's weights", "rows", "numeric",
           " + problem * weight_problem_stride", "", ROWS),
    Mutant("rows: a tie counted as one", "ties", "numeric", " + (ties - real(1))", "", ROWS),
    Mutant("rows: log(1 + rest)", "sure", "numeric", "log1p(rest)", "log(real(1) + rest)", ROWS),
    Mutant("rows: problem and tile exchanged", "rows", "bounds",
           "problem * loss_stride + tile", "tile * loss_stride", ROWS),
    Mutant("rows: half a warp adds the losses", "rows", "divergence", "threadIdx.x < 32", "threadIdx.x < 16", ROWS),
    Mutant("rows: losses added atomically", "rows", "uninitialised", "loss[problem * loss_stride + tile] = sum",
           "atomicAdd(&loss[problem * loss_stride + tile], sum)", ROWS),
    Mutant("rows: the output has the logits' stride", "16 bits", "race",
           "problem * stride_g", "problem * stride", ROWS),
    Mutant("rows: rows behind the end are written", "rows", "race", "if (live && column < stride_g)",
           "if (column < stride_g)", ROWS),
    Mutant("rows: pads of the output left alone", "16 bits", "numeric",
           "live && column < stride_g", "live && column < classes", ROWS),
    Mutant("rows: logits through the read-only path", "rows", "read-only",
           "const real* z", "const real* __restrict__ z",
           "residual_rows("),
    Mutant("rows: a direction's mean cancels", "sure", "numeric", "v[j] -= anchor;", "", ROWS),
    Mutant("rows: a direction's mean added", "modes", "numeric", "(v[j] - mean)", "(v[j] + mean)", ROWS),
    Mutant("rows: log sum added", "modes", "numeric", "v - log_sum", "v + log_sum", ROWS),
    Mutant("rows: probabilities not normalised", "modes", "numeric", "v = v * inverse", "v = v", ROWS),
    Mutant("block: no barrier after the warps' results", "block", "race", BARRIER, "", BLOCK),
    Mutant("block: running sum not rescaled", "block", "numeric",
           "(rest + ties) * exp(top - largest)", "(rest + ties)", BLOCK),
    Mutant("block: warps' sums not rescaled", "block", "numeric", " * exp(warp_top[i] - top)", "", BLOCK),
    Mutant("block: ties forgotten at a new maximum", "block", "numeric", "(rest + ties) * exp(top - largest)",
           "rest * exp(top - largest)", BLOCK),
    Mutant("block: idle threads leave before the barrier", "block", "divergence", "if (row >= rows) return",
           "if (threadIdx.x * PACK >= classes) return", BLOCK),
    Mutant("block: stride in bytes", "block", "bounds", "z + row * ld_z", "z + row * ld_z * sizeof(real)", BLOCK),
    Mutant("block: 32-bit offset of logits", "stretched block", "bounds",
           "z + row * ld_z", "z + (int)row * (int)ld_z", BLOCK),
    Mutant("block: pads of the output left alone", "16 bits", "numeric",
           "column < stride_g", "column < classes", BLOCK),
    Mutant("block: problems share row losses", "block", "race", "problem * loss_stride + row", "row", BLOCK),
    Mutant("block: anchor of another thread's maximum", "sure", "numeric",
           "place = lanes_max<32>(holds_top ? place : 0)",
           "place = 0", BLOCK),
    Mutant("losses: tail of the tile not masked", "sums", "bounds", "second < rows ? row_loss[second] : 0.0",
           "row_loss[second]", TILES),
    Mutant("losses: no barrier inside the tree", "sums", "race", BARRIER, "", "partial[threadIdx.x + half]"),
    Mutant("losses: tree starts too low", "sums", "numeric",
           "half = SUM_THREADS / 2", "half = SUM_THREADS / 4", LOSSES),
    Mutant("losses: old total lost", "sums", "numeric", "accumulate ? total[blockIdx.x] : 0.0", "0.0", LOSSES),
    Mutant("parts: behind the end", "sums", "bounds", "i >= length", "i > length + 256", PARTS),
    Mutant("parts: added in float", "sums", "numeric", "double sum = 0", "float sum = 0", PARTS),
    Mutant("columns: no barrier before the warps are added", "sums", "race", BARRIER, "", COLUMNS),
    Mutant("columns: rows behind the end", "sums", "bounds", "min(rows, (group + 1) * GROUP_ROWS)",
           "(group + 1) * GROUP_ROWS", COLUMNS),
    Mutant("columns: warps overlap", "sums", "numeric", "row += WARPS", "row += 1", COLUMNS),
    Mutant("columns: 32-bit offset", "stretched sums", "bounds", "row * ld_g", "(int)row * (int)ld_g", COLUMNS),
    Mutant("pad: second number of a pair not masked", "sums", "bounds", "k + 1 < classes ? from[1] : in_type(0)",
           "k < classes ? from[1] : in_type(0)", PAD),
    Mutant("unpad: problems taken for contiguous", "sums", "numeric", "problem * stride", "problem * classes", UNPAD),
    Mutant("fused: no barrier after loading x", "fused", "race", BARRIER, "", "store_pack(shared_x"),
    Mutant("fused: no barrier at the loop head", "fused", "race", BARRIER, "", "row0 = tile"),
    Mutant("fused: no barrier before the softmax", "fused", "race", BARRIER, "", "store_pack(shared_g"),
    Mutant("fused: no barrier before XᵀG", "fused", "race", BARRIER, "", "row_loss[problem * TILE_ROWS + first"),
    Mutant("fused: no barrier between row slices", "fused", "race", BARRIER, "", "Add the row slices"),
    Mutant("fused: feature tail read", "fused", "bounds", "if (d + p < D) ", "", FUSED),
    Mutant("fused: rows behind the end count", "fused", "numeric", "live ? weight * residual_value",
           "true ? weight * residual_value", FUSED),
    Mutant("fused: pads of w not zeroed", "fused", "uninitialised",
           "shared_w[i] = d < D && c < C ? w[d * C + c] : real(0)",
           "if (d < D && c < C) shared_w[i] = w[d * C + c]", FUSED),
    Mutant("fused: unaligned rows in shared memory", "fused", "alignment",
           "D_PACKS % 2 ? D_PAD : D_PAD + PACK", "D_PAD + 1"),
    Mutant("fused: blocks overlap", "fused", "race", "tile += gridDim.x", "tile += 1", FUSED),
    Mutant("fused: a block never ends", "fused", "hang", "tile += gridDim.x", "tile += 0", FUSED,
           options={"issue_limit": 50_000}),
    Mutant("fused: last slice lost", "fused", "numeric",
           "slice < SLICES; ++slice", "slice < SLICES - 1 || slice < 1; ++slice",
           "Add the row slices"),
    Mutant("fused: 32-bit offset of x", "stretched fused", "bounds",
           "(row0 + r) * ld_x", "(int)(row0 + r) * (int)ld_x"),
    Mutant("fused: dynamic shared memory a pack short", "fused", "bounds", options={"missing_shared": 16}),
    Mutant("fused: 32 registers demanded", "static", "static",
           "__launch_bounds__(256, 1)", "__launch_bounds__(256, 8)"),
    Mutant("host: a Python int", "rows", "host", "np.int32(classes)", "classes", "launch,\n            z,", "cuda.py"),
    Mutant("host: rows as 64 bits", "rows", "host",
           "np.int32(rows)", "np.int64(rows)", "launch,\n            z,", "cuda.py"),
    Mutant("host: weights' strides exchanged", "rows", "numeric", "*_strides(weights, rows, problems)",
           "*_strides(weights, rows, problems)[::-1]", "def residual", "cuda.py"),
    Mutant("host: stride in bytes", "rows", "bounds",
           "array.strides[0] // size)", "array.strides[0])", "def _leading", "cuda.py"),
    Mutant("host: the last tile has no block", "rows", "numeric", "n_tiles(rows) * problems",
           "max(1, rows // TILE_ROWS) * problems", "lanes, values = shape", "launches.py"),
    Mutant("host: too few lanes for 16-bit pads", "16 bits", "numeric", "padded(classes, itemsize(out))", "classes - 1",
           "def row_shape", "launches.py"),
    Mutant("host: shared memory for contiguous rows", "fused", "bounds", "d if d // pack % 2 else d + pack", "d",
           "def fused_shared_bytes", "launches.py"),
)  # fmt: skip
CONTROL = Mutant("the unchanged source", "", "")


# ---------------------------------------------------------------- runs


def _residual(case, mode="GRADIENT", **options):
    def run(mutant):
        answer = solve(mutant.kernels(), case, mode, **options)
        error, loss_error = cases.errors(case, answer, mode)
        name = case.dtype.name
        if not (error <= cases.TOLERANCE[name] and loss_error <= cases.LOSS_TOLERANCE[name]):
            return "numeric"
        again = solve(mutant.kernels(reverse_blocks=True, threads_at_once=256), case, mode, **options)
        return None if again.bits() == answer.bits() else "determinism"

    return run


def _sure(classes, mode, targets="labels", dtype="f4"):
    def run(mutant):
        case, (loss, residual) = make_sure_case(classes, dtype, targets)
        answer = solve(mutant.kernels(), case, mode)
        expected = cases.sure_hessian(case) if mode == "HESSIAN" else residual
        tolerance = 1e-4 if mode == "HESSIAN" else cases.SURE_TOLERANCE[case.dtype.name]
        floor = 1e-6 * np.abs(expected).max() if mode == "HESSIAN" else 0
        error = np.abs(answer.output[:, 0, :classes] - expected) / (np.abs(expected) + floor)
        lost = 0.0 if mode == "HESSIAN" else np.abs(answer.tile_loss.sum() / loss.sum() - 1)
        return None if error.max() <= tolerance and lost <= tolerance else "numeric"

    return run


def _sixteen_bits(classes, out):
    def run(mutant):
        case = make_case(9, classes, 2)
        case.z[3, 1, 0] = np.nan
        bits = solve(mutant.kernels(), case, out=out).output.view("u2")
        values = bits.view("f2") if out == "float16" else (bits.astype("u4") << 16).view("f4")
        exact = solve(cuda.Kernels(Emulation()), case).output[:, :, :classes]
        if values[:, :, classes:].any():
            return "numeric"
        rounded = exact.astype("f2") if out == "float16" else bfloat16(exact)
        return None if np.array_equal(values[:, :, :classes], rounded, equal_nan=True) else "numeric"

    return run


def bfloat16(values):
    """Return float32 numbers rounded to bfloat16, to nearest and ties to even, as float32."""
    bits = np.ascontiguousarray(values).view("u4")
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).view("f4")
    return np.where(np.isnan(values), values, rounded)


def _ties_to_even(mutant):
    """Residuals that lie between two numbers of bfloat16: one row of two classes whose weight is such a number."""
    case = make_case(4, 2, weights="shared", bias=False)
    case.z[...] = 0
    case.labels[...] = 0
    case.weights[...] = 2 * (1 + np.arange(1, 9, 2, dtype="f4") / 256)
    bits = solve(mutant.kernels(), case, out="bfloat16").output[:, 0, 1].view("u2")
    return None if np.array_equal((bits.astype("u4") << 16).view("f4"), bfloat16(case.weights / 2)) else "numeric"


def _fused(case, grid=4, X=None, **options):
    def run(mutant):
        before, launches.FUSED_GRID = launches.FUSED_GRID, grid
        try:
            found = [solve_fused(mutant.kernels(), case, X=X() if X else None, **options)]
            found.append(
                solve_fused(
                    mutant.kernels(reverse_blocks=True, threads_at_once=256), case, X=X() if X else None, **options
                )
            )
        finally:
            launches.FUSED_GRID = before
        with contextlib.suppress(AssertionError):
            cases.assert_fused_right(case, *found[0])
            same = all(a.tobytes() == b.tobytes() for a, b in zip(*found, strict=True))
            return None if same else "determinism"
        return "numeric"

    return run


def _stretched(classes, what="z"):
    """Rows 2^32 bytes apart: the third one starts at element 2^31."""

    def run(mutant):
        case = make_case(3, classes, weights=None, targets="soft")
        z, targets = device(case.z.reshape(3, -1)), device(case.targets)
        if what == "z":
            z = StretchedArray(case.z.reshape(3, -1), 2**32)
        else:
            targets = StretchedArray(case.targets, 2**32)
        tile_loss, row_loss = empty((1, 1)), empty((1, 3))
        mutant.kernels().residual(
            z, z, classes, 1, bias=device(case.bias), targets=targets, tile_loss=tile_loss,
            row_loss=row_loss if launches.needs_row_losses(classes, "f4") else None,
        )  # fmt: skip
        output = z.array if what == "z" else np.asarray(z)
        error = cases.largest_error(output[:, :classes], case.expected()[0][:, 0])
        return None if error <= cases.TOLERANCE["float32"] else "numeric"

    return run


def _check(actual, expected, tolerance=1e-13):
    return None if cases.largest_error(actual, np.asarray(expected, "f8")) <= tolerance else "numeric"


def _sum_losses(mutant):
    values, total = np.random.default_rng(0).random((2, 1000)), device(np.ones(2))
    mutant.kernels().sum_losses(device(values), total, accumulate=True)
    return _check(total, 1 + values.sum(axis=1))


def _tile_losses(rows):
    def run(mutant):
        values, tiles = np.random.default_rng(0).random((2, rows)), empty((2, launches.n_tiles(rows)))
        mutant.kernels().tile_losses(device(values), tiles)
        return _check(tiles, np.add.reduceat(values, np.arange(0, rows, 64), axis=1))

    return run


def _sum_parts(mutant):
    values = np.random.default_rng(0).normal(size=(3, 300))
    values[:2] *= 1e8
    values[1] -= values[0]
    parts, out = values.astype("f4"), device(np.ones(300))
    mutant.kernels().sum_parts(device(parts), out, scale=0.5, accumulate=True)
    return _check(out, 1 + 0.5 * parts.astype("f8").sum(axis=0))


def _column_sums(columns):
    def run(mutant):
        g, out = np.random.default_rng(0).normal(size=(1030, columns)), empty((columns,))
        mutant.kernels().column_sums(device(g.astype("f4")), empty((3, columns)), out, scale=2.0)
        return _check(out, 2 * g.astype("f4").astype("f8").sum(axis=0))

    return run


def _stretched_sums(mutant):
    g, out = np.ones((9, 4), "f4"), empty((4,))
    mutant.kernels().column_sums(StretchedArray(g, 2**31), empty((1, 4)), out)
    return _check(out, [9.0] * 4)


def _layouts(classes):
    """More numbers than one block copies; with two classes a whole pair of each problem is pad."""

    def run(mutant):
        values, stride = np.random.default_rng(0).normal(size=(60, 4 * classes)), launches.padded(classes, 4)
        padded, back = empty((60, 4 * stride), "f4"), empty((60, 4 * classes))
        scale = np.arange(1.0, 5.0)
        mutant.kernels().pad_classes(device(values), classes, 4, padded)
        expected = np.zeros((60, 4, stride))
        expected[:, :, :classes] = values.astype("f4").reshape(60, 4, classes)
        wrong = _check(padded, expected.reshape(60, -1))
        if wrong is None:
            mutant.kernels().unpad_classes(padded, classes, 4, stride, back, scale=device(scale))
        return wrong or _check(back, values.astype("f4") * np.repeat(scale, classes))

    return run


def _halves(mutant):
    """Matrices copied to 16-bit storage, whose columns are then added."""
    values = np.random.default_rng(0).normal(size=(5, 16)).astype("f4")
    for dtype in ("f2", "u2"):
        g, out = empty((5, 16), dtype), empty((16,))
        mutant.kernels().pad_classes(device(values), 16, 1, g)
        mutant.kernels().column_sums(g, empty((1, 16)), out)
        rounded = values.astype("f2") if dtype == "f2" else bfloat16(values)
        if _check(out, rounded.astype("f8").sum(axis=0)):
            return "numeric"
    return None


def _static(mutant):
    names = ("fused_small<float, 54, 7, 1, 64>", "fused_small<float, 127, 31, 1, 32>")
    compiled = compile_ptx(mutant.edit(cuda.source("fused_small")), names)
    return "static" if any(f.spill_bytes for f in ptxas_facts(compiled.ptx, "sm_90").values()) else None


def _ties(classes):
    case = make_case(9, classes, bias=False)
    case.z[:, :, : classes // 2] = case.z[:, :, :classes].max() + 1
    return case


def _sure_fused(mutant):
    case, (loss, residual) = make_sure_fused_case(10, "f4")
    found_loss, _, gradient = solve_fused(mutant.kernels(), case)
    lost, error = np.abs(found_loss / loss - 1), np.abs(gradient[:, 0] / residual - 1)
    return None if max(lost.max(), error.max()) <= cases.SURE_TOLERANCE["float32"] else "numeric"


def _crooked_x():
    """Rows of whole packs that start at no multiple of 16 bytes."""
    memory = device(np.full(70 * 4 + 1, np.nan, "f4"))
    memory[1:] = make_fused_case(70, 4, 3).X.ravel()
    return memory[1:].reshape(70, 4)


def _wide_x():
    """Rows that start at multiples of 16 bytes and whose pads must not be read."""
    wide = device(np.full((70, 8), np.nan, "f4"))
    wide[:, :6] = make_fused_case(70, 6, 4).X
    return wide[:, :6]


_three_rows = make_fused_case(3, 6, 4, weights=None)

RUNS = {
    "rows": (
        _residual(make_case(130, 10, 2, label_smoothing=0.1), in_place=True),
        _residual(make_case(66, 33, 2, size=1e4), by_problem=True),
        _residual(make_case(65, 3, dtype="f8", targets="soft")),
        _residual(make_case(9, 200, bias=False, weights=None)),
    ),
    "soft": (_residual(make_case(9, 10, targets="soft", label_smoothing=0.1)),),
    "ties": (_residual(_ties(10)), _residual(_ties(600))),
    "modes": tuple(
        _residual(make_case(5, classes, 2), mode)
        for classes in (10, 200, 600)
        for mode in ("LOSS", "PROBABILITIES", "LOG_PROBABILITIES", "HESSIAN")
    ),
    "sure": tuple(
        _sure(classes, mode, targets)
        for classes in (3, 63, 2105)
        for mode, targets in (("GRADIENT", "labels"), ("GRADIENT", "soft"), ("HESSIAN", "labels"))
    ),
    "16 bits": (
        *(_sixteen_bits(classes, out) for classes in (9, 1001) for out in ("float16", "bfloat16")),
        _ties_to_even,
    ),
    "block": (
        _residual(make_case(5, 1003, 2, label_smoothing=0.1), in_place=True),
        _residual(make_case(3, 517, 2, size=1e4), by_problem=True),
        _residual(make_case(3, 2100, targets="soft")),  # more than one pack per thread
        _residual(make_case(70, 600, bias=False, weights=None)),
        _residual(make_case(3, 515, dtype="f8")),
    ),
    "stretched": (_stretched(4),),
    "stretched block": (_stretched(600),),
    "stretched targets": (_stretched(4, "targets"),),
    "sums": (
        *(_sum_losses, *map(_tile_losses, (200, 230)), _sum_parts, *map(_column_sums, (70, 64, 2))),
        *(*map(_layouts, (3, 2)), _halves),
    ),
    "stretched sums": (_stretched_sums,),
    "fused": (
        _fused(make_fused_case(300, 32, 10)),
        _fused(make_fused_case(100, 127, 7, label_smoothing=0.1), grid=2, shared_limit=20_000),
        _fused(make_fused_case(70, 6, 3, 3, "f8", targets="soft"), grid=2),
        _fused(make_fused_case(20, 400, 12), shared_limit=48_000),
        _fused(make_fused_case(70, 6, 4), X=_wide_x),
        _fused(make_fused_case(70, 4, 3), X=_crooked_x),
        _fused(make_fused_case(70, 3, 4, 2, "f8", spread=1e3), by_problem=True),
        _sure_fused,
        _fused(replace(_three_rows, params=np.zeros_like(_three_rows.params))),  # ties
        _fused(make_fused_case(256, 6, 3, weights=None), grid=2),  # no row is left over
        _fused(make_fused_case(3, 5, 2, 9, has_intercept=False)),
    ),
    "stretched fused": (_fused(_three_rows, X=lambda: StretchedArray(_three_rows.X, 2**32)),),
    "static": (_static,),
}  # fmt: skip


def detector(mutant, runs=None):
    """Return who sees a mutant first in the given runs, by default its own, or None."""
    for name in runs or (mutant.runs,):
        for run in RUNS[name]:
            try:
                found = run(mutant)
            except Fault as fault:
                found = fault.kind
            except CompileError:
                found = "compile"
            except AssertionError:
                found = "host"
            except Unsupported:
                found = "not executable"
            if found:
                return found
    return None


# ---------------------------------------------------------------- every operator and barrier

OPERATORS = {
    BARRIER: "", " < ": " <= ", " > ": " >= ", " >= ": " > ", " + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ",
    " % ": " / ", " += ": " -= ", " -= ": " += ", " *= ": " /= ", " && ": " || ", " == ": " != ", " = 0": " = 1",
    "real(0)": "real(1)", "real(1)": "real(0)", " | ": " & ", " << ": " >> ", " >> ": " << ",
}  # fmt: skip
KERNEL_RUNS = {
    "residual_rows(const": ("rows", "soft", "16 bits", "sure", "modes", "ties", "stretched", "stretched targets"),
    "residual_block(const": ("block", "16 bits", "sure", "modes", "ties", "stretched block"),
    "tile_losses(const": ("sums",),
    "fused_small(const": ("fused", "stretched fused"),
    "load_logits(const": ("rows", "block", "modes"),
}
FILES = ("numerics.cuh", "residual.cu", "fused_small.cu", "sums.cu")


@dataclass(frozen=True)
class Edit:
    """One operator changed in one line of a file."""

    file: str
    number: int
    before: str
    after: str
    column: int
    runs: tuple

    options = None

    def edit(self, code):
        line = self.text()
        changed = line[: self.column] + self.after + line[self.column + len(self.before) :]
        lines = source_lines(self.file)
        text = "\n".join(lines)
        if text not in code:
            return code
        lines[self.number - 1] = changed
        return code.replace(text, "\n".join(lines))

    def text(self):
        return source_lines(self.file)[self.number - 1]

    def kernels(self, **options):
        return cuda.Kernels(Emulation(edit=self.edit, issue_limit=200_000, **options))


def source_lines(file):
    return Path(cuda.__file__).with_name(file).read_text(encoding="utf-8").split("\n")


def edits(files=FILES):
    """Yield every edit outside comments, with the runs that execute its line."""
    for file in files:
        runs = {"numerics.cuh": ("rows", "soft", "16 bits", "sure", "block", "sums", "fused", "stretched targets")}.get(
            file, ("rows", "block", "16 bits", "modes")
        )
        for number, line in enumerate(source_lines(file), 1):
            runs = next((found for mark, found in KERNEL_RUNS.items() if mark in line), runs)
            code = line.split("//")[0]
            if re.match(r"\s*(#|template|static_assert|enum)", code) or "__global__" in code:
                continue
            for before, after in OPERATORS.items():
                for match in re.finditer(re.escape(before), code):
                    yield Edit(file, number, before, after, match.start(), runs)


def first_detector(edit):
    return edit, detector(edit, edit.runs) or ("same PTX" if is_same_ptx(edit) else "SURVIVES")


def is_same_ptx(edit):
    """Return whether an edit leaves the PTX as it is, for representative instantiations."""
    names = {
        "residual": ("residual_rows<float, float16, GRADIENT, 4, 4>", "residual_block<float, float, GRADIENT, 256>",
                     "residual_rows<float, float, HESSIAN, 32, 8>", "residual_block<float, bfloat16, HESSIAN, 256>"),
        "fused_small": ("fused_small<float, 127, 7, 1, 16>", "fused_small<double, 6, 3, 3, 64>"),
        "sums": ("tile_losses", "sum_losses", "sum_parts<float, double>", "column_sums<float>",
                 "pad_classes<double, float>", "pad_classes<float, bfloat16>", "column_sums<float16>",
                 "unpad_classes<float, double>"),
    }  # fmt: skip
    files = [Path(edit.file).stem] if edit.file.endswith(".cu") else list(names)
    pairs = [(cuda.source(f), edit.edit(cuda.source(f)), names[f]) for f in files]
    return all(compile_ptx(old, n).ptx == compile_ptx(new, n).ptx for old, new, n in pairs)


def systematic(files, processes=2):
    counts = Counter()
    with multiprocessing.Pool(processes, maxtasksperchild=20) as pool:
        for edit, found in pool.imap(first_detector, edits(files)):
            counts[found] += 1
            if found in ("SURVIVES", "same PTX", "not executable"):
                change = f"{edit.before!r} -> {edit.after!r}"
                say(f"{found}: {edit.file}:{edit.number}:{edit.column} {change}: {edit.text().strip()}")
    say(f"{counts.total()} edits, by first detector: {dict(counts.most_common())}")


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main():
    for mutant in MUTANTS:
        found = detector(mutant) or "SURVIVES"
        mark = "" if found == mutant.detector else f"   expected {mutant.detector}"
        say(f"{mutant.name:55s} {found}{mark}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if "--systematic" in sys.argv:
        systematic(sys.argv[sys.argv.index("--systematic") + 1 :] or FILES)
    else:
        main()
