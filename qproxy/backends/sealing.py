"""From a `Config` to what seals texts for clients."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from qproxy.backends.local import seal_keys
from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.wire.sealing import Sealer, TextSealer

log = logging.getLogger("qproxy.backends")
COMPACTION_PREFIX = "qproxy-c1."
"""Prefix of the content of compaction items."""


class DeferredSealer(Sealer):
    """A sealer whose key file is created at its first use."""

    def __init__(self, open_sealer: Callable[[], TextSealer]) -> None:
        self._open = cache(open_sealer)

    def seal(self, text: str, nonce: bytes) -> str:
        return self._open().seal(text, nonce)

    def unseal(self, value: str) -> str | None:
        return self._open().unseal(value)


def open_text_sealer(config: Config, prefix: str = COMPACTION_PREFIX) -> Sealer:
    """Return what seals texts of one purpose, which the prefix names.

    Its keys are those of shared state, of a file, or of this process. Raises ConfigError for a file
    without keys.
    """
    file = config.shared_state_key_file or config.compaction_key_file
    if file is not None and not Path(file).expanduser().exists():
        return DeferredSealer(partial(_open, config, prefix))
    return _open(config, prefix)


def _open(config: Config, prefix: str) -> TextSealer:
    file = config.shared_state_key_file or config.compaction_key_file
    name = "shared_state_key_file" if config.shared_state_key_file else "compaction_key_file"
    if file is None:
        return TextSealer(seal_keys.parse(seal_keys.generate()), prefix)
    try:
        keys = seal_keys.read_or_create(Path(file).expanduser())
    except ValueError as error:
        raise ConfigError(f"{name}: {file} is no key file ({error}).") from None
    except OSError as error:
        log.warning("%s: %s (%s): compaction items are lost at a restart", name, file, error.strerror)
        keys = seal_keys.parse(seal_keys.generate())
    return TextSealer(keys, prefix)
