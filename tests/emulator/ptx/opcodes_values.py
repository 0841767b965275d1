"""Moving, converting, comparing and calculating."""

import numpy as np

from . import arithmetic as math
from .decoding import allow, apply, opcode
from .faults import Unsupported
from .operands import PRED, U32, is_number, parts, source, target
from .program import DTYPES

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


def _parts(program, text, whole, dtype):
    """Names between braces, their type, and the parts of the register that they make up."""
    names = text.strip("{}").split(",")
    part = np.dtype(f"u{dtype.itemsize // len(names)}")
    own = parts(program, whole, part)
    if len(own) != len(names):  # of a register of another size
        raise Unsupported(f"{text} beside {whole}")
    return names, part, own


def _pack(program, ins):
    names, part, goals = _parts(program, ins.operands[1], ins.operands[0], ins.dtype)
    sources = [source(program, name, part) for name in names]
    together = range(len(names))

    def run(m, at):
        views = m.views
        values = [views[sources[i]][at] for i in together]
        for i in together:
            views[goals[i]][at] = values[i]

    return run


def _unpack(program, ins):
    names, part, sources = _parts(program, ins.operands[0], ins.operands[1], ins.dtype)
    goals = [target(program, name, part) for name in names]

    def run(m, at):
        views = m.views
        for origin, goal in zip(sources, goals, strict=True):
            views[goal][at] = views[origin][at]

    return run


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
    if not mods and not to_half and "f" not in (wanted.kind, given.kind):
        return lambda m, at: m.views[place].__setitem__(at, m.views[slot][at].astype(wanted))

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


@opcode("max", "min")
def _max(program, ins):
    allow(ins, "NaN", "ftz")
    return apply(program, ins, math.extremum(ins.op, ins.dtype, ins.mods))


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
    amount = ins.operands[-1]
    if is_number(amount) and int(amount, 0) < ins.dtype.itemsize * 8:
        ufunc, ins.operands = (np.left_shift if ins.op == "shl" else np.right_shift), ins.operands[:2]
        by = ins.dtype.type(int(amount, 0))
        return apply(program, ins, lambda value: ufunc(value, by))
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
    _, _, _, position, length = ins.operands
    if is_number(position) and is_number(length) and int(position, 0) + int(length, 0) <= 8 * ins.dtype.itemsize:
        number, mask = ins.dtype.type, (1 << int(length, 0)) - 1
        ins.operands = ins.operands[:3]
        return apply(program, ins, math.bit_inserter(number(mask), number(int(position, 0))))
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
