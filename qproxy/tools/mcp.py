"""MCP servers: a persistent connection to each, and their tools as `Tool`s.

A `McpServer` is connected by its own task, which runs as long as the `ToolRegistry`: it lists the tools,
lists them again when the server reports a change (and periodically, for a server that does not), and
reconnects after a failure with exponential backoff. A disconnected server offers no tools. Calls from all
requests share one session; the SDK matches responses to calls, and notifies the server of a cancelled one.

A server's messages are untrusted: names are sanitized, schemas are checked before use, and invalid tools are
skipped and logged. The SDK (the extra `qproxy[mcp]`) takes most of a second to import, so it is imported with
the first connection. Model Context Protocol, revisions 2024-11-05 and later.
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
from qproxy.system.extras import install_command
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
"""Seconds for a server to start, complete the handshake and list its tools."""
REFRESH_SECONDS = 60.0
"""Seconds between two listings without a notification."""
CHANGE_SECONDS = 1.0
"""Minimum seconds between two listings, even if notifications are more frequent."""
SILENCE_SECONDS = 300.0
"""Maximum seconds between two reads of a response over HTTP."""
RETRY_DELAYS = (0.5, 60.0)
"""Minimum and maximum seconds before a reconnection; the delay doubles after each attempt."""
HEALTHY_SECONDS = 60.0
"""Seconds after which a connection resets the reconnection delay."""
MAX_TOOLS = 200
MAX_NAME = 64
MAX_DECLARED = 1024 * 1024
"""Bytes of all descriptions and schemas of one server, which become part of requests."""
MAX_EXCEEDED = 3
"""Schemas of one listing that may exceed the evaluation limits before no new schema is checked."""
_INVALID_NAME = re.compile(r"[^A-Za-z0-9_-]")


class McpServer:
    """A connection to one MCP server, and its tools."""

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
        """The validators of the current tools, by the text of the schema."""
        self._client: Client | None = None
        self._tools_changed = trio.Event()
        self._first_attempt_done = trio.Event()

    def __repr__(self) -> str:
        return f"<MCP server {self.label}, {self.state}>"

    async def wait_ready(self) -> None:
        """Wait until the first connection attempt has finished."""
        await self._first_attempt_done.wait()

    async def run(self) -> None:
        """Keep the connection open, and reconnect after failures; return only if no sandbox is available."""
        delay = RETRY_DELAYS[0]
        while True:
            started_at = trio.current_time()
            try:
                reason = await self._session()
            except SandboxUnavailable as error:
                self._on_disconnect(f"unavailable: no sandbox is available: {error}")
                return
            except Exception as error:
                reason = first_cause(error)
            self._on_disconnect(f"not connected: {reason}")
            delay = RETRY_DELAYS[0] if trio.current_time() - started_at > HEALTHY_SECONDS else delay
            await trio.sleep(delay)
            delay = min(2 * delay, RETRY_DELAYS[1])

    def _on_disconnect(self, state: str) -> None:
        self._client, self.tools = None, ()
        if state != self.state:
            log.warning("MCP server %s: %s", self.label, state)
        self.state = state
        self._first_attempt_done.set()

    async def _session(self) -> str:
        """Run one connection, and return the reason for its end."""
        import mcp_types
        from mcp import Client

        with trio.CancelScope(deadline=trio.current_time() + CONNECT_SECONDS) as scope:
            async with self._connect() as streams:
                info = mcp_types.Implementation(name="qproxy", version=VERSION)
                client = Client(
                    _call_arguments(streams),
                    client_info=info,
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
        return f"no response within {CONNECT_SECONDS:g} s"

    async def _on_notification(self, message: Any) -> None:
        """Handle a notification of changed tools (protocol revisions until 2025)."""
        if getattr(message, "method", None) == "notifications/tools/list_changed":
            self._tools_changed.set()
        await trio.lowlevel.checkpoint()

    async def _watch_tools(self, client: Client) -> None:
        """Subscribe to notifications of changed tools (protocol revisions from 2026)."""
        from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
        from mcp.shared.exceptions import MCPError

        with suppress(ListenNotSupportedError, SubscriptionLost, MCPError, TimeoutError):
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._tools_changed.set()

    async def _list(self, client: Client) -> None:
        listed: list[Any] = []
        cursor = None
        for _ in range(MAX_TOOLS):  # bounded because a page may be empty
            page = await client.list_tools(cursor=cursor)
            listed += page.tools
            cursor = page.next_cursor
            if cursor is None or len(listed) >= MAX_TOOLS:
                break
        tools = await self._make_tools([item for item in listed[:MAX_TOOLS] if self._is_allowed(item.name)])
        self.tools = tuple({tool.name: tool for tool in tools}.values())
        self.state = f"connected, {len(self.tools)} tools"
        self._first_attempt_done.set()

    def _is_allowed(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._allow)

    async def _make_tools(self, listed: Sequence[Any]) -> list[Tool]:
        """Return the tools of a listing, without those that cannot be used."""
        checkers, tools, declared, exceeded = self._checkers, [], 0, 0
        self._checkers = {}
        for item in listed:
            try:
                check = await self._make_validator(
                    item.input_schema, checkers, may_exceed=exceeded < MAX_EXCEEDED
                )
                declared += len(check.text) + len(item.description or "")
                if declared > MAX_DECLARED:
                    raise argument_schema.SchemaError(
                        f"the server's declarations exceed {MAX_DECLARED} bytes."
                    )
            except (argument_schema.SchemaError, EvaluationLimitExceeded) as error:
                exceeded += isinstance(error, EvaluationLimitExceeded)
                log.warning("MCP server %s: skipping tool %.64r: %s", self.label, item.name, error)
            else:
                self._checkers[check.text] = check
                tools.append(self._tool(item, check))
        return tools

    async def _make_validator(
        self,
        schema: Mapping[str, Any],
        known: Mapping[bytes, argument_schema.ArgumentsValidator],
        *,
        may_exceed: bool,
    ) -> argument_schema.ArgumentsValidator:
        await trio.lowlevel.checkpoint()
        text = argument_schema.serialize_bounded(schema)
        if text in known:
            return known[text]
        if not may_exceed:
            raise argument_schema.SchemaError(f"{MAX_EXCEEDED} earlier schemas took too long to check.")
        return await argument_schema.make_foreign_validator(schema, text, self._evaluator)

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
            raise ToolError(f"The MCP server of this tool is {self.state}.")
        try:
            result = await client.call_tool(name, arguments)
        except MCPError as error:
            raise ToolError(f"The MCP server of this tool returned an error: {str(error)[:500]}") from None
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise ToolError("The MCP server of this tool disconnected.") from None
        text = result_text(result)
        if result.is_error:
            raise ToolError(text)
        return text


def result_text(result: Any) -> str:
    """Return a result as text for the model: its texts and labels of other content, or its structured
    content."""
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
    label = getattr(part, "mime_type", None) or getattr(part, "uri", None) or getattr(resource, "uri", None)
    return f"[{part.type}: {label}]"


def first_cause(error: BaseException) -> str:
    """Return the first cause of a failed connection as one line."""
    while isinstance(error, BaseExceptionGroup):
        ended = [inner for inner in error.exceptions if isinstance(inner, ServerExited)]
        error = ended[0] if ended else error.exceptions[0]
    if isinstance(error, ServerExited):
        return str(error)
    if isinstance(error, ImportError):
        return f"MCP servers require the package `mcp`: {install_command('mcp')}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


@asynccontextmanager
async def _call_arguments(streams: Streams) -> AsyncIterator[Streams]:
    yield streams


def http_connection(
    url: str, headers: Mapping[str, str], transport: Callable[[], UpstreamTransport]
) -> Callable[[], AbstractAsyncContextManager[Streams]]:
    """Return a function that connects to a remote server, each time with a new `transport`."""

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
