"""The precisions in which tensor cores read their operands."""

import numpy as np

TF32_BITS, BFLOAT16_BITS = 10, 7


def mantissa(values, bits):
    """float32 numbers rounded to `bits` explicit bits of mantissa, ties to even, kept in float32."""
    values = np.ascontiguousarray(values, "f4")
    raw = values.view("u4")
    drop = np.uint32(23 - bits)
    bias = (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1) + ((raw >> drop) & np.uint32(1))
    return np.where(np.isfinite(values), ((raw + bias) >> drop << drop).view("f4"), values)


def float16(values):
    """float32 numbers as float16 holds them, in float32."""
    with np.errstate(over="ignore"):
        return values.astype("f2").astype("f4")


def from_bfloat16(patterns):
    """float32 numbers of bfloat16 bit patterns (uint16)."""
    return (patterns.astype("u4") << np.uint32(16)).view("f4")


def to_bfloat16(values):
    """Bit patterns (uint16) of numbers rounded to bfloat16."""
    rounded = mantissa(np.asarray(values).astype("f4"), BFLOAT16_BITS)
    return (np.ascontiguousarray(rounded).view("u4") >> np.uint32(16)).astype("u2")
