"""Branches, barriers, and what the lanes of a warp do together."""

import numpy as np

from .decoding import allow, opcode
from .faults import Unsupported
from .operands import PRED, U32, source, target

# ---- control ----------------------------------------------------------------------------------


@opcode("bra")
def _branch(program, ins):
    allow(ins, "uni")
    ins.control, ins.target = "branch", program.labels[ins.operands[0]]


@opcode("brx")
def _indexed_branch(program, ins):
    slot = source(program, ins.operands[0], U32)
    table = np.array([program.labels[label] for label in program.tables[ins.operands[1]]])

    def run(m, at):
        choice = m.views[slot][at]
        if (choice >= len(table)).any():
            m.fault("bounds", m.everyone[at][0], ins, " outside the branch table")
        return table[choice]

    ins.control = "table"
    return run


@opcode("ret", "exit")
def _leave(program, ins):
    allow(ins, "uni")
    ins.control = "leave"


@opcode("bar", "barrier")
def _barrier(program, ins):
    if ins.op == "bar" and ins.mods[:1] == ["warp"]:
        allow(ins, "warp", "sync")
        program.syncs_warps = True
        mask = source(program, ins.operands[0], U32)
        return lambda m, at: m.sync_warp(mask, at, ins)
    allow(ins, "sync", "aligned", "cta")
    if "sync" not in ins.mods or len(ins.operands) > 2 or not ins.operands[0].isdigit():
        raise Unsupported(str(ins))
    ins.control, ins.target = "barrier", (int(ins.operands[0]), None)
    if len(ins.operands) == 2:
        ins.target = (int(ins.operands[0]), int(ins.operands[1], 0))
    return None


@opcode("trap")
def _trap(program, ins):
    def run(m, at):
        m.fault("trap", m.everyone[at][0], ins)

    return run


@opcode("membar", "fence")
def _fence(program, ins):
    """Fences order one thread's accesses, which run in order here anyway; they order no two threads."""
    allow(ins, "gl", "cta", "sys", "sc", "acq_rel", "gpu")
    return lambda m, at: None


# ---- between the threads of a warp ------------------------------------------------------------


@opcode("shfl")
def _shuffle(program, ins):
    allow(ins, "sync", "up", "down", "bfly", "idx")
    goal = target(program, ins.operands[0], U32)
    flag = target(program, ins.operands[1] if ins.paired else "_", PRED)
    data, *rest = ins.operands[2 if ins.paired else 1 :]
    slots = (source(program, data, U32), *(source(program, text, U32) for text in rest))
    if len(slots) != 4 or "sync" not in ins.mods:
        raise Unsupported(str(ins))
    return lambda m, at: m.warps.shuffle(goal, flag, slots, ins.mods[1], at, ins)


@opcode("vote")
def _vote(program, ins):
    allow(ins, "sync", "ballot", "any", "all", "uni")
    if "sync" not in ins.mods or ins.operands[1].startswith("!"):
        raise Unsupported(str(ins))
    mode = ins.mods[1]
    goal = target(program, ins.operands[0], U32 if mode == "ballot" else PRED)
    choice, mask = source(program, ins.operands[1], PRED), source(program, ins.operands[2], U32)
    return lambda m, at: m.warps.vote(goal, choice, mask, mode, at, ins)


@opcode("redux")
def _reduce(program, ins):
    functions = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    allow(ins, "sync", *functions)
    if ins.dtype.kind == "f":
        raise Unsupported(str(ins))
    goal, value = target(program, ins.operands[0], ins.dtype), source(program, ins.operands[1], ins.dtype)
    mask = source(program, ins.operands[2], U32)
    return lambda m, at: m.warps.reduce(goal, value, mask, functions[ins.mods[1]], at, ins)
