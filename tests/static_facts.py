"""What ptxas says about every kernel that the launch table can choose, and the occupancy that this allows.

``python tests/static_facts.py`` renews docs/verification/static-facts.csv. One row per kernel: threads of a block,
static and dynamic shared memory in bytes, the worst spill and stack of any architecture in bytes, registers per thread,
and the share of an SM's warps that fit on it at once, in percent: arithmetic, not a measurement. 0 means that the block
does not fit there, because of its shared memory; the host then chooses other rows per round (`shared_limit`).
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

from emulator.toolchain import compile_ptx, ptxas_facts

from gpusoftmax.kernels import cuda, launches
from gpusoftmax.kernels.launches import Launch

TABLE = Path(__file__).resolve().parents[1] / "docs" / "verification" / "static-facts.csv"
COMMAND = "python tests/static_facts.py"


class Multiprocessor(NamedTuple):
    """Limits of one SM, from the CUDA C++ Programming Guide's table of compute capabilities."""

    warps: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int
    reserved_bytes: int  # of shared memory, per block


KIB = 1024
ARCHITECTURES = {
    75: Multiprocessor(32, 16, 64 * KIB, 64 * KIB, 0),
    80: Multiprocessor(64, 32, 164 * KIB, 163 * KIB, KIB),
    86: Multiprocessor(48, 16, 100 * KIB, 99 * KIB, KIB),
    89: Multiprocessor(48, 24, 100 * KIB, 99 * KIB, KIB),
    90: Multiprocessor(64, 32, 228 * KIB, 227 * KIB, KIB),
    100: Multiprocessor(64, 32, 228 * KIB, 227 * KIB, KIB),
    120: Multiprocessor(48, 24, 100 * KIB, 99 * KIB, KIB),
}
REGISTERS, REGISTER_UNIT = 65536, 256  # per SM; a warp's are allocated in units

FUSED_SHAPES = (  # dtype, features, classes, problems, shared memory: representative, and the most registers
    ("float32", 16, 3, 1, launches.DEFAULT_SHARED_BYTES),
    ("float32", 16, 3, 16, launches.DEFAULT_SHARED_BYTES),
    ("float32", 32, 10, 1, launches.DEFAULT_SHARED_BYTES),
    ("float32", 54, 7, 8, launches.DEFAULT_SHARED_BYTES),
    ("float32", 127, 31, 1, launches.DEFAULT_SHARED_BYTES),
    ("float32", 784, 10, 1, launches.DEFAULT_SHARED_BYTES),
    ("float32", 72, 128, 2, launches.DEFAULT_SHARED_BYTES),
    ("float32", 96, 256, 1, 227 * KIB),
    ("float64", 16, 3, 1, launches.DEFAULT_SHARED_BYTES),
    ("float64", 54, 7, 1, launches.DEFAULT_SHARED_BYTES),
    ("float64", 54, 7, 8, launches.DEFAULT_SHARED_BYTES),
    ("float64", 96, 64, 1, launches.DEFAULT_SHARED_BYTES),
)


def all_launches() -> dict[str, Launch]:
    """Return a launch for every kernel, by its name expression."""
    found = list(launches.residual_launches())
    for dtype, features, classes, problems, limit in FUSED_SHAPES:
        found.append(launches.fused_small(64, features, classes, problems, dtype, limit))
    found += [launches.tile_losses(64, 1), launches.sum_losses(1)]
    reals = ("float32", "float64")
    for dtype in reals:
        found += [launches.sum_parts(1, dtype, out) for out in reals]
        found += [launches.unpad_classes(1, 1, 1, dtype, out) for out in reals]
        found += [launches.pad_classes(1, 1, 1, dtype, out) for out in (*reals, "float16", "bfloat16")]
    found += [launches.column_sums(1, 2, dtype) for dtype in (*reals, "float16", "bfloat16")]
    return {launch.name: launch for launch in found}


def collect(names, architecture):
    """Return {name: KernelFacts} of some kernels on one architecture."""
    facts = {}
    for file in cuda.SOURCES:
        own = tuple(name for name in names if cuda.file_of(name) == file)
        if own:
            compiled = compile_ptx(cuda.source(file), own, f"compute_{architecture}")
            found = ptxas_facts(compiled.ptx, f"sm_{architecture}")
            facts.update({name: found[compiled.symbols[name]] for name in own})
    return facts


def occupancy(launch, facts, sm):
    """Return the percentage of an SM's warps that this kernel's blocks can fill."""
    warps = launch.block // 32
    shared = facts.shared_bytes + launch.shared_bytes
    if shared > sm.block_shared_bytes:
        return 0
    per_warp = -(-facts.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    blocks = min(sm.blocks, sm.warps // warps, REGISTERS // (per_warp * warps))
    if shared:
        blocks = min(blocks, sm.shared_bytes // (shared + sm.reserved_bytes))
    return round(100 * blocks * warps / sm.warps)


def header():
    return [
        *("kernel", "threads", "static_shared_bytes", "dynamic_shared_bytes", "spill_bytes", "stack_bytes"),
        *(f"registers_sm_{a}" for a in ARCHITECTURES),
        *(f"occupancy_percent_sm_{a}" for a in ARCHITECTURES),
    ]


def rows():
    """Yield the rows of the table: compiles and assembles everything."""
    found = all_launches()
    facts = {architecture: collect(found, architecture) for architecture in ARCHITECTURES}
    for name, launch in found.items():
        own = {a: facts[a][name] for a in ARCHITECTURES}
        yield [
            *(name, launch.block, max(f.shared_bytes for f in own.values()), launch.shared_bytes),
            *(max(f.spill_bytes for f in own.values()), max(f.stack_bytes for f in own.values())),
            *(f.registers for f in own.values()),
            *(occupancy(launch, f, ARCHITECTURES[a]) for a, f in own.items()),
        ]


def read():
    """Return the committed table as {kernel: {column: int}}."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    return {row.pop("kernel"): {column: int(value) for column, value in row.items()} for row in table}


def main():
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header())
        writer.writerows(rows())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
