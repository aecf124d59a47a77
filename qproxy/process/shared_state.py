"""The check of `shared_state` before the first process serves."""

from __future__ import annotations

from qproxy.config import Config


def require_compatible_state(config: Config) -> None:
    """Raise ConfigError if this program is too old for the data of `shared_state`."""
    if config.shared_state is not None:
        import trio  # which a supervisor needs for this alone

        from qproxy.backends.shared_operations import require_compatible

        trio.run(require_compatible, config)
