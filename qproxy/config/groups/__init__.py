"""The settings by theme: one frozen dataclass of fields each, the bases of `Config`."""

from qproxy.config.groups.access import AccessSettings
from qproxy.config.groups.login import LoginSettings
from qproxy.config.groups.media import MediaSettings
from qproxy.config.groups.network import NetworkSettings
from qproxy.config.groups.responses import ResponseSettings
from qproxy.config.groups.shared_state import SharedStateSettings
from qproxy.config.groups.telemetry import TelemetrySettings
from qproxy.config.groups.tools import ToolSettings
from qproxy.config.groups.translation import TranslationSettings

__all__ = [
    "AccessSettings",
    "LoginSettings",
    "MediaSettings",
    "NetworkSettings",
    "ResponseSettings",
    "SharedStateSettings",
    "TelemetrySettings",
    "ToolSettings",
    "TranslationSettings",
]
