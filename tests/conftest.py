"""Hypothesis settings of all tests."""

from hypothesis import settings

from tests.examples import examples

settings.register_profile("qproxy", examples(100))
settings.load_profile("qproxy")
