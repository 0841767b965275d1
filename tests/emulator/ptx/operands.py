"""Operands as slots: every register view, constant and special register is one array of the machine.

`machine.views[slot][at]` is a vector of the chosen threads' values, whatever the operand is, so the
functions that execute instructions need no case distinction.
"""

import re

import numpy as np

from .faults import Unsupported
from .program import DTYPES

SPECIAL = {
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    "%laneid",
    "%warpid",
    "%lanemask_eq",
    "%lanemask_lt",
    "%lanemask_le",
    "%lanemask_gt",
    "%lanemask_ge",
}
U32, U64, PRED = DTYPES["u32"], DTYPES["u64"], DTYPES["pred"]
GLOBAL_SYMBOL_BASE = 1 << 50  # module constants: a launch binds them behind its arguments


def source(program, operand, dtype):
    """Slot of a value read as `dtype`; a wider register gives its low bytes."""
    if operand in program.registers:
        return _register(program, operand, dtype)
    if operand in SPECIAL:
        return program.slot("special", operand, dtype)
    if operand in program.constants:
        return program.slot("symbol", operand, dtype)
    offset = _symbol(program, operand)
    if offset is not None:
        return program.slot("constant", offset, dtype)
    return program.slot("constant", immediate(operand, dtype), dtype)


def target(program, operand, dtype):
    """Slot of a destination; a wider register is sign- or zero-extended."""
    if operand == "_":
        return program.slot("sink", dtype)
    own = program.registers.get(operand)
    if own is None:
        raise Unsupported(f"destination {operand}")
    if own.itemsize > dtype.itemsize and dtype.kind in "iu":
        dtype = np.dtype(f"{dtype.kind}{own.itemsize}")
    return _register(program, operand, dtype)


def parts(program, name, dtype):
    """Slots of the equal parts of `dtype` that make up a register, from the lowest bytes; None for another operand."""
    own = program.registers.get(name)
    if own is None:
        return None
    return [program.slot("part", name, dtype, i) for i in range(own.itemsize // dtype.itemsize)]


def is_number(text):
    """Whether an operand is the literal of a number that is not negative."""
    return re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", text) is not None


def _register(program, name, dtype):
    own = program.registers[name]
    if (own.kind == "b") != (dtype.kind == "b") or own.itemsize < dtype.itemsize:
        raise Unsupported(f"register {name} of {own} used as {dtype}")
    return program.slot("register", name, dtype)


def _symbol(program, operand):
    for layout in (program.shared, program.local):
        if operand in layout.symbols:
            return layout.symbols[operand]
    return next((p.offset for p in program.parameters if p.name == operand), None)


def immediate(text, dtype):
    """Python number of a literal, as bits of `dtype`."""
    if dtype.kind == "b":
        return bool(int(text, 0))
    for prefix, unsigned in (("0[fF]", "u4"), ("0[dD]", "u8")):
        if match := re.fullmatch(prefix + "([0-9a-fA-F]+)", text):
            bits = np.array(int(match[1], 16), unsigned)
            value = bits.view("f4" if unsigned == "u4" else "f8")
            return (value.astype(dtype) if dtype.kind == "f" else bits.view(dtype))[()]
    if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        raise Unsupported(f"operand {text}")
    number = int(text.rstrip("U"), 0 if "x" in text.lower() or not text.lstrip("-").startswith("0") else 8)
    if dtype.kind == "f":
        return dtype.type(number)
    mask = (1 << 8 * dtype.itemsize) - 1
    return np.array(number & mask, f"u{dtype.itemsize}").view(dtype)[()]


def _base_and_offset(operand):
    match = re.fullmatch(r"\[([%$\w.@]+)(?:\+(-?\w+))?\]", operand)
    if match is None:
        raise Unsupported(f"address {operand}")
    return match[1], int(match[2] or "0", 0)


def parameter_offset(program, operand):
    """Return where an address lies among the parameters, or None where a register says it."""
    base, offset = _base_and_offset(operand)
    if base in program.registers:
        return None
    start = _symbol(program, base)
    return None if start is None or start + offset < 0 else start + offset


def address(program, operand):
    """Return a function (machine, at) -> addresses (uint64) of the chosen threads."""
    base, offset = _base_and_offset(operand)
    offset = np.uint64(offset & (2**64 - 1))
    narrow = base in program.registers and program.registers[base].itemsize == 4
    slot = source(program, base, U32 if narrow else U64)
    if narrow:
        return lambda machine, at: machine.views[slot][at].astype(np.uint64) + offset
    return lambda machine, at: machine.views[slot][at] + offset
