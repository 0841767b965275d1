"""What running a kernel can end in: a defect of the kernel, or a limit of the interpreter."""


class Fault(Exception):  # noqa: N818 - it is the program under test that is in error
    """A defect seen while device code ran.

    Attributes
    ----------
    kind : str
        One of: bounds, alignment, uninitialised, race, read-only, alias, divergence, hang, launch, trap.
    """

    def __init__(self, kind, text):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Unsupported(NotImplementedError):  # noqa: N818 - says what the PTX is
    """The interpreter does not know this piece of PTX; nothing is skipped silently."""
