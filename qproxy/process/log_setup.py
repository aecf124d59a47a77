"""Where this process logs, as its `Config` says; for servers and for what supervises them."""

from __future__ import annotations

import logging
import sys

from qproxy.config import Config
from qproxy.telemetry import LogFormatter
from qproxy.telemetry.redaction import Redactor


def configure_logging(config: Config, *, worker: int | None = None) -> None:
    """Log to standard error in the configured shape, without secrets; with a worker's number if it is one."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = config.log_format == "json" or (config.log_format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(LogFormatter(as_json=as_json, redactor=Redactor(config.secrets()), worker=worker))
    logging.basicConfig(handlers=[handler], level=config.log_level.upper(), force=True)
