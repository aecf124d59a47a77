"""Parts of the server with the default settings, for tests of single parts."""

from dataclasses import replace
from functools import partial
from typing import Any

from qproxy.bootstrap import limits
from qproxy.bootstrap.models import package_catalog
from qproxy.config import Config


def transport_limits(**changes):
    """The default limits of a transport, with changes."""
    return replace(limits.transport_limits(Config()), **changes)


DECODE_LIMITS: dict[str, Any] = {
    "default_model": Config().default_model,
    "max_messages": limits.request_limits(Config()).max_messages,
    "qwen_params": package_catalog().qwen_params,
}
"""What the decoder of an endpoint that selects parameters gets of the settings and of the models' data."""


def decoder(endpoint):
    """The decoder of an endpoint, with the parameters that pass where it selects them."""
    if not endpoint.selects_params:
        return endpoint.decode
    return partial(endpoint.decode, qwen_params=package_catalog().qwen_params)
