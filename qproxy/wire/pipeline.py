"""Stages: the shape of everything that streams.

A stage turns items into items: `feed(item)` returns what has become certain, `close()` what was held, once,
at the end. Stages know nothing of time or sockets, so a whole response and a streamed one take the same path,
and every stage is tested on any split of its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class Stage(Protocol[In, Out]):
    """A step that turns items into items, and releases held items at the end."""

    def feed(self, item: In, /) -> Iterable[Out]: ...

    def close(self) -> Iterable[Out]: ...


class Pipeline:
    """Stages in a row: the output of each is the input of the next."""

    def __init__(self, *stages: Stage[Any, Any]) -> None:
        self.stages = stages

    def __repr__(self) -> str:
        return f"<Chain {' → '.join(type(stage).__name__ for stage in self.stages)}>"

    def feed(self, item: Any) -> list[Any]:
        """Return what leaves the last stage because of `item`."""
        return self._through([item], 0)

    def feed_many(self, items: Sequence[Any]) -> list[Any]:
        """Return the same for several items, running each stage once over all of them."""
        return self._through(items, 0)

    def close(self) -> list[Any]:
        """Close the stages in order; what one held passes through those after it."""
        out: list[Any] = []
        for position, stage in enumerate(self.stages):
            out.extend(self._through(list(stage.close()), position + 1))
        return out

    def _through(self, items: Sequence[Any], first: int) -> list[Any]:
        for stage in self.stages[first:]:
            if not items:
                break
            feed = stage.feed
            items = [out for item in items for out in feed(item)]
        return list(items)
