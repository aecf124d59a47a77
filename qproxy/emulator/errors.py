"""Refusals of the emulated server, in DashScope's words."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """The request is refused with this status and body."""

    def __init__(
        self, status: int, message: str, code: str | None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": None, "code": code},
            "request_id": "emu-1",
        }


def bad_request(message: str) -> ApiError:
    """Return the refusal of a parameter."""
    return ApiError(400, f"<400> InternalError.Algo.InvalidParameter: {message}", "invalid_parameter_error")
