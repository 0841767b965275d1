"""PTX text of one kernel as a list of decoded instructions.

Reads what NVRTC emits, inline `asm` with its own register scopes included.  Everything that a kernel
refers to and that is not understood raises `Unsupported` while it is loaded.
"""

import functools
import re
from dataclasses import dataclass, field

import numpy as np

from .faults import Unsupported

DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "pred": "?",
        "b8": "u1",
        "u8": "u1",
        "s8": "i1",
        "b16": "u2",
        "u16": "u2",
        "s16": "i2",
        "f16": "f2",
        "b32": "u4",
        "u32": "u4",
        "s32": "i4",
        "f32": "f4",
        "b64": "u8",
        "u64": "u8",
        "s64": "i8",
        "f64": "f8",
    }.items()
}
MEETINGS = ("bar", "barrier", "shfl", "vote", "redux")  # where lanes wait for each other
SHARED_GAP = 64  # forbidden bytes behind each static shared array
# A generic address below SHARED_WINDOW is global.  A space of its own has its own addresses from 0.
SHARED_WINDOW = 1 << 60
LOCAL_WINDOW = 1 << 61


class Instruction:
    """One statement: guard, opcode, modifiers, operands, and the function that executes it."""

    __slots__ = ("control", "guard", "line", "mods", "negated", "op", "operands", "paired", "run", "target", "text")

    def __init__(self, text, line):
        match = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)", text, re.DOTALL)
        if match is None:
            raise Unsupported(text)
        self.negated, self.guard = match[1] == "!", match[2]
        self.op, *self.mods = match[3].split(".")
        parts = re.findall(r"\[[^\]]*\]|\{[^}]*\}|[^,\s|]+", match[4])
        self.operands = [re.sub(r"\s+", "", part) for part in parts]
        self.paired = "|" in match[4]  # two destinations: %p|%q
        self.text, self.line = " ".join(text.split()), line
        self.run = self.control = self.target = None

    @property
    def dtype(self):
        """NumPy type of the last modifier, which is the type PTX computes in."""
        if not self.mods or self.mods[-1] not in DTYPES:
            raise Unsupported(str(self))
        return DTYPES[self.mods[-1]]

    def __str__(self):
        return self.text + (f" (source line {self.line})" if self.line else "")


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter: its place among the argument bytes."""

    name: str
    kind: str  # PTX type without the dot; b8 for a struct
    offset: int
    nbytes: int
    is_array: bool


@dataclass
class Layout:
    """Sizes and symbols of one state space of a kernel."""

    nbytes: int = 0
    symbols: dict = field(default_factory=dict)
    gaps: list = field(default_factory=list)  # (start, stop) in bytes

    def place(self, symbol, nbytes, align, gap=0):
        start = -(-self.nbytes // align) * align
        self.symbols[symbol] = start
        self.nbytes = start + nbytes + gap
        if gap:
            self.gaps.append((start + nbytes, self.nbytes))


class Program:
    """One kernel of a PTX text, decoded.

    Attributes
    ----------
    parameters : list of Parameter
    code : list of Instruction
    shared, local : Layout
    static_bytes : int
        Static shared memory that the hardware would allocate, without the gaps added here.
    max_threads : int
        Threads per block that `__launch_bounds__` allows.
    plain : list of list of callable
        By instruction, how those from it on execute that no thread leaves, skips or waits in; perhaps none.
    slots : list of tuple
        What each operand of the decoded code is; the machine makes one array of each.
    granules : dict
        Smallest access, in bytes, to each state space: the granularity of its checks.
    """

    def __init__(self, ptx, name):
        from .opcodes import decode  # decoding needs this module's names

        text = re.sub(r"//[^\n]*", "", ptx)
        head = re.search(r"\.entry\s+" + re.escape(name) + r"\s*\(([^)]*)\)([^{]*)\{", text)
        if head is None:
            raise KeyError(f"no kernel {name} in this PTX")
        self.name = name
        self.parameters = _parameters(head[1])
        self.max_threads, self.exact_block = _launch_bounds(head[2])
        body = _block(text, head.end())
        self.used = set(re.findall(r"[\w$]+", body))
        self.shared, self.local, self.static_bytes, self.constants = Layout(), Layout(), 0, {}
        self._place_shared(text)
        self._place_local(body)
        self._read_constants(text)

        self.registers, self.labels, self.tables = {}, {}, {}
        self.slots, self._slot_of = [], {}
        self.granules, self.syncs_warps = {}, False
        self.code = _Parser(self).parse(body)
        for instruction in self.code:
            decode(self, instruction)
        self.plain = self._plain_runs()

    def _plain_runs(self):
        """For each instruction, how it and those behind it run, up to one that not all threads may pass."""
        plain, following = [], []
        for ins in reversed(self.code):
            if ins.guard is not None or ins.control is not None or ins.op in MEETINGS:
                following = []
            else:
                following = [ins.run, *following]
            plain.append(following)
        return plain[::-1]

    def _place_shared(self, text):
        pattern = r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(\[(\d*)\])?\s*;"
        dynamic = []
        for extern, align, kind, symbol, bracket, count in re.findall(pattern, text):
            if symbol not in self.used:
                continue
            if extern or (bracket and not count):
                dynamic.append(symbol)
                continue
            size = DTYPES[kind].itemsize
            nbytes = size * int(count or 1)
            self.shared.place(symbol, nbytes, int(align or size), SHARED_GAP)
            self.static_bytes += nbytes
        self.shared.nbytes = -(-self.shared.nbytes // 16) * 16  # where dynamic shared memory starts
        self.shared.symbols.update(dict.fromkeys(dynamic, self.shared.nbytes))

    def _place_local(self, body):
        pattern = r"\.local\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d+)\])?\s*;"
        for align, kind, symbol, count in re.findall(pattern, body):
            size = DTYPES[kind].itemsize
            self.local.place(symbol, size * int(count or 1), int(align or size))

    def _read_constants(self, text):
        """Module variables with an initialiser of bytes; any other one raises when it is used."""
        pattern = r"\.(global|const)\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d+)\])?\s*(?:=\s*([^;]*))?;"
        for space, kind, symbol, count, value in re.findall(pattern, text):
            if symbol not in self.used:
                continue
            dtype, numbers = DTYPES[kind], [part.strip() for part in value.strip("{} \n").split(",")]
            if not value or dtype.kind == "f" or not all(re.fullmatch(r"-?\d+", part) for part in numbers):
                raise Unsupported(f"{self.name} uses the .{space} variable {symbol}")
            data = np.zeros(int(count or 1), dtype)
            mask = (1 << 8 * dtype.itemsize) - 1
            data[: len(numbers)] = np.array([int(part) & mask for part in numbers], dtype)
            self.constants[symbol] = data.view("u1")

    def slot(self, *what):
        """Return the number of a (new) slot: ("register", name, dtype), ("constant", value, dtype), ..."""
        if what not in self._slot_of:
            self._slot_of[what] = len(self.slots)
            self.slots.append(what)
        return self._slot_of[what]

    def note_access(self, space, nbytes):
        """Remember the size of an access, for the granularity of the checks."""
        for name in ("global", "shared", "local") if space == "generic" else (space,):
            self.granules[name] = min(self.granules.get(name, 16), nbytes)


@functools.lru_cache(maxsize=256)
def load_program(ptx, name):
    """Decode a kernel once per text and name."""
    return Program(ptx, name)


def _parameters(text):
    found, offset = [], 0
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s.*?)?([\w$]+)(?:\[(\d+)\])?", declaration
        )
        if match is None:
            raise Unsupported(declaration)
        size = DTYPES[match[2]].itemsize
        align, nbytes = int(match[1] or size), size * int(match[4] or 1)
        offset = -(-offset // align) * align
        found.append(Parameter(match[3], match[2], offset, nbytes, match[4] is not None))
        offset += nbytes
    return found


def _launch_bounds(directives):
    bound = re.search(r"\.(maxntid|reqntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
    if bound is None:
        return 1024, None
    shape = tuple(int(part or 1) for part in bound.groups()[1:])
    return int(np.prod(shape)), shape if bound[1] == "reqntid" else None


def _block(text, start):
    """Text from `start` to the brace that closes the block."""
    end, depth = start, 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[start : end - 1]


class _Parser:
    """Splits the body of a kernel into statements and gives registers of inner scopes their own names."""

    SILENT = (".pragma", ".shared", ".local", ".file", ".section")

    def __init__(self, program):
        self.program, self.scopes, self.scope_count, self.line, self.code = program, [{}], 0, 0, []

    def parse(self, body):
        position = 0
        while position < len(body):
            position = self._statement(body, position)
        return self.code

    def _statement(self, body, position):
        """Consume one statement, brace, label or source line; return the position behind it."""
        if body[position].isspace() or body[position] == ";":
            return position + 1
        if body[position] in "{}":
            self._scope(body[position])
            return position + 1
        if match := re.compile(r"\.loc\s+\d+\s+(\d+)[^\n]*").match(body, position):
            self.line = int(match[1])
            return match.end()
        if match := re.compile(r"([$\w]+):(?!:)").match(body, position):
            self._label(match[1])
            return match.end()
        end = body.find(";", position)
        end = len(body) if end < 0 else end
        self._take(body[position:end].strip())
        return end + 1

    def _scope(self, brace):
        if brace == "{":
            self.scope_count += 1
            self.scopes.append({})
        else:
            self.scopes.pop()

    def _label(self, name):
        if len(self.scopes) > 1:
            new = f"{name}@{self.scope_count}"
            self.scopes[-1][name] = new
            name = new
        self.program.labels[name] = len(self.code)

    def _take(self, statement):
        if statement.startswith(".reg"):
            self._declare(statement)
        elif statement.startswith(".branchtargets"):
            label = next(name for name, at in reversed(self.program.labels.items()) if at == len(self.code))
            self.program.tables[label] = [part.strip() for part in statement.split(None, 1)[1].split(",")]
        elif statement.startswith("."):
            if not statement.startswith(self.SILENT):
                raise Unsupported(statement)
        else:
            instruction = Instruction(statement, self.line)
            self._resolve(instruction)
            self.code.append(instruction)

    def _declare(self, statement):
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL)
        if match is None or match[1] not in DTYPES:
            raise Unsupported(statement)
        for item in match[2].split(","):
            many = re.fullmatch(r"\s*([%\w$]+?)<(\d+)>\s*", item)
            names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [item.strip()]
            for name in names:
                self.scopes[-1][name] = name if len(self.scopes) == 1 else f"{name}@{self.scope_count}"
                self.program.registers[self.scopes[-1][name]] = DTYPES[match[1]]

    def _resolve(self, instruction):
        """Replace names that an inner scope declares."""
        if len(self.scopes) == 1:
            return
        names = {}
        for scope in self.scopes[1:]:
            names.update(scope)

        def replace(text):
            return re.sub(r"[%$\w]+", lambda match: names.get(match[0], match[0]), text)

        instruction.operands = [replace(operand) for operand in instruction.operands]
        if instruction.guard:
            instruction.guard = replace(instruction.guard)
