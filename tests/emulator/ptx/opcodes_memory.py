"""Loads, stores, atomics, and addresses."""

import numpy as np

from . import arithmetic as math
from .decoding import allow, apply, opcode
from .faults import Unsupported
from .memory import Access, atomic
from .operands import address, parameter_offset, source, target
from .program import DTYPES, LOCAL_WINDOW, SHARED_WINDOW

# ---- memory -----------------------------------------------------------------------------------

CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile")
SPACES = ("global", "shared", "local", "param", "const", "generic")


def _space(ins):
    known = {"shared::cta": "shared"}
    named = [known.get(mod, mod) for mod in ins.mods if known.get(mod, mod) in SPACES]
    space = named[0] if named else "generic"
    return "global" if space == "const" else space


def _access(program, ins):
    """Space and shape of a load or store; refuse what is not plain."""
    rest = [mod for mod in ins.mods if not mod.startswith(("L1::", "L2::"))]
    if any("cache_hint" in mod for mod in ins.mods):
        raise Unsupported(str(ins))
    for mod in rest:
        if mod not in (*CACHE, *SPACES, "shared::cta", "nc", "v2", "v4", "v8") and mod not in DTYPES:
            raise Unsupported(str(ins))
    vector = next((int(mod[1]) for mod in ins.mods if mod in ("v2", "v4", "v8")), 1)
    space = _space(ins)
    access = Access(ins.dtype, vector, ins, read_only="nc" in ins.mods)
    program.note_access(space, access.nbytes)
    return space, access


def _names(text, vector):
    names = text.strip("{}").split(",")
    if len(names) != vector:
        raise ValueError(text)
    return names


@opcode("ld", "ldu")
def _load(program, ins):
    space, access = _access(program, ins)
    where = address(program, ins.operands[1])
    goals = [target(program, name, access.dtype) for name in _names(ins.operands[0], access.vector)]
    if len(ins.operands) != 2:
        raise Unsupported(str(ins))
    offset = parameter_offset(program, ins.operands[1]) if space == "param" else None
    if offset is not None:
        return _load_parameter(goals, offset, access)
    if access.vector == 1:
        (goal,) = goals

        def run(m, at):
            m.views[goal][at] = m.spaces[space].load(where(m, at), m.everyone[at], access)

        return run

    def run_vector(m, at):
        values = m.spaces[space].load(where(m, at), m.everyone[at], access)
        for i, goal in enumerate(goals):
            m.views[goal][at] = values[i]

    return run_vector


def _load_parameter(goals, offset, access):
    """What all threads read at one known place."""
    if access.vector == 1:
        return lambda m, at: m.views[goals[0]].__setitem__(at, m.spaces["param"].uniform(offset, access))

    def run(m, at):
        for goal, value in zip(goals, m.spaces["param"].uniform(offset, access), strict=True):
            m.views[goal][at] = value

    return run


@opcode("st")
def _store(program, ins):
    space, access = _access(program, ins)
    if space == "param" or access.read_only or len(ins.operands) != 2:
        raise Unsupported(str(ins))
    where = address(program, ins.operands[0])
    sources = [source(program, name, access.dtype) for name in _names(ins.operands[1], access.vector)]
    if access.vector == 1:
        (only,) = sources

        def run(m, at):
            m.spaces[space].store(where(m, at), m.everyone[at], m.views[only][at], access)

        return run

    def run_vector(m, at):
        values = np.stack([m.views[slot][at] for slot in sources])
        m.spaces[space].store(where(m, at), m.everyone[at], values, access)

    return run_vector


ATOMICS = {
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, compare, new: np.where(old == compare, new, old),
    "inc": lambda old, limit: np.where(old >= limit, 0, old + 1).astype(old.dtype),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - 1).astype(old.dtype),
}


@opcode("atom", "red")
def _atomic(program, ins):
    allow(ins, "global", "shared", "shared::cta", "relaxed", "gpu", "cta", *ATOMICS, "min", "max")
    dtype, name = ins.dtype, next(mod for mod in ins.mods if mod in ATOMICS or mod in ("min", "max"))
    function = ATOMICS.get(name) or math.extremum(name, dtype, ())
    first = 1 if ins.op == "atom" else 0
    where = address(program, ins.operands[first])
    sources = [source(program, text, dtype) for text in ins.operands[first + 1 :]]
    if len(sources) != (2 if name == "cas" else 1):
        raise Unsupported(str(ins))
    goal = target(program, ins.operands[0] if ins.op == "atom" else "_", dtype)
    space, access = _space(ins), Access(dtype, 1, ins)
    program.note_access(space, access.nbytes)

    def run(m, at):
        values = [m.views[slot][at] for slot in sources]
        m.views[goal][at] = atomic(m.spaces[space], where(m, at), m.everyone[at], values, function, access)

    return run


@opcode("cvta")
def _convert_address(program, ins):
    allow(ins, "to", "global", "shared", "local", "const", "param", "shared::cta")
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(_space(ins), 0)
    if "param" in ins.mods:
        raise Unsupported(str(ins))
    delta = np.uint64(window if "to" not in ins.mods else -window & (2**64 - 1))
    return apply(program, ins, lambda a: a + delta)
