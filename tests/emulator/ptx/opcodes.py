"""What each PTX instruction does: one decoder per family, run once per kernel.

A decoder returns `run(machine, at)`, where `at` chooses threads (a slice or an index array).  Modifiers
that a decoder does not know raise `Unsupported`, as do opcodes without a decoder.
"""

import numpy as np

from . import arithmetic as math
from .faults import Fault, Unsupported
from .memory import Access, atomic
from .operands import PRED, U32, address, source, target
from .program import DTYPES, LOCAL_WINDOW, SHARED_WINDOW

DECODERS = {}
CONTROL = {"bra", "brx", "ret", "exit", "bar", "barrier"}


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
        return lambda m, at: m.views[goal].__setitem__(at, function(m.views[a][at]))
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
    function = ATOMICS.get(name) or _extremum(name, dtype, ())
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


# ---- moving and converting --------------------------------------------------------------------


def _identity(a):
    return a


@opcode("mov")
def _move(program, ins):
    allow(ins)
    goal, origin = ins.operands
    if origin.startswith("{"):
        return _pack(program, ins)
    if goal.startswith("{"):
        return _unpack(program, ins)
    return apply(program, ins, _identity)


def _parts(text, dtype):
    names = text.strip("{}").split(",")
    return names, np.dtype(f"u{dtype.itemsize // len(names)}")


def _pack(program, ins):
    names, part = _parts(ins.operands[1], ins.dtype)
    whole = np.dtype(f"u{ins.dtype.itemsize}")
    sources = [source(program, name, part) for name in names]
    goal = target(program, ins.operands[0], whole)

    def run(m, at):
        m.views[goal][at] = np.stack([m.views[slot][at] for slot in sources], 1).view(whole)[:, 0]

    return run


def _unpack(program, ins):
    names, part = _parts(ins.operands[0], ins.dtype)
    whole = source(program, ins.operands[1], np.dtype(f"u{ins.dtype.itemsize}"))
    goals = [target(program, name, part) for name in names]

    def run(m, at):
        pieces = np.ascontiguousarray(m.views[whole][at]).view(part).reshape(-1, len(goals))
        for i, goal in enumerate(goals):
            m.views[goal][at] = pieces[:, i]

    return run


@opcode("cvta")
def _convert_address(program, ins):
    allow(ins, "to", "global", "shared", "local", "const", "param", "shared::cta")
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(_space(ins), 0)
    if "param" in ins.mods:
        raise Unsupported(str(ins))
    delta = np.uint64(window if "to" not in ins.mods else -window & (2**64 - 1))
    return apply(program, ins, lambda a: a + delta)


@opcode("cvt")
def _convert(program, ins):
    *mods, goal, origin = ins.mods
    if "bf16" in (goal, origin) or goal.endswith("x2"):
        return _convert_half(program, ins, mods, goal, origin)
    if set(mods) - {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "sat", "ftz"}:
        raise Unsupported(str(ins))
    wanted, given = DTYPES[goal], DTYPES[origin]
    if given.kind != "f" and wanted.kind == "f" and set(mods) - {"rn"}:
        raise Unsupported(str(ins))
    slot, place = source(program, ins.operands[1], given), target(program, ins.operands[0], wanted)
    ftz = "ftz" in mods
    to_half = goal == "f16"

    def run(m, at):
        value = m.views[slot][at]
        if ftz and given == np.float32:
            value = math.flush(value)
        result = math.convert(value, wanted, mods)
        if to_half:
            result = np.where(np.isnan(result), np.array(0x7FFF, "u2").view("f2"), result)
        m.views[place][at] = math.flush(result) if ftz and wanted == np.float32 else result

    return run


def _convert_half(program, ins, mods, goal, origin):
    """The forms that NumPy has no type for: bfloat16, and two halves packed into 32 bits."""
    if origin == "bf16":
        if mods or goal != "f32":
            raise Unsupported(str(ins))
        slot, place = source(program, ins.operands[1], DTYPES["b16"]), target(program, ins.operands[0], DTYPES["f32"])
        return lambda m, at: m.views[place].__setitem__(at, math.from_bfloat16_bits(m.views[slot][at]))
    if len(mods) != 1 or mods[0] not in ("rn", "rz") or origin not in ("f32", "f64"):
        raise Unsupported(str(ins))
    to_bits = {"f16": math.to_float16_bits, "bf16": math.to_bfloat16_bits}[goal.removesuffix("x2")]
    slots = [source(program, text, DTYPES[origin]) for text in ins.operands[1:]]
    packed = goal.endswith("x2")
    if len(slots) != (2 if packed else 1) or (packed and origin != "f32"):
        raise Unsupported(str(ins))
    place = target(program, ins.operands[0], U32 if packed else DTYPES["b16"])

    def run(m, at):
        halves = [to_bits(m.views[slot][at], mods[0]) for slot in slots]
        if packed:  # the first operand becomes the upper half
            halves = [halves[0].astype("u4") << np.uint32(16) | halves[1]]
        m.views[place][at] = halves[0]

    return run


# ---- comparing and choosing -------------------------------------------------------------------

COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@opcode("setp")
def _set_predicate(program, ins):
    name, dtype = ins.mods[0], ins.dtype
    combine = next((COMBINE[mod] for mod in ins.mods[1:] if mod in COMBINE), None)
    allow(ins, name, "ftz", *COMBINE)
    function = math.comparison(name, dtype.kind == "f")
    if function is None or ins.paired:
        raise Unsupported(str(ins))
    goal, first, second, *third = ins.operands
    ftz = "ftz" in ins.mods
    goal, a, b = target(program, goal, PRED), source(program, first, dtype), source(program, second, dtype)
    if combine is None and not ftz:

        def run(m, at):
            views = m.views
            views[goal][at] = function(views[a][at], views[b][at])

        return run
    negated = bool(third) and third[0].startswith("!")
    c = source(program, third[0].lstrip("!"), PRED) if third else None

    def run_combined(m, at):
        x, y = m.views[a][at], m.views[b][at]
        result = function(math.flush(x), math.flush(y)) if ftz else function(x, y)
        if combine is not None:
            result = combine(result, m.views[c][at] != negated)
        m.views[goal][at] = result

    return run_combined


@opcode("selp")
def _select(program, ins):
    allow(ins)
    dtype = ins.dtype
    return apply(program, ins, lambda a, b, choice: np.where(choice, a, b), kinds=[dtype, dtype, PRED])


# ---- arithmetic -------------------------------------------------------------------------------

ROUNDINGS = ("rn", "rz", "rm", "rp")


def _rounding(ins):
    return next((mod for mod in ins.mods if mod in ROUNDINGS), "rn")


@opcode("add", "sub")
def _add(program, ins):
    allow(ins, *ROUNDINGS, "ftz")
    function, mode = np.add if ins.op == "add" else np.subtract, _rounding(ins)
    if mode == "rn":
        return apply(program, ins, function)
    if ins.dtype != np.float32:
        raise Unsupported(str(ins))
    return apply(program, ins, lambda a, b: math.round_to(function(a.astype("f8"), b), np.dtype("f4"), mode))


def _extremum(name, dtype, mods):
    if dtype.kind != "f" or "NaN" in mods:
        return np.maximum if name == "max" else np.minimum
    return np.fmax if name == "max" else np.fmin


@opcode("max", "min")
def _max(program, ins):
    allow(ins, "NaN", "ftz")
    return apply(program, ins, _extremum(ins.op, ins.dtype, ins.mods))


@opcode("mul", "mad")
def _multiply(program, ins):
    dtype = ins.dtype
    if dtype.kind == "f":
        return _multiply_floats(program, ins)
    allow(ins, "lo", "hi", "wide")
    wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if "wide" in ins.mods else dtype

    def product(a, b):
        if "hi" in ins.mods:
            return math.high_product(a, b)
        return np.multiply(a, b) if wide == dtype else np.multiply(a, b, dtype=wide)

    if ins.op == "mul":
        return apply(program, ins, product, result=wide)
    return apply(program, ins, lambda a, b, c: product(a, b) + c, result=wide, kinds=[dtype, dtype, wide])


def _multiply_floats(program, ins):
    allow(ins, *ROUNDINGS, "ftz")
    mode = _rounding(ins)
    if ins.op == "mad" or (mode != "rn" and ins.dtype != np.float32):
        raise Unsupported(str(ins))
    if mode == "rn":
        return apply(program, ins, np.multiply)
    return apply(program, ins, lambda a, b: math.round_to(a.astype("f8") * b, np.dtype("f4"), mode))


@opcode("fma")
def _fused(program, ins):
    allow(ins, *ROUNDINGS, "ftz")
    mode, dtype = _rounding(ins), ins.dtype
    if dtype == np.float32:
        return apply(program, ins, lambda a, b, c: math.fma32(a, b, c, mode))
    if mode != "rn":
        raise Unsupported(str(ins))
    return apply(program, ins, math.fma64 if dtype.itemsize == 8 else math.fma16)


@opcode("div", "rem")
def _divide(program, ins):
    allow(ins, "rn", "approx", "full", "ftz")
    return apply(program, ins, math.remainder if ins.op == "rem" else math.divide)


@opcode("shl", "shr")
def _shift(program, ins):
    allow(ins)
    function = math.shift_left if ins.op == "shl" else math.shift_right
    return apply(program, ins, function, kinds=[ins.dtype, U32])


@opcode("shf")
def _funnel(program, ins):
    allow(ins, "l", "r", "wrap", "clamp")
    left, wrap = "l" in ins.mods, "wrap" in ins.mods
    return apply(program, ins, lambda a, b, c: math.funnel_shift(a, b, c, left, wrap))


@opcode("and", "or", "xor")
def _logic(program, ins):
    allow(ins)
    return apply(program, ins, {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[ins.op])


@opcode("lop3")
def _logic3(program, ins):
    allow(ins)
    table = int(ins.operands.pop(), 0)
    return apply(program, ins, lambda a, b, c: math.logic3(a, b, c, table))


@opcode("prmt")
def _permute(program, ins):
    allow(ins)
    return apply(program, ins, math.permute_bytes)


@opcode("bfi")
def _insert(program, ins):
    allow(ins)
    return apply(program, ins, math.insert_bits, kinds=[ins.dtype, ins.dtype, U32, U32])


@opcode("bfe")
def _extract(program, ins):
    allow(ins)
    return apply(program, ins, math.extract_bits, kinds=[ins.dtype, U32, U32])


@opcode("popc", "clz", "bfind")
def _count_bits(program, ins):
    allow(ins, "shiftamt")
    bits = ins.dtype.itemsize * 8
    if ins.op == "bfind" and ins.dtype.kind == "i":
        raise Unsupported(str(ins))
    function = {"popc": np.bitwise_count, "clz": math.count_leading_zeros, "bfind": math.highest_bit}[ins.op]
    if "shiftamt" in ins.mods:
        return apply(
            program,
            ins,
            lambda a: np.where(a == 0, -1, bits - 1 - math.highest_bit(a)).astype("i4"),
            result=np.dtype("i4"),
        )
    return apply(program, ins, function, result=np.dtype("i4"))


@opcode("rcp")
def _reciprocal(program, ins):
    allow(ins, "rn", "approx", "ftz")
    gross = ins.dtype.itemsize == 8 and "approx" in ins.mods
    return apply(program, ins, math.gross_reciprocal64 if gross else np.reciprocal)


@opcode("rsqrt")
def _reciprocal_root(program, ins):
    allow(ins, "approx", "ftz")
    gross = ins.dtype.itemsize == 8 and "ftz" in ins.mods
    return apply(program, ins, math.gross_reciprocal_sqrt64 if gross else math.reciprocal_sqrt)


UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "ex2": math.exp2,
    "lg2": math.log2,
    "brev": math.reverse_bits,
}


@opcode(*UNARY)
def _unary(program, ins):
    allow(ins, "ftz", *(("rn", "approx") if ins.op in ("sqrt", "ex2", "lg2") else ()))
    if ins.op in ("ex2", "lg2") and ins.dtype != np.float32:
        raise Unsupported(str(ins))
    return apply(program, ins, UNARY[ins.op])


@opcode("not")
def _not(program, ins):
    allow(ins)
    return apply(program, ins, np.logical_not if ins.dtype.kind == "b" else np.invert)


@opcode("copysign")
def _copy_sign(program, ins):
    allow(ins)
    return apply(program, ins, lambda sign, size: np.copysign(size, sign))


@opcode("testp")
def _test_property(program, ins):
    tests = {"finite": np.isfinite, "infinite": np.isinf, "notanumber": np.isnan}
    name = ins.mods[0]
    allow(ins, *tests)
    return apply(program, ins, tests[name], result=PRED)


__all__ = ["CONTROL", "Fault", "decode"]
