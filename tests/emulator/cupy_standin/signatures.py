"""Types of a kernel's parameters, read from its C++ source: PTX knows only that a pointer has 64 bits."""

import re
from typing import NamedTuple

import numpy as np

from .errors import Refused

C_TYPES = {
    "float": "f4",
    "double": "f8",
    "bool": "?",
    "char": "i1",
    "signed char": "i1",
    "unsigned char": "u1",
    "short": "i2",
    "unsigned short": "u2",
    "int": "i4",
    "signed": "i4",
    "unsigned": "u4",
    "unsigned int": "u4",
    "long": "i8",
    "unsigned long": "u8",
    "long long": "i8",
    "unsigned long long": "u8",
    "size_t": "u8",
    "ptrdiff_t": "i8",
    "int8_t": "i1",
    "uint8_t": "u1",
    "int16_t": "i2",
    "uint16_t": "u2",
    "int32_t": "i4",
    "uint32_t": "u4",
    "int64_t": "i8",
    "uint64_t": "u8",
    "__half": "f2",
    "half": "f2",
    "__nv_bfloat16": "u2",
    "float16": "f2",  # gpusoftmax/kernels/numerics.cuh
    "bfloat16": "u2",
    "void": None,
}
KERNEL = re.compile(
    r"(?:template\s*<(?P<template>[^{};]*?)>\s*)?(?:extern\s+\"C\"\s+)?(?:static\s+)?__global__\s+"
    r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?void\s+"
    r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)"
)


class Parameter(NamedTuple):
    """One parameter: `dtype` is None for void pointers and structs."""

    label: str
    pointer: bool
    dtype: np.dtype | None
    const: bool
    text: str


def split_top(text):
    """Split at the commas outside of angle brackets and parentheses."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def parse(source):
    """Return {kernel: (template parameter names, [(C type, is pointer, is const, parameter name), ...])}."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    result = {}
    for match in KERNEL.finditer(text):
        templates = [re.split(r"[\s.]+", part.split("=")[0].strip())[-1] for part in split_top(match["template"] or "")]
        result[match["name"]] = (templates, [_declaration(part) for part in split_top(match["parameters"])])
    return result


def _declaration(text):
    words = " ".join(re.sub(r"\b(__restrict__|__restrict|restrict|volatile)\b", " ", text).split())
    match = re.fullmatch(r"(.+?)\s*(\**)\s*(\w+)", words)
    if match is None or len(match[2]) > 1 or "&" in words:
        raise Refused(f"kernel parameter {text!r}")
    const = bool(re.search(r"\bconst\b", match[1]))
    kind = " ".join(re.sub(r"\bconst\b", " ", match[1]).split())
    return kind, bool(match[2]), const, match[3]


def aliases(source):
    """Type names that the source gives to others, by `typedef` or `using`."""
    found = {b: a for a, b in re.findall(r"\btypedef\s+([\w ]+?)\s+(\w+)\s*;", source)}
    found.update(re.findall(r"\busing\s+(\w+)\s*=\s*([\w ]+?)\s*;", source))
    return found


def of_kernel(source, name):
    """Return the list of Parameter of a kernel or of a name expression such as ``"k<float, 4>"``."""
    base, _, values = name.partition("<")
    kernels = parse(source)
    base = base.strip().lstrip("&").split("::")[-1]
    if base not in kernels:
        raise Refused(f"no definition of kernel {base} in this source")
    templates, declared = kernels[base]
    bound = dict(zip(templates, split_top(values.strip().removesuffix(">")), strict=False)) if values else {}
    names = aliases(source)
    return [_resolved(declaration, bound, names) for declaration in declared]


def _resolved(declaration, bound, names):
    kind, pointer, const, label = declaration
    text = kind
    for _ in range(8):
        kind = bound.get(kind, names.get(kind, kind))
    if kind in C_TYPES:
        code = C_TYPES[kind]
        return Parameter(label, pointer, None if code is None else np.dtype(code), const, text)
    if pointer:
        raise Refused(f"kernel parameter {label}: the stand-in does not know the type {text}")
    return Parameter(label, False, None, const, text)
