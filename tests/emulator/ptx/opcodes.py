"""All opcodes: importing their modules registers the decoders."""

from . import opcodes_flow, opcodes_memory, opcodes_values
from .decoding import decode

__all__ = ["decode", "opcodes_flow", "opcodes_memory", "opcodes_values"]
