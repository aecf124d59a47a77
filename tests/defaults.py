"""Parts of the server with the default settings, for tests of single parts."""

from dataclasses import replace
from functools import partial
from typing import Any

from qproxy.bootstrap import limits
from qproxy.bootstrap.models import package_catalog
from qproxy.config import Config


def transport_limits(**changes):
    """Return the default limits of a transport, with changes."""
    return replace(limits.transport_limits(Config()), **changes)


DECODE_LIMITS: dict[str, Any] = {
    "default_model": Config().default_model,
    "max_messages": limits.request_limits(Config()).max_messages,
    "qwen_params": package_catalog().qwen_params,
}
"""The settings and models' data that the decoder of an endpoint that selects parameters requires."""


def decoder(endpoint):
    """Return the decoder of an endpoint, with the permitted parameters if it selects them."""
    if not endpoint.selects_params:
        return endpoint.decode
    return partial(endpoint.decode, qwen_params=package_catalog().qwen_params)
