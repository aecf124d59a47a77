"""A request while the rules are at it: what they read, and what they may change.

Whatever a rule leaves out is named (`ignored`), and refused where `strict_params` is set.
"""

from __future__ import annotations

from qproxy.wire.dialects import effort, message_rules
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Turn
from qproxy.wire.models import ModelSpec


class RequestDraft:
    """A request while the rules are at it."""

    def __init__(
        self,
        turn: Turn,
        *,
        model: str,
        spec: ModelSpec,
        family: str,
        native: bool,
        forced_tools: str,
        strict_params: bool,
    ) -> None:
        self.model = model
        self.spec = spec
        self.family = family
        self.native = native
        """Whether the request is for DashScope's native API."""
        self.set_messages(turn.messages)
        self.tools = turn.tools
        self.tool_choice = turn.tool_choice
        self.params = dict(turn.params)
        self.stream = turn.stream
        self.summarize_reasoning = turn.summarize_reasoning
        self.preserve_reasoning = turn.preserve_reasoning
        self.is_completion = turn.completion
        self.cites_sources = turn.web_search is not None
        """Whether the client is shown which words of a text cite a source."""
        self.forced_tools = forced_tools
        self.ignored: list[str] = []
        self.notes: list[str] = []
        self._strict = strict_params

    def set_messages(self, messages: message_rules.Messages) -> None:
        """Have these messages."""
        self.messages, self.marks = messages, message_rules.features(messages)

    def drop_param(self, name: str) -> bool:
        """Leave a parameter out and say so; False when it was not there."""
        if name not in self.params:
            return False
        if self._strict:
            raise unsupported_param(name)
        del self.params[name]
        self.ignored.append(name)
        return True

    def ignore(self, path: str) -> None:
        """Name what is left out of a parameter, or of the messages."""
        if self._strict:
            raise unsupported_param(path)
        if path not in self.ignored:
            self.ignored.append(path)

    def drop_message_key(self, name: str) -> None:
        """Leave a key out of all messages, and name it."""
        self.ignore(f"messages.{name}")
        self.set_messages(message_rules.without_key(self.messages, name))

    @property
    def thinking(self) -> bool:
        """Return whether the model will think, as far as is known here."""
        if self.spec.thinking == "only":
            return True
        thinking = self.params.get("enable_thinking")
        word = self.params.get("reasoning_effort")
        if word is not None and (thinking is None or self.spec.efforts):
            thinking = effort.means_thinking(word, self.spec)
        return thinking if isinstance(thinking, bool) else self.spec.thinking == "on"

    @property
    def can_stop_thinking(self) -> bool:
        return self.spec.thinking != "only"

    def set_thinking(self, on: bool) -> None:
        """Switch thinking on or off for this request."""
        self.params["enable_thinking"] = on
        if not on:
            self.params.pop("thinking_budget", None)
            self.params.pop("reasoning_effort", None)

    @property
    def forces_tool(self) -> bool:
        return self.tool_choice is not None and self.tool_choice not in ("auto", "none")


def unsupported_param(name: str) -> RequestError:
    """Return the error of a parameter that `strict_params` forbids to leave out."""
    message = f"Unsupported parameter: '{name}' has no meaning for this model's server."
    return RequestError(message, param=name, code="unsupported_parameter")
