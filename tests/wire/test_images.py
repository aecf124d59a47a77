"""Sizes of pictures are those that a model makes, of the same shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.bootstrap.models import package_catalog
from qproxy.wire.errors import RequestError
from qproxy.wire.images.size import fit_size
from qproxy.wire.models import ModelSpec
from tests.examples import examples

MODEL = package_catalog().get("qwen-image-3.0")
SIZES = {
    "1024x1024": (1024, 1024),
    "1024X1536": (1024, 1536),
    "1792x1024": (1792, 1024),
    "256x256": (512, 512),
    "4096x4096": (2048, 2048),
    "512*512": (512, 512),
    "3000x300": (2672, 320),
}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_fitting_sizes(text, size):
    """A size within the limits stays, any other becomes the nearest one."""
    assert fit_size(text, MODEL) == size


@examples(100)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_every_size_fits(width, height):
    """The area and the shape are within the model's limits, and the shape is kept where it can be."""
    made = fit_size(f"{width}x{height}", MODEL)
    assert 512 * 512 <= made[0] * made[1] <= 2048 * 2048
    assert 1 / 8.2 <= made[0] / made[1] <= 8.2
    if 1 / 7 <= width / height <= 7:
        assert made[0] / made[1] == pytest.approx(width / height, rel=0.1)


def test_a_model_without_limits():
    """Any size is passed to it."""
    assert fit_size("10x20", ModelSpec("wan")) == (10, 20)


@pytest.mark.parametrize("text", ["big", "0x10", "10x", "x", "1024x1024x3", "-1x5", "123456x1"])
def test_texts_that_are_no_size(text):
    """The error names the field."""
    with pytest.raises(RequestError, match="WIDTHxHEIGHT") as caught:
        fit_size(text, MODEL)
    assert caught.value.param == "size"
