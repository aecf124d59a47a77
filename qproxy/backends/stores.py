"""The stores of what clients sent and got: on this machine and, where they can be sealed, shared.

Shared ones are around this machine's own, which have what was stored before, and what is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qproxy.backends.local.batch_store import SqliteBatches
from qproxy.backends.local.chat_completions import SqliteCompletions
from qproxy.backends.local.conversations import SqliteConversations
from qproxy.backends.local.file_store import DirectoryFileStore
from qproxy.backends.local.files import FILES_DATABASE
from qproxy.backends.local.reasoning import MemoryReasoning
from qproxy.backends.local.response_runs import SqliteResponseRuns
from qproxy.backends.local.responses import SqliteResponseStore
from qproxy.backends.local.tool_rounds import MemoryToolRounds
from qproxy.backends.local.upload_store import SqliteUploads
from qproxy.config import Config
from qproxy.relay.reasoning_store import ReasoningStore
from qproxy.relay.tool_rounds import ToolRoundStore
from qproxy.server.batch_store import BatchStore
from qproxy.server.file_store import FileStore
from qproxy.server.stores import ResponseStores
from qproxy.server.upload_store import UploadStore

if TYPE_CHECKING:
    from qproxy.backends.redis.stores import RedisStores

MAX_MEMORY_STORE = 64 * 1024 * 1024
"""Bytes of responses that are stored in memory, without a `responses_file`."""
MAX_REASONING = 64 * 1024 * 1024
"""Bytes of ciphertext of reasoning that one process keeps."""


def open_stores(config: Config) -> ResponseStores:
    """Return this machine's stores of the Responses API: one file or, with a smaller bound, memory."""
    if not config.store_responses:
        return ResponseStores(None, None, None, None)
    path = Path(config.responses_file) if config.responses_file else None
    max_age, timeout = config.responses_max_age, config.store_timeout
    max_bytes = config.responses_max_bytes if path else min(config.responses_max_bytes, MAX_MEMORY_STORE)
    return ResponseStores(
        SqliteResponseStore(path, max_age=max_age, max_bytes=max_bytes, timeout=timeout),
        SqliteConversations(path, max_age=max_age, max_bytes=max_bytes, timeout=timeout),
        SqliteResponseRuns(path, max_bytes=max_bytes, timeout=timeout),
        SqliteCompletions(path, max_age=max_age, max_bytes=max_bytes, timeout=timeout),
    )


def open_files(config: Config) -> FileStore:
    """Return this machine's store of files."""
    return DirectoryFileStore(
        Path(config.files_directory) if config.files_directory else None,
        max_age=config.files_max_age,
        max_bytes=config.files_max_bytes,
        timeout=config.store_timeout,
    )


def open_batches(config: Config) -> BatchStore:
    """Return this machine's store of batches, beside its files."""
    path = Path(config.files_directory) / FILES_DATABASE if config.files_directory else None
    return SqliteBatches(path, max_age=config.files_max_age, timeout=config.store_timeout)


def open_uploads(config: Config) -> UploadStore:
    """Return this machine's store of uploads, beside its files."""
    path = Path(config.files_directory) / FILES_DATABASE if config.files_directory else None
    return SqliteUploads(path, max_bytes=config.files_max_bytes, timeout=config.store_timeout)


def store_opener(shared: RedisStores | None) -> Callable[[Config], ResponseStores]:
    """Return what opens the stores of the Responses API."""
    if shared is None:
        return open_stores
    return lambda config: shared.open_responses(
        open_stores(config), max_age=config.responses_max_age, max_bytes=config.shared_response_max_bytes
    )


def open_tool_rounds(config: Config, shared: RedisStores | None = None) -> ToolRoundStore:
    """Return the store of hidden tool rounds."""
    seconds = config.tool_round_cache_seconds
    local = MemoryToolRounds(seconds=seconds)
    return local if shared is None else shared.open_tool_rounds(local, seconds=seconds)


def open_reasoning(config: Config, shared: RedisStores | None = None) -> ReasoningStore | None:
    """Return the store of ciphertext of reasoning, None without one."""
    seconds = config.reasoning_cache_seconds
    if not seconds:
        return None
    local = MemoryReasoning(seconds=seconds, max_bytes=MAX_REASONING)
    return local if shared is None else shared.open_reasoning(local, seconds=seconds)
