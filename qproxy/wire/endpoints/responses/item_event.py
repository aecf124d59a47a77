"""A change of an output item: the type of its stream event, and the fields beside type and number."""

from __future__ import annotations

from typing import TypeAlias

from qproxy.wire.events import JSON

ItemEvent: TypeAlias = tuple[str, dict[str, JSON]]
