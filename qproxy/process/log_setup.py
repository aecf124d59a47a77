"""Logging of this process, a server or a supervisor, as its `Config` sets it."""

from __future__ import annotations

import logging
import shutil
import sys

from qproxy.config import Config, shows_colors
from qproxy.telemetry import LogFormatter
from qproxy.telemetry.log_format import MIN_WIDTH
from qproxy.telemetry.redaction import Redactor


def configure_logging(config: Config, *, worker: int | None = None) -> None:
    """Log to standard error in the configured format, without secrets; a worker adds its number."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = config.log_format == "json" or (config.log_format == "auto" and not sys.stderr.isatty())
    is_terminal = sys.stderr.isatty()
    width = max(MIN_WIDTH, shutil.get_terminal_size().columns) if is_terminal else None
    handler.setFormatter(
        LogFormatter(
            as_json=as_json,
            redactor=Redactor(config.secrets()),
            worker=worker,
            width=width,
            colored=shows_colors(is_terminal=is_terminal),
        )
    )
    logging.basicConfig(handlers=[handler], level=config.log_level.upper(), force=True)
