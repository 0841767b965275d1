"""Global memory as a kernel sees it: dense arrays, arrays with imitated strides, and sparse giants."""

import ctypes

import numpy as np

from .races import Shadow

ALIGNMENT = 256  # of an allocation; arrays keep their offset in it, so that misaligned views are seen


class Buffer:
    """An array argument of a kernel, and which of its elements have been written.

    A view with a row stride keeps its gaps: touching them is a Fault.

    Parameters
    ----------
    array : ndarray
        C- or F-contiguous, or rows with a contiguous last axis.  Changed in place by the kernel.
    valid : bool ndarray of the same shape, optional
        Elements that hold defined values; updated by the kernel.  Default: all do.
    row_stride : int, optional
        Bytes between rows as the kernel sees them, to imitate arrays too large for this machine.
    """

    def __init__(self, array, valid=None, row_stride=None):
        array = np.asarray(array)
        array, valid = _row_major(array, valid)
        if valid is not None and valid.shape != array.shape:
            raise ValueError(f"valid has shape {valid.shape}, the array {array.shape}")
        self.array, self.itemsize = array, array.itemsize
        self.rows, self.width, self.real_stride = _rows(array, row_stride is not None)
        self.stride = self.real_stride if row_stride is None else row_stride
        if self.stride < self.width:
            raise ValueError("rows overlap")
        self.size = self.stride * (self.rows - 1) + self.width if array.size else 0
        self.lead = _offset_in_allocation(array) % ALIGNMENT
        extent = self.real_stride * (self.rows - 1) + self.width if array.size else 0
        self.storage = _bytes_at(array.__array_interface__["data"][0] - self.lead, self.lead + extent)
        self.writeable = array.flags.writeable
        self._valid = valid
        self._typed = {}
        self.aliased = False

    def typed(self, dtype):
        """The storage as elements of `dtype`."""
        if dtype not in self._typed:
            self._typed[dtype] = self.storage[: len(self.storage) // dtype.itemsize * dtype.itemsize].view(dtype)
        return self._typed[dtype]

    def locate(self, offset, nbytes):
        """Turn byte offsets into positions in the storage; also say which are outside."""
        bad = (offset < 0) | (offset + nbytes > self.size)
        if self.stride == self.width:
            return offset + self.lead, bad
        row, column = np.divmod(offset, self.stride)
        bad |= column + nbytes > self.width
        if self.stride == self.real_stride:
            return offset + self.lead, bad
        return row * self.real_stride + column + self.lead, bad

    def start_launch(self, granule, warp_order):
        """Forget who touched what; granules of this launch have `granule` bytes."""
        self.granule = granule
        self.shadow = Shadow(-(-len(self.storage) // granule), warp_order)
        self.valid_granule = min(granule, self.itemsize)
        self.valid = None
        if self._valid is not None and not self._valid.all():
            self.valid = np.zeros(-(-len(self.storage) // self.valid_granule), bool)
            self._valid_rows()[...] = self._valid_elements()[..., np.newaxis]

    def finish_launch(self):
        """Hand the elements that were written completely back to the caller's flags."""
        if self.valid is not None:
            self._valid_elements()[...] = self._valid_rows().all(-1)

    def _valid_elements(self):
        return _shaped(self._valid, (self.rows, self.width // self.itemsize))

    def _valid_rows(self):
        """Flags of the launch as (rows, elements, granules per element)."""
        unit = self.valid_granule
        flags = self.valid[self.lead // unit :]
        shape = (self.rows, self.width // self.itemsize, self.itemsize // unit)
        return np.lib.stride_tricks.as_strided(flags, shape, (self.real_stride // unit, self.itemsize // unit, 1))


class SparseBuffer:
    """An array of any size of which only the pages that a kernel touches exist.

    For proofs that index arithmetic survives 2^31 elements: pass one as X, Z, targets, weights or output
    and launch only the blocks of interest (`order=`).

    Parameters
    ----------
    count : int
        Number of elements.
    dtype : dtype
    fill : callable, optional
        Gives the values of an array of element numbers (int64).  Without it the memory is uninitialised.
    """

    PAGE = 1 << 12

    def __init__(self, count, dtype, fill=None):
        self.dtype = np.dtype(dtype)
        self.itemsize, self.fill = self.dtype.itemsize, fill
        self.size, self.lead, self.writeable, self.aliased = count * self.itemsize, 0, True, False
        self.array = None  # shares memory with nothing
        self._pages = np.empty(0, np.int64)  # sorted page numbers
        self._slots = np.empty(0, np.int64)  # where each page is stored
        self._clear_views()
        self.storage = np.empty(0, "u1")
        self._stored = np.empty(0, bool)  # validity by byte
        self._written = []

    def values(self, elements):
        """Return the elements of the given numbers; they must hold values."""
        elements = np.atleast_1d(np.asarray(elements, np.int64))
        position, _ = self.locate(elements * self.itemsize, self.itemsize)
        self.finish_launch()
        if not self._stored.reshape(-1, self.itemsize).all(1)[position // self.itemsize].all():
            raise ValueError("some of these elements have not been written")
        return self.typed(self.dtype)[position // self.itemsize].copy()

    def written(self):
        """Return the sorted numbers of the elements that hold values on the pages that exist."""
        self.finish_launch()
        per_page = self.PAGE // self.itemsize
        flags = self._stored.reshape(-1, per_page, self.itemsize).all(2)[self._slots]
        return (self._pages[:, np.newaxis] * per_page + np.arange(per_page))[flags]

    def typed(self, dtype):
        if dtype not in self._typed:
            self._typed[dtype] = self.storage.view(dtype)
        return self._typed[dtype]

    def locate(self, offset, nbytes):
        bad = (offset < 0) | (offset + nbytes > self.size)
        page, column = np.divmod(np.where(bad, 0, offset), self.PAGE)
        missing = np.setdiff1d(page, self._pages)
        if missing.size:
            self._make(missing)
        return self._slots[np.searchsorted(self._pages, page)] * self.PAGE + column, bad

    def _make(self, pages):
        first = len(self._pages)
        elements = pages[:, np.newaxis] * (self.PAGE // self.itemsize) + np.arange(self.PAGE // self.itemsize)
        if self.fill is None:
            data, known = np.full(pages.size * self.PAGE, 0xFF, "u1"), False
        else:
            data, known = np.ascontiguousarray(self.fill(elements.ravel()), self.dtype).view("u1"), True
        self.storage = np.concatenate([self.storage, data])
        self._stored = np.concatenate([self._stored, np.full(data.size, known)])
        if self.valid is not None:
            fresh = np.full(data.size // self.valid_granule, known)
            self.valid = np.concatenate([self.valid, fresh])
        if self.shadow is not None:
            self.shadow.grow(len(self.storage) // self.granule)
        self._typed = {}
        pages, slots = np.concatenate([self._pages, pages]), np.arange(first + pages.size)
        slots = np.concatenate([self._slots, slots[first:]])
        order = np.argsort(pages)
        self._pages, self._slots = pages[order], slots[order]

    def start_launch(self, granule, warp_order):
        self.granule = granule
        self.shadow = Shadow(len(self.storage) // granule, warp_order)
        self.valid_granule = min(granule, self.itemsize)
        self.valid = self._stored.reshape(-1, self.valid_granule).all(1)

    def finish_launch(self):
        if self.valid is not None:
            self._stored = self.valid.repeat(self.valid_granule)

    def _clear_views(self):
        self._typed, self.valid, self.shadow, self.valid_granule, self.granule = {}, None, None, 1, 1


def _row_major(array, valid):
    """Transpose Fortran order away: a pointer does not know it."""
    if array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous:
        return array.T, None if valid is None else valid.T
    return (array, valid) if array.ndim else (array.reshape(1), None if valid is None else valid.reshape(1))


def _rows(array, want_rows):
    """Return (rows, bytes per row, bytes between rows)."""
    if array.flags.c_contiguous:
        rows = array.shape[0] if want_rows and array.size else 1
        return rows, array.nbytes // rows, array.nbytes // rows
    if array.strides[-1] == array.itemsize and array.ndim >= 2:
        width, stride = array.shape[-1] * array.itemsize, array.strides[-2]
        outer = [stride * int(np.prod(array.shape[axis + 1 : -1])) for axis in range(array.ndim - 1)]
        if stride >= width and list(array.strides[:-1]) == outer:
            return array.size // array.shape[-1], width, stride
    raise ValueError("kernel arguments need a contiguous last axis and evenly spaced rows")


def _shaped(flags, shape):
    view = flags.reshape(shape)
    if view.size and not np.shares_memory(view, flags):
        raise ValueError("the validity flags need the array's layout")
    return view


def _offset_in_allocation(array):
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return array.__array_interface__["data"][0] - root.__array_interface__["data"][0]


def _bytes_at(address, count):
    """View memory that the caller keeps alive."""
    if not count:
        return np.empty(0, "u1")
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), "u1")
