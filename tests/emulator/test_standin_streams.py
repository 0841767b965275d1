"""Streams and events of the stand-in: what is not ordered is a race."""

import numpy as np
import pytest

from emulator.ptx import Fault
from emulator.test_standin_kernels import SCALE


def two_streams(cp):
    return cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)


def test_reading_what_another_stream_writes_is_a_race(cp):
    first, second = two_streams(cp)
    with first:
        x = cp.ones(10)
    with second, pytest.raises(Fault, match="race"):
        x + 1
    with pytest.raises(Fault, match="race"):
        x.get()


@pytest.mark.parametrize("how", ["event", "record", "synchronise stream", "synchronise event", "synchronise device"])
def test_streams_that_wait_for_each_other(cp, how):
    first, second = two_streams(cp)
    with first:
        x = cp.ones(10)
        event = cp.cuda.Event()
        event.record()
    {
        "event": lambda: second.wait_event(event),
        "record": lambda: second.wait_event(first.record()),
        "synchronise stream": first.synchronize,
        "synchronise event": event.synchronize,
        "synchronise device": cp.cuda.Device().synchronize,
    }[how]()
    with second:
        assert (x + 1).get().sum() == 20
        x[...] = 3


def test_an_event_covers_what_came_before_it_only(cp):
    first, second = two_streams(cp)
    with first:
        x = cp.ones(10)
        event = first.record()
        x += 1
    second.wait_event(event)
    with second, pytest.raises(Fault, match="race"):
        x.sum()


def test_two_streams_may_read_one_array_and_write_different_parts(cp):
    x, y = cp.ones((4, 6)), cp.zeros((4, 6))
    cp.cuda.Device().synchronize()
    first, second = two_streams(cp)
    with first:
        y[:, :3] = x[:, 1:4] * 2
    with second:
        y[:, 3:] = x[:, 1:4] * 3
        with pytest.raises(Fault, match="race"):
            y[:, 2] = 0
    first.synchronize()
    second.synchronize()
    assert y.sum().item() == 4 * 3 * 5


def test_overwriting_what_another_stream_still_reads_is_a_race(cp):
    x = cp.ones(10)
    cp.cuda.Device().synchronize()
    first, second = two_streams(cp)
    with first:
        x.sum()
    with second, pytest.raises(Fault, match="race"):
        x.fill(0)


def test_blocking_streams_and_the_null_stream_wait_for_each_other(cp):
    x = cp.ones(10)
    with cp.cuda.Stream():
        y = x + 1
    z = y + x
    with cp.cuda.Stream(non_blocking=True), pytest.raises(Fault, match="race"):
        y.sum()
    assert z.sum().item() == 30


def test_kernels_and_products_belong_to_the_current_stream(cp, nvrtc):
    kernel = cp.RawKernel(SCALE, "scale")
    x, a = cp.ones(32, "f4"), cp.ones((4, 4), "f4")
    cp.cuda.Device().synchronize()
    first, second = two_streams(cp)
    with first:
        kernel((1,), (32,), (x, np.float32(2), np.int32(32)))
        product = a @ a
    with second:
        for late in (x, product):
            with pytest.raises(Fault, match="race"):
                late.sum()
        assert a.sum().item() == 16


def test_results_in_pinned_memory_arrive_with_the_synchronisation(cp):
    import cupyx

    out = cupyx.empty_pinned(2, "f8")
    stream, event = cp.cuda.Stream(non_blocking=True), cp.cuda.Event()
    with stream:
        cp.ones(2).get(out=out, blocking=False)
        event.record()
    assert np.isnan(out).all()
    event.synchronize()
    assert (out == 1).all()


def test_a_pinned_source_must_stay_until_its_copy_is_done(cp):
    import cupyx

    source, stream = cupyx.zeros_pinned((7, 12), "f4"), cp.cuda.Stream(non_blocking=True)
    target = cp.empty((7, 12), "f4")
    with stream:
        target.set(source)
        stream.synchronize()
        source[...] = 1
        target.set(source)
        source[...] = 2
    with pytest.raises(Fault, match="pinned source"):
        stream.synchronize()


def test_books_of_streams_do_not_grow_without_end(cp):
    x = cp.zeros(1000)
    cp.cuda.Stream(non_blocking=True)
    for i in range(500):
        x[i : i + 2] += 1
        if i % 50 == 0:
            cp.cuda.get_current_stream().synchronize()
    assert len(x.data.mem.accesses) < 250


def test_an_event_that_was_never_recorded(cp):
    with pytest.raises(Fault, match="never recorded"):
        cp.cuda.Stream().wait_event(cp.cuda.Event())


def test_elapsed_time(cp):
    start, stop = cp.cuda.Event(), cp.cuda.Event()
    start.record()
    stop.record()
    stop.synchronize()
    assert cp.cuda.get_elapsed_time(start, stop) >= 0
