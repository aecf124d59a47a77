"""Sizes of pictures: OpenAI's `1024x1536` as one that a model makes."""

from __future__ import annotations

import math
import re

from qproxy.wire.endpoints import validation
from qproxy.wire.models import ModelSpec

MAX_RATIO = 8
STEP = 16
"""Sides that differ from a fitting size are multiples of this."""


def fit_size(size: str, spec: ModelSpec) -> tuple[int, int]:
    """Return the width and height nearest to a size, of the same shape, whose area the model makes.

    Raises RequestError for a text that is no size. The area is between the squares of the models' data
    (`limits.min_side`, `max_side`); a model without them gets any size.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,4})[xX*]([1-9][0-9]{0,4})", size)
    if match is None:
        validation.wrong_value("size", f"expected WIDTHxHEIGHT or auto, but got {size[:40]!r}.")
    width, height = map(int, match.groups())
    limits = spec.limits or {}
    low, high = limits.get("min_side"), limits.get("max_side")
    if low is None or high is None:
        return width, height
    ratio = min(max(width / height, 1 / MAX_RATIO), MAX_RATIO)
    area = min(max(width * height, low * low), high * high)
    if area == width * height and ratio == width / height:
        return width, height
    fitted = math.sqrt(area * ratio)
    return _round(fitted, low, high, area), _round(fitted / ratio, low, high, area)


def _round(side: float, low: int, high: int, area: float) -> int:
    """Return a side as a multiple of `STEP`, rounded to the inside of the area's limits."""
    steps = side / STEP
    return STEP * (math.ceil(steps - 1e-9) if area <= low * low else math.floor(steps + 1e-9))
