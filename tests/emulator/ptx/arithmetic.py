"""PTX arithmetic on NumPy vectors.

Every function takes and returns arrays of the type that the instruction names.  Results are those of
IEEE 754 with one rounding, except where PTX says "approx": those are computed exactly and rounded, which
is better than the hardware does.
"""

import numpy as np

TINY = np.float32(1.17549435e-38)  # the smallest normal float


def flush(x):
    """Replace subnormal floats by zero of the same sign (.ftz)."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


# ---- rounding ---------------------------------------------------------------------------------


def round_to(wide, dtype, mode="rn"):
    """Round float64 numbers once to `dtype`: to nearest even, to zero, down or up."""
    result = wide.astype(dtype)
    infinity = dtype.type(np.inf)
    if mode == "rm":
        result = np.where(result > wide, np.nextafter(result, -infinity), result)
    elif mode == "rp":
        result = np.where(result < wide, np.nextafter(result, infinity), result)
    elif mode == "rz":
        result = np.where(np.abs(result) > np.abs(wide), np.nextafter(result, dtype.type(0)), result)
    return result


def to_float16_bits(x, mode="rn"):
    """Bit patterns of float16; every NaN becomes 0x7fff."""
    result = round_to(x, np.dtype("f2"), mode) if mode != "rn" else x.astype("f2")
    return np.where(np.isnan(x), np.uint16(0x7FFF), np.ascontiguousarray(result).view("u2"))


def to_bfloat16_bits(x, mode="rn"):
    """Bit patterns of bfloat16; every NaN becomes 0x7fff."""
    if x.dtype.itemsize == 8:
        x = _round_to_odd(x)
    bits = np.ascontiguousarray(x).view("u4")
    rounded = bits + np.uint32(32767) + (bits >> np.uint32(16) & np.uint32(1)) if mode == "rn" else bits
    return np.where(np.isnan(x), np.uint16(0x7FFF), (rounded >> np.uint32(16)).astype("u2"))


def from_bfloat16_bits(bits):
    return (bits.astype("u4") << np.uint32(16)).view("f4")


def _round_to_odd(wide):
    """float64 to float32 so that a second rounding to fewer bits gives what one rounding would give."""
    down = np.ascontiguousarray(round_to(wide, np.dtype("f4"), "rz")).view("u4")
    inexact = (down.view("f4").astype("f8") != wide) & np.isfinite(wide)
    return np.where(inexact, down | np.uint32(1), down).view("f4")


# ---- multiply and add -------------------------------------------------------------------------


def fma32(a, b, c, mode):
    """a * b + c with one rounding."""
    product = a.astype("f8") * b  # exact: 48 bits
    addend = c.astype("f8")
    total = product + addend
    if mode != "rn":
        return round_to(total, np.dtype("f4"), mode)
    # Rounding twice differs from rounding once only if float64 lands on a tie of float32.
    tie = (np.atleast_1d(total).view("u8") & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    if np.count_nonzero(tie):
        back = total - product
        error = (product - (total - back)) + (addend - back)
        total = np.where(tie & (error > 0), np.nextafter(total, np.inf), total)
        total = np.where(tie & (error < 0), np.nextafter(total, -np.inf), total)
    return total.astype("f4")


def fma64(a, b, c):
    """a * b + c with an exact product, so that error-compensated code keeps its meaning."""
    product = a * b
    ah, al = _halves(a)
    bh, bl = _halves(b)
    low = ah * bh
    low -= product
    low += np.multiply(ah, bl, out=ah)
    low += np.multiply(al, bh, out=bh)
    low += np.multiply(al, bl, out=al)
    total = product + c
    back = total - product
    product -= np.subtract(total, back, out=bl)
    product += np.subtract(c, back, out=back)  # the error of the sum
    product += low
    result = np.add(total, product, out=product)
    finite = np.isfinite(result)
    return result if np.count_nonzero(finite) == result.size else np.where(finite, result, total)


def _halves(x):
    """Split float64 into two numbers of 26 bits."""
    high = x * 134217729.0
    high -= high - x
    return high, x - high


def fma16(a, b, c):
    return (a.astype("f8") * b + c).astype("f2")


def high_product(a, b):
    """Upper half of the double-width product."""
    bits = a.dtype.itemsize * 8
    if bits == 64:
        pairs = zip(np.atleast_1d(a).tolist(), np.atleast_1d(b).tolist(), strict=True)
        return np.array([(x * y) >> 64 for x, y in pairs]).astype(a.dtype)
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return (a.astype(wide) * b.astype(wide) >> wide.type(bits)).astype(a.dtype)


def divide(a, b, remainder=False):
    """Integer division rounds toward zero, as in C; division by zero is unspecified and gives 0."""
    if a.dtype.kind == "f":
        return a / b
    quotient = np.where(b == 0, 0, np.floor_divide(a, np.where(b == 0, 1, b)))
    rest = a - quotient * b
    if a.dtype.kind == "i":
        fix = (rest != 0) & ((a < 0) != (b < 0))
        quotient, rest = quotient + fix, rest - b * fix
    return (rest if remainder else quotient).astype(a.dtype)


def remainder(a, b):
    return divide(a, b, remainder=True)


# ---- bits -------------------------------------------------------------------------------------


def shift_left(value, amount):
    bits = value.dtype.itemsize * 8
    result = np.left_shift(value, np.minimum(amount, bits - 1).astype(value.dtype))
    return np.where(amount >= bits, value.dtype.type(0), result)


def shift_right(value, amount):
    bits = value.dtype.itemsize * 8
    result = np.right_shift(value, np.minimum(amount, bits - 1).astype(value.dtype))
    return np.where(amount >= bits, value.dtype.type(0), result) if value.dtype.kind == "u" else result


def funnel_shift(low, high, amount, left, wrap):
    """Upper (left) or lower (right) half of the shifted 64-bit pair."""
    amount = (amount & np.uint32(31) if wrap else np.minimum(amount, 32)).astype("u8")
    pair = (high.astype("u8") << np.uint64(32)) | low.astype("u8")
    shifted = (pair << amount) >> np.uint64(32) if left else pair >> amount
    return shifted.astype("u4")


def permute_bytes(a, b, selector):
    """prmt.b32 in its default mode."""
    pair = (b.astype("u8") << np.uint64(32)) | a.astype("u8")
    result = np.zeros(np.broadcast(pair, selector).shape, "u4")
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (pair >> ((nibble & np.uint32(7)).astype("u8") * np.uint64(8))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(nibble & np.uint32(8), sign, byte)
        result |= byte.astype("u4") << np.uint32(8 * i)
    return result


def logic3(a, b, c, table):
    """lop3: bit i of the result is table[4 a_i + 2 b_i + c_i]."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def insert_bits(a, b, position, length):
    """bfi: the low `length` bits of a, put into b at `position`."""
    one = np.ones(np.shape(length), a.dtype)
    mask = shift_left(one, length & np.uint32(255)) - one
    start = position & np.uint32(255)
    return (b & ~shift_left(mask, start)) | shift_left(a & mask, start)


def bit_inserter(mask, start):
    """Return bfi for the bits of `mask` moved to `start`, where both are known."""
    kept = ~(mask << start)
    return lambda a, b: (b & kept) | ((a & mask) << start)


def extract_bits(value, position, length):
    """bfe: `length` bits from `position`, sign-extended for signed types."""
    bits = value.dtype.itemsize * 8
    position = (position & np.uint32(255)).astype("i8")
    length = (length & np.uint32(255)).astype("i8")
    unsigned = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
    shifted = shift_right(unsigned, position)
    kept = np.where(
        length < bits, shifted & (shift_left(np.ones_like(unsigned), length) - unsigned.dtype.type(1)), shifted
    )
    kept = np.where(length == 0, unsigned.dtype.type(0), kept)
    if value.dtype.kind == "u":
        return kept
    top = np.minimum(position + length - 1, bits - 1)
    negative = (shift_right(unsigned, top) & unsigned.dtype.type(1)).astype(bool) & (length > 0)
    width = np.minimum(length, bits - position)
    fill = ~(shift_left(np.ones_like(unsigned), width) - unsigned.dtype.type(1))
    return np.where(negative & (width < bits), kept | fill, kept).view(value.dtype)


def reverse_bits(value):
    size = value.dtype.itemsize
    octets = np.unpackbits(np.ascontiguousarray(value).view("u1").reshape(-1, size), axis=1, bitorder="little")
    return np.packbits(octets[:, ::-1], axis=1, bitorder="little").view(value.dtype)[:, 0].reshape(value.shape)


def highest_bit(value):
    """Position of the most significant one, -1 for zero (of the unsigned bits)."""
    wide = value.astype("f8") if value.dtype.itemsize < 8 else None
    if wide is not None:
        return np.frexp(wide)[1].astype("i4") - 1
    high, low = (value >> np.uint64(32)).astype("u4"), value.astype("u4")
    return np.where(high > 0, highest_bit(high) + 32, highest_bit(low)).astype("i4")


def count_leading_zeros(value):
    return (value.dtype.itemsize * 8 - 1 - highest_bit(value)).astype("u4")


# ---- functions the hardware approximates ------------------------------------------------------


def exp2(x):
    return np.exp2(x.astype("f8")).astype("f4")


def log2(x):
    return np.log2(x.astype("f8")).astype("f4")


def reciprocal_sqrt(x):
    return (1.0 / np.sqrt(x.astype("f8"))).astype(x.dtype)


def _upper_half(x):
    return (np.ascontiguousarray(x).view("u8") & np.uint64(0xFFFFFFFF00000000)).view("f8")


def gross_reciprocal64(x):
    """rcp.approx.ftz.f64 uses and delivers only the upper 32 bits."""
    return _upper_half(1.0 / _upper_half(x))


def gross_reciprocal_sqrt64(x):
    """rsqrt.approx.ftz.f64, likewise."""
    return _upper_half(1.0 / np.sqrt(_upper_half(x)))


# ---- conversion and comparison ----------------------------------------------------------------

TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(value, target, mods):
    """Cvt between integers, float32, float64 and float16, without the bfloat16 and packed forms."""
    for name in TO_INTEGRAL.keys() & set(mods):
        value = TO_INTEGRAL[name](value)
    if target.kind in "iu":
        return _to_integer(value, target, "sat" in mods)
    if "sat" in mods:
        value = np.clip(np.nan_to_num(value, nan=0.0), 0, 1)
    mode = next((name for name in ("rz", "rm", "rp") if name in mods), "rn")
    if mode == "rn" or value.dtype.kind != "f" or value.dtype.itemsize <= target.itemsize:
        return value.astype(target)
    return round_to(value.astype("f8"), target, mode)


def _to_integer(value, target, saturate):
    info = np.iinfo(target)
    if value.dtype.kind == "f":  # floats always saturate
        wide = np.nan_to_num(value.astype("f8"), nan=0.0)
        clipped = np.clip(wide, float(info.min), float(info.max))
        result = np.where(clipped >= float(info.max), info.max, 0).astype(target)
        inside = clipped < float(info.max)
        result[inside] = clipped[inside].astype(target)
        return result
    if saturate:
        value = np.clip(value.astype(object), info.min, info.max)
    return value.astype(target)


COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def comparison(name, is_float):
    """Return the function of two arrays for one setp comparison, or None when PTX has no such one."""
    if not is_float:
        return COMPARE.get(name)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)  # ordered: false for NaN
    if name.endswith("u") and name[:-1] in COMPARE:
        unordered = COMPARE[name[:-1]]
        return lambda a, b: unordered(a, b) | np.isnan(a) | np.isnan(b)
    return COMPARE.get(name)


def extremum(name, dtype, mods):
    """Return the function of max or min; for floats a NaN loses unless the modifiers say it wins."""
    if dtype.kind != "f" or "NaN" in mods:
        return np.maximum if name == "max" else np.minimum
    return np.fmax if name == "max" else np.fmin
