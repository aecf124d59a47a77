"""The errors of Valkey or Redis. Their messages name no password."""

from __future__ import annotations


class RedisError(Exception):
    """The engine cannot be used; the message has the reason."""


class RedisUnavailable(RedisError):
    """There is no connection: the command was not sent."""


class OutcomeUnknown(RedisError):
    """The command was sent and no reply came: it may have been executed, or may be later."""


class RedisReplyError(RedisError):
    """The engine's error reply."""

    @property
    def is_redirection(self) -> bool:
        """Return whether it is about one command, and the member of a cluster that sent it is well."""
        return str(self).startswith(("MOVED ", "ASK ", "TRYAGAIN "))
