"""Parts of the server with the default settings, for tests of single parts."""

from dataclasses import replace
from typing import Any

from qproxy.bootstrap import limits
from qproxy.config import Config


def transport_limits(**changes):
    """The default limits of a transport, with changes."""
    return replace(limits.transport_limits(Config()), **changes)


DECODE_LIMITS: dict[str, Any] = {
    "default_model": Config().default_model,
    "max_messages": limits.request_limits(Config()).max_messages,
}
"""What the decoder of every endpoint gets of the settings."""
