"""Approvals of calls: a response ends with a request for one, and the next request answers it.

A request and its answer become the call that they are about: approved, with the result of the run that this
request starts; denied, with that as its result. A call that was run in an earlier response is an `mcp_call`
item already, which names its approval.

OpenAPI `MCPApprovalRequest`, `MCPApprovalResponse`, `MCPTool.require_approval`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qproxy.wire.endpoints.responses.objects import SERVER_TOOLS
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.server_tools import ApprovedCall

REQUEST, RESPONSE = "mcp_approval_request", "mcp_approval_response"
DENIED = "The user denied this call."


def offered_name(label: str, name: str) -> str:
    """Return the name under which a model gets a tool of a server."""
    return name if label == SERVER_TOOLS else f"{label}__{name}"


def resolve(items: Sequence[JSON]) -> list[JSON]:
    """Return items with the calls that approvals are about in the place of the answers.

    Raises RequestError for an answer without its request.
    """
    if not any(item["type"] in (REQUEST, RESPONSE) for item in items):
        return list(items)
    requests = {item["id"]: item for item in items if item["type"] == REQUEST}
    run = _run_requests(items)
    out: list[JSON] = []
    for item in items:
        if item["type"] == RESPONSE:
            request = _request_of(item, requests)
            if request["id"] not in run:
                out.append(_call(item, request))
        elif item["type"] != REQUEST:
            out.append(item)
    return out


def approved_calls(items: Sequence[JSON], own: Collection[JSON]) -> tuple[ApprovedCall, ...]:
    """Return the calls of a conversation that the request's own items approve."""
    requests = {item["id"]: item for item in items if item["type"] == REQUEST}
    answers = [item for item in own if item["type"] == RESPONSE and item["approve"]]
    approved = {answer["approval_request_id"]: _request_of(answer, requests) for answer in answers}
    run = _run_requests(items)
    return tuple(
        ApprovedCall(id, offered_name(request["server_label"], request["name"]), request["arguments"])
        for id, request in approved.items()
        if id not in run
    )


def listed_servers(items: Sequence[JSON]) -> frozenset[str]:
    """Return the labels of the servers whose tools the conversation has listed."""
    return frozenset(item["server_label"] for item in items if item["type"] == "mcp_list_tools")


def _run_requests(items: Sequence[JSON]) -> set[JSON]:
    return {item.get("approval_request_id") for item in items if item["type"] == "mcp_call"}


def _request_of(answer: JSON, requests: dict[str, JSON]) -> JSON:
    id = answer["approval_request_id"]
    if id not in requests:
        message = f"Approval request {id[:100]!r} not found: send its item, or continue its response."
        raise RequestError(message, param="input", code="invalid_value")
    return requests[id]


def _call(answer: JSON, request: JSON) -> JSON:
    """Return the call of a request with its answer; the result of an approved one is empty."""
    denied = f"{DENIED} {answer['reason'] or ''}".strip()
    return {
        "id": request["id"],
        "type": "mcp_call",
        "server_label": request["server_label"],
        "name": request["name"],
        "arguments": request["arguments"],
        "output": "" if answer["approve"] else denied,
        "error": None,
    }
