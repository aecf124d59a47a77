"""The operator's settings of relaying requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qproxy.relay.fallbacks import FallbackRule
from qproxy.relay.flex import FlexPolicy
from qproxy.relay.prompt_caching import PromptCachePolicy
from qproxy.wire import tool_calls
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.models import ModelCatalog


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPolicy:
    """The operator's settings of relaying requests."""

    aliases: ModelAliases
    rule_switches: Mapping[str, bool]
    """Rules enabled or disabled by name."""
    strict_params: bool
    forced_tools: str
    stream_upstream: str
    retired_models: str
    """Response to requests for a retired model: an "error", or that of its "successor"."""
    flex: FlexPolicy
    fallbacks: tuple[FallbackRule, ...]
    catalog: ModelCatalog
    prompt_cache: PromptCachePolicy | None
    """Placement of breakpoints of prompt caches; None leaves it to clients."""
    search_sources: bool
    """Whether searches that clients request use DashScope's native API, which names their sources."""
    embedding_requests: int
    """Maximum batches in flight per request for embeddings."""
    result_hosts: tuple[str, ...]
    """Patterns of the hosts of files that responses link to."""
    upload_hosts: tuple[str, ...]
    """Patterns of the hosts that recordings are uploaded to."""
    audio_translation_model: str | None
    """The model that translates transcripts; None if there is none."""
    speech_voices: Mapping[str, str]
    """Voices of clients, and the models' names for them."""
    moderation_model: str | None
    """Model of moderations that name none, or one of OpenAI's."""
    flags_controversial: bool
    """Whether inputs are flagged that a guard model calls controversial."""
    ffmpeg: str | None
    """Program that makes other formats of sound; None without one."""
    profile: Callable[[str], tool_calls.ModelProfile]
