"""The recorder of streams: limits of memory, and what is saved after the end of a stream."""

import trio

from qproxy.server.response_runs import RunState
from qproxy.server.response_store import StoredResponse
from qproxy.server.stream_recorder import SAVE_SECONDS, EndedStream, StreamRecorder
from qproxy.wire.endpoints.responses.frame_log import CHECK_FRAMES
from tests.backends.fakes import Fakes


def write(recorder, count, size=10):
    """Return a log with some frames, and whether all of them were recorded, measured as an encoder does."""
    log = recorder.begin()
    for _ in range(count):
        log.frames.append(b"x" * (size - 2) + b"\n\n")
        if len(log.frames) >= log.check_at and not log.measure():
            return log, False
    return log, True


def ended(log, fakes, id, response=None):
    return EndedStream("bob", id, log, fakes.response_runs, fakes.responses, response)


async def test_streams_are_saved_soon(autojump_clock):
    """Streams are saved together shortly after their end, with the response of one that was not stored."""
    fakes, recorder = Fakes(), StreamRecorder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        cancelled = StoredResponse("a", "bob", None, {"id": "a", "output": []}, [])
        recorder.add(ended(write(recorder, 3)[0], fakes, "a", cancelled))
        recorder.add(ended(write(recorder, 5)[0], fakes, "b"))
        await trio.sleep(SAVE_SECONDS * 2)
        nursery.cancel_scope.cancel()
    for id_, count in (("a", 3), ("b", 5)):
        read = await fakes.response_runs.read("bob", id_, -1)
        assert (read.state, len(read.events)) == (RunState.ENDED, count)
    assert await fakes.responses.get("bob", "a") == cancelled


async def test_memory_is_bounded_and_released():
    """A stream beyond its own limit, or that of all streams, is not recorded; saved and discarded streams
    make room for others."""
    fakes, recorder = Fakes(), StreamRecorder(max_bytes=4000, max_stream_bytes=2000)
    long, whole = write(recorder, 4 * CHECK_FRAMES)
    assert not whole
    recorder.discard(long)
    full = [write(recorder, 3 * CHECK_FRAMES) for _ in range(2)]
    assert [whole for _, whole in full] == [True, True]
    more, whole = write(recorder, CHECK_FRAMES)
    assert not whole
    recorder.discard(more)
    recorder.add(ended(full[0][0], fakes, "a"))
    recorder.discard(full[1][0])
    await recorder.flush()
    assert all(whole for _, whole in (write(recorder, 3 * CHECK_FRAMES), write(recorder, 3 * CHECK_FRAMES)))
