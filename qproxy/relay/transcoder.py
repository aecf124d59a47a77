"""Another format of sound, made by ffmpeg while it arrives.

The program gets the samples on its input and nothing else: no files, no network, one thread. It is killed
with the request, and a failure of it is the server's, not the upstream's.
"""

from __future__ import annotations

import subprocess
from contextlib import AsyncExitStack, suppress

import trio

from qproxy.relay.speech import SoundStream
from qproxy.wire.errors import QproxyError

READ_SIZE = 16 * 1024
CODECS = {
    "mp3": ("-f", "mp3"),
    "opus": ("-c:a", "libopus", "-f", "ogg"),
    "aac": ("-c:a", "aac", "-f", "adts"),
    "flac": ("-f", "flac"),
    "wav": ("-f", "s16le"),
    "pcm": ("-f", "s16le"),
}
"""Options of each format; the head of a WAV file is ours (`wire.speech.sound`)."""


class Transcoder:
    """The sound of a stream of 16-bit samples in another format or at another speed."""

    def __init__(self, program: str, source: SoundStream, rate: int, format: str, tempo: float) -> None:
        self._source = source
        self._command = [program, *_options(rate, format, tempo)]
        self._error: QproxyError | None = None
        self._process: trio.Process | None = None

    async def start(self, nursery: trio.Nursery, stack: AsyncExitStack) -> None:
        """Start the program; its input is written in the nursery. Raises QproxyError."""
        try:
            self._process = await trio.lowlevel.open_process(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise _failure(error.strerror or "it cannot be started") from None
        stack.push_async_callback(self._kill)
        nursery.start_soon(self._feed)

    async def receive(self) -> bytes:
        """Return some of the sound, b"" at its end. Raises QproxyError."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        data = bytes(await process.stdout.receive_some(READ_SIZE))
        if data:
            return data
        if self._error is not None:
            raise self._error
        if await process.wait() != 0:
            raise _failure(f"it ended with status {process.returncode}")
        return b""

    async def _feed(self) -> None:
        """Write the source's sound to the program."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        async with process.stdin as stdin:
            try:
                while data := await self._source.receive():
                    await stdin.send_all(data)
            except QproxyError as error:
                self._error = error
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the program has ended, and its status tells why

    async def _kill(self) -> None:
        """End the program."""
        process = self._process
        assert process is not None
        with suppress(ProcessLookupError):
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


def _options(rate: int, format: str, tempo: float) -> list[str]:
    options = ["-hide_banner", "-nostdin", "-loglevel", "quiet", "-threads", "1"]
    options += ["-f", "s16le", "-ar", str(rate), "-ac", "1", "-i", "pipe:0"]
    if tempo != 1.0:
        options += ["-af", ",".join(f"atempo={factor:g}" for factor in _factors(tempo))]
    return [*options, *CODECS[format], "pipe:1"]


def _factors(tempo: float) -> list[float]:
    """Return factors from 0.5 to 2, which older versions of the filter require."""
    factors = []
    while tempo < 0.5 or tempo > 2.0:
        step = 0.5 if tempo < 0.5 else 2.0
        factors.append(step)
        tempo /= step
    return [*factors, tempo]


def _failure(reason: str) -> QproxyError:
    return QproxyError(
        f"The server cannot make this format of sound: ffmpeg: {reason}.", code="internal_error"
    )
