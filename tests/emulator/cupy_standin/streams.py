"""Streams and events: work runs at once here, but its order is checked.

Every stream has a vector clock: how far each other stream is known to be finished.  An access to memory
that another stream also touches, one of the two writing, must be ordered behind it: by an event, by a
synchronisation of the host, or by the null stream, which waits for all blocking streams and they for it.
Copies to and from pinned memory take effect on the host only when their stream is synchronised.
"""

import time

import numpy as np

from emulator.ptx import Fault

from .errors import Refused
from .state import machine

MANY_ACCESSES = 64  # per allocation, before the books are cleared


class _StreamType(type):
    @property
    def null(cls):
        """The null stream of the current device."""
        here = machine()
        return here.null_streams[here.device]


class Stream(metaclass=_StreamType):
    """As cupy.cuda.Stream."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if ptds:
            raise Refused("per-thread default streams")
        here = machine()
        if null:
            self.__dict__ = here.null_streams[here.device].__dict__
            return
        self._set_up(here, here.device, non_blocking)
        here.streams.append(self)

    @classmethod
    def _null(cls, here, device):
        self = object.__new__(cls)
        self._set_up(here, device, non_blocking=False)
        self.ptr = 0
        return self

    def _set_up(self, here, device, non_blocking):
        self._machine, self.device_id, self._non_blocking = here, device, non_blocking
        self.number = next(here.stream_numbers)
        self.ptr = 0x57E000000000 + 256 * self.number
        self._pending, self._clock, self._entered = [], {}, []

    # ---- order --------------------------------------------------------------------------------

    def _begin(self):
        """Enqueue one operation."""
        here = self._machine
        _join(self._clock, here.host_clock)
        null = here.null_streams[self.device_id]
        if self.ptr == 0:
            for other in here.streams:
                if other.device_id == self.device_id and not other._non_blocking:
                    _join(self._clock, other._clock)
        elif not self._non_blocking:
            _join(self._clock, null._clock)
        self._clock[self.number] = self._clock.get(self.number, 0) + 1

    def _finish(self, count=None):
        pending = self._pending[:count]
        del self._pending[: len(pending)]
        for action in pending:
            action()

    @property
    def is_non_blocking(self):
        return self._non_blocking

    @property
    def done(self):
        return not self._pending

    def synchronize(self):
        self._machine.check_driver()
        if self.ptr == 0:
            for other in self._machine.streams:
                if other.device_id == self.device_id and not other._non_blocking:
                    other._finish()
                    _join(self._clock, other._clock)
        self._finish()
        _join(self._machine.host_clock, self._clock)

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        if event._clock is None:
            raise Fault("launch", "waiting for an event that was never recorded does nothing")
        _join(self._clock, event._clock)

    # ---- being current ------------------------------------------------------------------------

    def use(self):
        """Make this the current stream of its device."""
        if self.device_id != self._machine.device:
            raise RuntimeError(f"stream of device {self.device_id} used while device {self._machine.device} is current")
        self._machine.local.streams[self.device_id] = [self]
        return self

    def __enter__(self):
        local = self._machine.local
        local.streams.setdefault(self.device_id, []).append(self)
        return self

    def __exit__(self, *exc):
        self._machine.local.streams[self.device_id].pop()

    def begin_capture(self, mode=None):
        raise Refused("the stand-in has no graphs")

    def __eq__(self, other):
        return isinstance(other, Stream) and (self.ptr, self.device_id) == (other.ptr, other.device_id)

    def __hash__(self):
        return hash((self.ptr, self.device_id))

    def __repr__(self):
        return f"<Stream {self.ptr} (device {self.device_id})>"


class Event:
    """As cupy.cuda.Event."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        machine().check_driver()
        self._stream = self._clock = self._time = None
        self._count, self._timing = 0, not disable_timing

    def record(self, stream=None):
        self._stream = machine().stream if stream is None else stream
        self._stream._begin()
        self._clock, self._time = dict(self._stream._clock), time.perf_counter()
        self._count = len(self._stream._pending)

    @property
    def done(self):
        return self._stream is None or not self._stream._pending

    def synchronize(self):
        if self._clock is not None:
            self._stream._finish(self._count)
            self._count = 0
            _join(machine().host_clock, self._clock)


def get_current_stream(device_id=-1):
    """As cupy.cuda.get_current_stream."""
    here = machine()
    return here.stream_of(here.device if device_id < 0 else device_id)


def get_elapsed_time(start_event, end_event):
    """As cupy.cuda.get_elapsed_time, in milliseconds; here it is the host's time."""
    for event in (start_event, end_event):
        if event._clock is None or not event._timing:
            raise ValueError("the event was not recorded, or has timing disabled")
    return 1000 * (end_event._time - start_event._time)


def _join(clock, other):
    for number, tick in other.items():
        if clock.get(number, 0) < tick:
            clock[number] = tick


def touch(block, view, writing):
    """Note that the current stream's running operation reads or writes a view of an allocation.

    Raises a Fault when another stream touched the same bytes, one of the two writes, and nothing orders
    the two.
    """
    if not view.size:
        return
    here = machine()
    stream = here.stream_of(block.device)
    accesses = block.accesses
    if here.streams:
        _check_order(accesses, stream, view, writing)
    if len(accesses) > MANY_ACCESSES:  # what the host has waited for is before everything it starts now
        for key, (_, tick) in list(accesses.items()):
            if here.host_clock.get(key[0], 0) >= tick:
                del accesses[key]
    key = (stream.number, writing, view.__array_interface__["data"][0], view.shape, view.strides)
    accesses[key] = (view, stream._clock.get(stream.number, 0))


def _check_order(accesses, stream, view, writing):
    for (number, wrote, *_), (other, tick) in list(accesses.items()):
        ordered = number == stream.number or stream._clock.get(number, 0) >= tick
        if not ordered and (writing or wrote) and np.shares_memory(view, other):
            raise Fault("race", f"{stream!r} touches memory that an unfinished operation of another stream touches")
