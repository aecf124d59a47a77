"""A transcription as a task: the recording is uploaded to the vendor's storage, the task is submitted to the
same account, and its state is asked for until it ends.

The wait is limited by the client's patience and `client_request_timeout`; whatever ends it cancels the task,
if the API still can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from uuid import uuid4

import trio

from qproxy.accounts import Account
from qproxy.relay.chat_attempt import check_status
from qproxy.relay.event_stream import MAX_WHOLE_BODY
from qproxy.relay.exchange import read_json
from qproxy.relay.relay import Relay
from qproxy.relay.result_files import download_result
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamTransport
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.dialects.error_mapping import error_from_event
from qproxy.wire.errors import QproxyError, RetryHint, UpstreamError
from qproxy.wire.events import JSON
from qproxy.wire.host_pattern import is_allowed, split_url
from qproxy.wire.http_request import HTTPRequest, Upload
from qproxy.wire.transcription import Transcript, TranscriptionPlan, file_task
from qproxy.wire.transcription.file_task import TaskState

POLL_SECONDS = (1.0, 2.0)
"""Pauses before the state is first asked for."""
LATER_POLL_SECONDS = 5.0
MAX_POLL_FAILURES = 5
"""Failed polls in a row after which a task is given up."""
CANCEL_SECONDS = 5.0
"""Seconds for the attempt to cancel a task whose result is not needed."""


@dataclass(frozen=True, slots=True)
class SubmittedTask:
    """A task, and the account that it belongs to."""

    id: str
    account: Account
    target: UpstreamTarget
    record: RelayRecord


async def submit_task(
    relay: Relay,
    plan: TranscriptionPlan,
    file: Upload,
    account: Account,
    target: UpstreamTarget,
    record: RelayRecord,
) -> SubmittedTask:
    """Upload a recording and return its task. Raises UpstreamError."""
    transport = relay.transport
    data = await _fetch(transport, file_task.policy_request(target), account, record)
    policy = file_task.parse_policy(data)
    url = _checked_host(policy.host, relay.policy.upload_hosts)
    request, address = file_task.upload_request(policy, url, uuid4().hex, plan, file)
    async with await transport.send(request) as response:
        if response.status not in (200, 201, 204):
            message = f"The storage for uploads answered {response.status}."
            raise UpstreamError(message, code="upstream_error")
    data = await _fetch(transport, file_task.submit_request(plan, address, target), account, record)
    return SubmittedTask(file_task.parse_task_id(data), account, target, record)


def _checked_host(url: str, hosts: tuple[str, ...]) -> str:
    """Return the URL to upload to. Raises UpstreamError for a host that is not allowed."""
    parts = split_url(url)
    if parts is not None and is_allowed(parts, hosts):
        return url
    host = None if parts is None else parts.hostname
    message = f"The upstream wants the recording at {host}, which is none of upload_hosts."
    raise UpstreamError(message, code="upstream_invalid_response")


async def _fetch(
    transport: UpstreamTransport, request: HTTPRequest, account: Account, record: RelayRecord
) -> dict[str, JSON]:
    async with await transport.send(request) as response:
        await check_status(response, account, record)
        return await read_json(response, account)


async def finish_task(relay: Relay, task: SubmittedTask) -> Transcript:
    """Return the result of a task. Raises QproxyError when it fails.

    The task is cancelled when the wait is.
    """
    finished = False
    try:
        state = await _wait(relay.transport, task)
        finished = True
    finally:
        if not finished:
            await _cancel(relay.transport, task)
    if state.status != "SUCCEEDED":
        raise _failure(state, task.account)
    hosts = relay.policy.result_hosts
    body = await download_result(relay.transport, state.url, hosts, MAX_WHOLE_BODY)
    return file_task.parse_result(body, state.seconds)


async def _wait(transport: UpstreamTransport, task: SubmittedTask) -> TaskState:
    """Return the state in which a task has ended. Raises QproxyError when it cannot be read."""
    failures = 0
    for pause in _pauses():
        await trio.sleep(pause)
        try:
            data = await _fetch_state(transport, task)
        except UpstreamError as error:
            failures += 1
            if error.retry is RetryHint.NEVER or failures >= MAX_POLL_FAILURES:
                raise
            continue
        failures, state = 0, file_task.parse_state(data)
        if not state.is_running:
            return state
    raise AssertionError("unreachable")


def _pauses() -> Iterator[float]:
    yield from POLL_SECONDS
    while True:
        yield LATER_POLL_SECONDS


async def _fetch_state(transport: UpstreamTransport, task: SubmittedTask) -> dict[str, JSON]:
    return await _fetch(transport, file_task.poll_request(task.id, task.target), task.account, task.record)


async def _cancel(transport: UpstreamTransport, task: SubmittedTask) -> None:
    """Try to cancel a task, whatever has been cancelled here."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CANCEL_SECONDS), suppress(QproxyError):
        async with AsyncExitStack() as stack:
            response = await transport.send(file_task.cancel_request(task.id, task.target))
            await stack.enter_async_context(response)
            await response.read(MAX_WHOLE_BODY)


def _failure(state: TaskState, account: Account) -> QproxyError:
    """Return the error of a task that ended without a result."""
    if state.code or state.message:
        error = error_from_event(
            {"code": state.code or "", "message": state.message}, None, plan=account.plan
        )
        if error is not None:
            return error
    return file_task.task_failure(state)
