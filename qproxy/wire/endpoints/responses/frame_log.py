"""The frames of a stream, copied as they are encoded, so that they can be sent again."""

from __future__ import annotations

from collections.abc import Callable

CHECK_FRAMES = 64
"""Frames between two measurements: a single frame is small, and costs no call."""


class FrameLog:
    """The frames of one stream, as far as the limits allow all of them."""

    def __init__(self, reserve: Callable[[int], bool]) -> None:
        """`reserve` reserves memory for some bytes, unless there is too little."""
        self.frames: list[bytes] = []
        self.check_at = CHECK_FRAMES
        """Number of frames at which `measure` is due."""
        self.size = 0
        """Bytes that were measured, and are reserved."""
        self._reserve = reserve
        self._measured = 0

    def __repr__(self) -> str:
        return f"<FrameLog of {len(self.frames)} frames, {self.size} bytes>"

    def measure(self) -> bool:
        """Reserve memory for the new frames; return False, and drop all frames, if there is too little."""
        added = sum(map(len, self.frames[self._measured :]))
        if not self._reserve(added):
            self.frames = []
            return False
        self.size += added
        self._measured = len(self.frames)
        self.check_at = self._measured + CHECK_FRAMES
        return True
