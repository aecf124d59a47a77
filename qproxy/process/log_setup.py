"""Logging of this process, a server or a supervisor, as its `Config` sets it."""

from __future__ import annotations

import logging
import sys

from qproxy.config import Config
from qproxy.telemetry import LogFormatter
from qproxy.telemetry.redaction import Redactor


def configure_logging(config: Config, *, worker: int | None = None) -> None:
    """Log to standard error in the configured format, without secrets; a worker adds its number."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = config.log_format == "json" or (config.log_format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(LogFormatter(as_json=as_json, redactor=Redactor(config.secrets()), worker=worker))
    logging.basicConfig(handlers=[handler], level=config.log_level.upper(), force=True)
