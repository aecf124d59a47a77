"""From a `Config` to what seals texts for clients."""

from __future__ import annotations

import logging
from pathlib import Path

from qproxy.backends.local import seal_keys
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.wire.sealing import TextSealer

log = logging.getLogger("qproxy.backends")
COMPACTION_PREFIX = "qproxy-c1."
"""Prefix of the content of compaction items."""


def open_text_sealer(config: Config) -> TextSealer:
    """Return what seals compaction items: with the keys of shared state, of a file, or of this process.

    Raises ConfigError for a file without keys.
    """
    file = config.shared_state_key_file or config.compaction_key_file
    name = "shared_state_key_file" if config.shared_state_key_file else "compaction_key_file"
    if file is None:
        return TextSealer(seal_keys.parse(seal_keys.generate()), COMPACTION_PREFIX)
    try:
        keys = seal_keys.read_or_create(Path(file).expanduser())
    except ValueError as error:
        raise ConfigError(f"{name}: {file} is no key file ({error}).") from None
    except OSError as error:
        log.warning("%s: %s (%s): compaction items are lost at a restart", name, file, error.strerror)
        keys = seal_keys.parse(seal_keys.generate())
    return TextSealer(keys, COMPACTION_PREFIX)
