"""Parts of the server with the default settings, for tests of single parts."""

from dataclasses import replace

from qproxy.bootstrap import limits
from qproxy.config import Config


def transport_limits(**changes):
    """The default limits of a transport, with changes."""
    return replace(limits.transport_limits(Config()), **changes)
