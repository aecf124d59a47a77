"""MCP servers: their tools as ours, and the connection to each, kept up.

A `McpServer` is connected by its own task, which lives as long as the workshop: it asks for the list of tools, asks
again when the server says that it changed (and now and then, for a server that does not say), and after a loss
connects anew, with growing pauses.  While a server is away it offers nothing.  Calls go over the one session, from
whatever request's task; the SDK tells them apart, and tells the server when one is given up.

What a server says is a stranger's word: names are made sound, schemas are checked before they are used, and what does
not fit is left out with a line in the log.  The SDK (the extra `qproxy[mcp]`) takes most of a second to import, so it
is imported when the first server is connected to.  Model Context Protocol, revisions 2024-11-05 and later.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import trio

from qproxy.sandbox import SandboxUnavailable
from qproxy.tools import arguments as argument_schema
from qproxy.tools.mcp_stdio import ServerExited, Streams
from qproxy.tools.schema_process import EvaluationLimitExceeded, SchemaEvaluator
from qproxy.tools.tool import Tool, ToolError, ToolPolicy
from qproxy.transport import UpstreamTransport
from qproxy.version import VERSION
from qproxy.wire import json_codec

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger("qproxy.tools")
CONNECT_SECONDS = 30.0
"""For a server to start, shake hands and tell its tools."""
REFRESH_SECONDS = 60.0
"""Between two questions for the list, when nothing was heard."""
CHANGE_SECONDS = 1.0
"""Between two at the least, however often the server says that its list has changed."""
SILENCE_SECONDS = 300.0
"""Of a server over HTTP, within an answer."""
RETRY_DELAYS = (0.5, 60.0)
"""Before the first and before any later attempt to connect anew; each is twice the one before."""
HEALTHY_SECONDS = 60.0
"""After a connection of this length the pauses begin anew."""
MAX_TOOLS = 200
MAX_NAME = 64
MAX_DECLARED = 1024 * 1024
"""Bytes of all descriptions and schemas of one server: they go into the requests that get its tools."""
MAX_EXCEEDED = 3
"""Schemas of one list that may take too long to check; after them no new one is checked."""
_INVALID_NAME = re.compile(r"[^A-Za-z0-9_-]")


class McpServer:
    """One MCP server: a source of tools."""

    def __init__(
        self,
        label: str,
        connect: Callable[[], AbstractAsyncContextManager[Streams]],
        *,
        allow: Sequence[str] = ("*",),
        policy: ToolPolicy = "on request",
        timeout: float = 30.0,
        isolation: str = "",
    ) -> None:
        self.label = label
        self.state = "not connected yet"
        self.tools: tuple[Tool, ...] = ()
        self._connect = connect
        self._allow = allow
        self._policy = policy
        self._timeout = timeout
        self._isolation = isolation
        self._evaluator = SchemaEvaluator()
        self._checkers: dict[bytes, argument_schema.ArgumentsValidator] = {}
        """Of the tools there are, by schema: what was found out about one lasts while it is the same."""
        self._client: Client | None = None
        self._tools_changed = trio.Event()
        self._first_attempt_done = trio.Event()

    def __repr__(self) -> str:
        return f"<MCP server {self.label}, {self.state}>"

    async def wait_ready(self) -> None:
        """Return when the first attempt to connect is over."""
        await self._first_attempt_done.wait()

    async def run(self) -> None:
        """Stay connected, for ever; where that can never be, return."""
        pause = RETRY_DELAYS[0]
        while True:
            began = trio.current_time()
            try:
                why = await self._session()
            except SandboxUnavailable as refusal:
                self._on_disconnect(f"refused: no sandbox can be made: {refusal}")
                return
            except Exception as error:
                why = first_cause(error)
            self._on_disconnect(f"not connected: {why}")
            pause = RETRY_DELAYS[0] if trio.current_time() - began > HEALTHY_SECONDS else pause
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_DELAYS[1])

    def _on_disconnect(self, state: str) -> None:
        self._client, self.tools = None, ()
        if state != self.state:
            log.warning("MCP server %s: %s", self.label, state)
        self.state = state
        self._first_attempt_done.set()

    async def _session(self) -> str:
        """One connection, from its beginning to its end; why it ended."""
        import mcp_types
        from mcp import Client

        with trio.CancelScope(deadline=trio.current_time() + CONNECT_SECONDS) as scope:
            async with self._connect() as streams:
                about = mcp_types.Implementation(name="qproxy", version=VERSION)
                client = Client(
                    _call_arguments(streams),
                    client_info=about,
                    message_handler=self._on_notification,
                    cache=None,
                )
                async with client, trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_tools, client)
                    await self._list(client)
                    self._client, listed = client, trio.current_time()
                    while True:
                        scope.deadline = trio.current_time() + REFRESH_SECONDS + CONNECT_SECONDS
                        with trio.move_on_after(REFRESH_SECONDS):
                            await self._tools_changed.wait()
                            await trio.sleep_until(listed + CHANGE_SECONDS)
                        self._tools_changed = trio.Event()
                        await self._list(client)
                        listed = trio.current_time()
        return f"it did not answer within {CONNECT_SECONDS:g} s"

    async def _on_notification(self, message: Any) -> None:
        """A message that the server sent of itself, until 2025."""
        if getattr(message, "method", None) == "notifications/tools/list_changed":
            self._tools_changed.set()
        await trio.lowlevel.checkpoint()

    async def _watch_tools(self, client: Client) -> None:
        """The same in the protocol of 2026, where one has to ask for it."""
        from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
        from mcp.shared.exceptions import MCPError

        with suppress(ListenNotSupportedError, SubscriptionLost, MCPError, TimeoutError):
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._tools_changed.set()

    async def _list(self, client: Client) -> None:
        listed: list[Any] = []
        cursor = None
        for _ in range(MAX_TOOLS):  # a page may have no tool
            page = await client.list_tools(cursor=cursor)
            listed += page.tools
            cursor = page.next_cursor
            if cursor is None or len(listed) >= MAX_TOOLS:
                break
        tools = await self._make_tools([one for one in listed[:MAX_TOOLS] if self._is_allowed(one.name)])
        self.tools = tuple({tool.name: tool for tool in tools}.values())
        self.state = f"connected, {len(self.tools)} tools"
        self._first_attempt_done.set()

    def _is_allowed(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._allow)

    async def _make_tools(self, listed: Sequence[Any]) -> list[Tool]:
        """Make a tool of each that was listed; leave out what cannot be used."""
        checkers, tools, declared, exceeded = self._checkers, [], 0, 0
        self._checkers = {}
        for one in listed:
            try:
                check = await self._make_validator(
                    one.input_schema, checkers, may_exceed=exceeded < MAX_EXCEEDED
                )
                declared += len(check.text) + len(one.description or "")
                if declared > MAX_DECLARED:
                    raise argument_schema.SchemaError(f"the tools before it have {MAX_DECLARED} bytes.")
            except (argument_schema.SchemaError, EvaluationLimitExceeded) as error:
                exceeded += isinstance(error, EvaluationLimitExceeded)
                log.warning("MCP server %s: its tool %.64r is left out: %s", self.label, one.name, error)
            else:
                self._checkers[check.text] = check
                tools.append(self._tool(one, check))
        return tools

    async def _make_validator(
        self,
        given: Mapping[str, Any],
        known: Mapping[bytes, argument_schema.ArgumentsValidator],
        *,
        may_exceed: bool,
    ) -> argument_schema.ArgumentsValidator:
        await trio.lowlevel.checkpoint()
        text = argument_schema.serialize_bounded(given)
        if text in known:
            return known[text]
        if not may_exceed:
            raise argument_schema.SchemaError(f"{MAX_EXCEEDED} before it took too long to check.")
        return await argument_schema.make_foreign_validator(given, text, self._evaluator)

    def _tool(self, declared: Any, check: argument_schema.ArgumentsValidator) -> Tool:
        async def run(arguments: dict[str, Any]) -> str:
            return await self._call(declared.name, arguments)

        return Tool(
            name=_INVALID_NAME.sub("_", f"{self.label}__{declared.name}")[:MAX_NAME],
            description=declared.description or declared.title or "",
            parameters=declared.input_schema,
            validate=check,
            run=run,
            kind="mcp",
            timeout=self._timeout,
            policy=self._policy,
            server=self.label,
            remote_name=declared.name,
            isolation=self._isolation,
            unavailable=lambda: check.unavailable_reason,
        )

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        from mcp.shared.exceptions import MCPError

        client = self._client
        if client is None:
            raise ToolError(f"The server of this tool is {self.state}.")
        try:
            result = await client.call_tool(name, arguments)
        except MCPError as error:
            raise ToolError(f"The server of this tool says: {str(error)[:500]}") from None
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise ToolError("The server of this tool has gone.") from None
        text = result_text(result)
        if result.is_error:
            raise ToolError(text)
        return text


def result_text(result: Any) -> str:
    """A result as text for the model: its texts, what else there is by name, else its structure."""
    parts = [_content_text(part) for part in result.content]
    if not parts and result.structured_content is not None:
        return json_codec.dumps(result.structured_content).decode()
    return "\n".join(parts) or "(no output)"


def _content_text(part: Any) -> str:
    if part.type == "text":
        return str(part.text)
    resource = getattr(part, "resource", None)
    if resource is not None and getattr(resource, "text", None) is not None:
        return str(resource.text)
    about = getattr(part, "mime_type", None) or getattr(part, "uri", None) or getattr(resource, "uri", None)
    return f"[{part.type}: {about}]"


def first_cause(error: BaseException) -> str:
    """The first cause of a failed connection, in a line."""
    while isinstance(error, BaseExceptionGroup):
        ended = [inner for inner in error.exceptions if isinstance(inner, ServerExited)]
        error = ended[0] if ended else error.exceptions[0]
    if isinstance(error, ServerExited):
        return str(error)
    if isinstance(error, ImportError):
        return "MCP servers need the package `mcp`: pip install 'qproxy[mcp]'"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


@asynccontextmanager
async def _call_arguments(streams: Streams) -> AsyncIterator[Streams]:
    yield streams


def http_connection(
    url: str, headers: Mapping[str, str], transport: Callable[[], UpstreamTransport]
) -> Callable[[], AbstractAsyncContextManager[Streams]]:
    """How to connect to a server that runs elsewhere, each time over a new `transport`."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Streams]:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        from qproxy.tools.mcp_http import BoundedTransport

        async with (
            httpx2.AsyncClient(headers=dict(headers), transport=BoundedTransport(transport())) as http,
            streamable_http_client(url, http_client=http) as streams,
        ):
            yield streams

    return connect
