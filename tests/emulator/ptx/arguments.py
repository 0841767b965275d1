"""Arguments of a launch: bytes for the parameters, buffers for the pointers."""

import numpy as np

from .buffers import Buffer, SparseBuffer
from .memory import BUFFER_BITS
from .program import DTYPES


class Bound:
    """What a program's parameters and module constants mean in one launch."""

    def __init__(self, program):
        last = program.parameters[-1] if program.parameters else None
        self.parameters = np.zeros((last.offset + last.nbytes if last else 0) + 16, "u1")
        self.buffers, self.symbols = [], {}

    def finish(self):
        for buffer in self.buffers:
            if buffer is not None:
                buffer.finish_launch()


def bind(program, args):
    """Place the arguments and start the buffers' books."""
    if len(args) != len(program.parameters):
        raise TypeError(f"{program.name}: {len(args)} arguments, the kernel has {len(program.parameters)}")
    bound = Bound(program)
    for index, (parameter, given) in enumerate(zip(program.parameters, args, strict=True)):
        arg = Buffer(given) if isinstance(given, np.ndarray) and given.ndim else given
        is_buffer = isinstance(arg, (Buffer, SparseBuffer))
        bound.buffers.append(arg if is_buffer else None)
        if is_buffer or arg is None:
            if parameter.nbytes != 8 or parameter.is_array:
                raise TypeError(f"{program.name} argument {index}: a pointer, the kernel has .{parameter.kind}")
            data = np.array([_address(index, arg)], "u8")
        else:
            data = _number(program, index, parameter, arg)
        bound.parameters[parameter.offset : parameter.offset + parameter.nbytes] = data.view("u1")
    for symbol, data in program.constants.items():
        constant = Buffer(data.copy())
        constant.writeable = False
        bound.symbols[symbol] = _address(len(bound.buffers), constant)
        bound.buffers.append(constant)
    _start(program, bound.buffers)
    return bound


def _address(index, buffer):
    return 0 if buffer is None else ((index + 1) << BUFFER_BITS) + buffer.lead


def _number(program, index, parameter, arg):
    """Bytes of a scalar or struct argument."""
    if parameter.is_array:
        data = np.frombuffer(arg if isinstance(arg, bytes) else np.asarray(arg).tobytes(), "u1")
        if data.size != parameter.nbytes:
            raise TypeError(f"{program.name} argument {index}: {data.size} bytes, the struct has {parameter.nbytes}")
        return data
    dtype = DTYPES[parameter.kind]
    value = np.asarray(arg)
    if parameter.kind[0] == "b":  # untyped: the value must have the parameter's size
        return value.reshape(1).view(dtype)
    return np.array([arg], dtype) if dtype.kind == "f" else np.array([int(value)], dtype)


def _start(program, buffers):
    granule = program.granules.get("global", 4)
    used = [buffer for buffer in buffers if buffer is not None]
    for i, first in enumerate(used):
        first.aliased = False
        first.start_launch(granule, program.syncs_warps)
        for second in used[:i]:
            if first is not second and _overlap(first.array, second.array):  # the same Buffer twice is meant
                first.aliased = second.aliased = True


def _overlap(first, second):
    return first is not None and second is not None and np.shares_memory(first, second)
