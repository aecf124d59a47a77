"""One moderation: by a guard model, by an own server's `/moderations`, or by questions about the categories.

Each input is judged by a request of its own, several in parallel. An own server gets the client's body where
its account's `tasks` name moderation and its model is no guard.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from qproxy.accounts import Account
from qproxy.relay.decisions import decide, size_of
from qproxy.relay.exchange import exchange, read_json, reject_ignored
from qproxy.relay.fan_out import merge_records, run_bounded
from qproxy.relay.relay import Relay
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamResponse
from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON, Usage
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.moderation import Judgement, ModerationInput, guard, questions, response
from qproxy.wire.token_estimate import text_bytes
from qproxy.wire.token_ratios import PromptSize
from qproxy.wire.tool_rounds import add_usage

PARALLEL_INPUTS = 8


@dataclass(frozen=True, slots=True)
class Moderation:
    """One request, and how it is answered."""

    relay: Relay
    request: ModerationInput
    record: RelayRecord
    id: str
    created: int
    flags_controversial: bool

    @property
    def _served(self) -> str:
        return self.relay.names.route(self.request.model).served

    @property
    def _is_guard(self) -> bool:
        return self.relay.policy.catalog.get(self._served).is_for("moderation")

    @property
    def _passes(self) -> bool:
        """Return whether an own server has its own `/moderations` for the model."""
        return not self._is_guard and any(
            "moderation" in (account.tasks or ()) and account.supports(self._served, "moderation")
            for account in self.relay.accounts.accounts
            if account.provider_family != "dashscope"
        )

    def size(self) -> PromptSize:
        """Return the size of all prompts."""
        if self._is_guard or self._passes:
            parts = [part for parts in self.request.inputs for part in parts]
            texts = [part for part in parts if isinstance(part, str)]
            return PromptSize(sum(map(text_bytes, texts)), len(parts) - len(texts))
        decisions = [questions.decision(self.request.model, parts) for parts in self.request.inputs]
        sizes = [size_of(self.relay, decision) for decision in decisions]
        return PromptSize(sum(size.text_bytes for size in sizes), sum(size.images for size in sizes))

    async def run(self) -> JSON:
        """Return the response's body. Raises QproxyError."""
        self.record.model = self.request.model
        if self._passes:
            return await self._forward()
        reject_ignored(self.relay, self.record, self.request.ignored)
        inputs = self.request.inputs
        if self._is_guard and any(not isinstance(part, str) for parts in inputs for part in parts):
            message = "A guard model judges texts only; name a decision model, or a chat model with images."
            raise RequestError(message, param="input", code="invalid_value")
        found: dict[int, Judgement] = {}
        usage: Usage | None = None

        async def judge(number: int) -> None:
            nonlocal usage
            part = RelayRecord()
            try:
                found[number] = await self._judge(number, part)
            finally:
                merge_records(self.record, part)
            usage = add_usage(usage, part.usage) if usage and part.usage else part.usage or usage

        await run_bounded(judge, len(inputs), PARALLEL_INPUTS)
        self.record.usage, self.record.ignored = usage, self.request.ignored
        return response(self._served, [found[number] for number in range(len(inputs))], f"modr-{self.id}")

    async def _judge(self, number: int, record: RelayRecord) -> Judgement:
        """Return the judgement of one input."""
        parts, model, id = self.request.inputs[number], self.request.model, f"{self.id}-{number}"
        if not self._is_guard:
            decision = questions.decision(model, parts)
            answers, _ = await decide(self.relay, decision, record, id=id, created=self.created)
            return questions.judgement(parts, answers)
        turn = guard.turn(model, "\n".join(parts), id=id, created=self.created)
        async with AsyncExitStack() as stack:
            stream = await self.relay.open(turn, record, stack)
            events = await stream.read_all()
        return guard.judgement(events, flags_controversial=self.flags_controversial)

    async def _forward(self) -> JSON:
        """Return the response of an own server to the client's body."""

        def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
            body = json_codec.dumps({**self.request.body, "model": target.model})
            fields = target.with_authorization((b"accept", b"application/json"))
            return HTTPRequest("POST", f"{target.base_url}/moderations", fields, body)

        async def read(response: UpstreamResponse, account: Account) -> JSON:
            return await read_json(response, account)

        async with AsyncExitStack() as stack:
            return await exchange(
                self.relay,
                self.record,
                stack,
                model=self.request.model,
                task="moderation",
                build=build,
                read=read,
            )
