"""How opcodes are registered and decoded: one decoder per family, run once per kernel.

A decoder returns `run(machine, at)`, where `at` chooses threads (a slice or an index array).  Modifiers
that a decoder does not know raise `Unsupported`, as do opcodes without a decoder.
"""

import numpy as np

from . import arithmetic as math
from .faults import Unsupported
from .operands import PRED, source, target
from .program import DTYPES

DECODERS = {}


def opcode(*names):
    """Register the decoder of some opcodes."""

    def register(decoder):
        DECODERS.update(dict.fromkeys(names, decoder))
        return decoder

    return register


def decode(program, ins):
    """Fill in what executes an instruction."""
    decoder = DECODERS.get(ins.op)
    if decoder is None:
        raise Unsupported(str(ins))
    if ins.guard is not None:
        ins.guard = source(program, ins.guard, PRED)
    try:
        ins.run = decoder(program, ins)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise Unsupported(str(ins)) from error


def allow(ins, *known):
    """Refuse modifiers other than the known ones and the final type."""
    rest = [mod for mod in ins.mods if mod not in known and mod not in DTYPES]
    if rest:
        raise Unsupported(str(ins))


def apply(program, ins, function, result=None, kinds=None):
    """Run `function` of all source operands into the first operand."""
    dtype = ins.dtype
    kinds = kinds or [dtype] * (len(ins.operands) - 1)
    if len(kinds) != len(ins.operands) - 1:
        raise Unsupported(str(ins))
    sources = [source(program, text, kind) for text, kind in zip(ins.operands[1:], kinds, strict=True)]
    goal = target(program, ins.operands[0], result or dtype)
    if "ftz" in ins.mods and dtype == np.float32:
        return _flushed(function, sources, goal)
    if len(sources) == 1:
        (a,) = sources

        def run_one(m, at):
            views = m.views
            views[goal][at] = function(views[a][at])

        return run_one
    if len(sources) == 2:
        a, b = sources

        def run_two(m, at):
            views = m.views
            views[goal][at] = function(views[a][at], views[b][at])

        return run_two

    def run_many(m, at):
        views = m.views
        views[goal][at] = function(*[views[slot][at] for slot in sources])

    return run_many


def _flushed(function, sources, goal):
    def run(m, at):
        values = [m.views[slot][at] for slot in sources]
        result = function(*[math.flush(value) if value.dtype == np.float32 else value for value in values])
        m.views[goal][at] = math.flush(result) if result.dtype == np.float32 else result

    return run
