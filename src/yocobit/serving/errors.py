"""Errors of a server as its clients see them: OpenAI's shape, and the status that fits."""

from __future__ import annotations

from typing import Any


class APIError(Exception):
    """What a client is told; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.param = param
        self.code = code

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


class ServerBusyError(APIError):
    """The queue is full."""

    def __init__(self, n_waiting: int) -> None:
        super().__init__(
            429,
            f"{n_waiting} requests are waiting already, which is the most that may; try again",
            code="queue_full",
            retry_after=1,
        )


class ServerStoppedError(APIError):
    """The server is going down."""

    def __init__(self) -> None:
        super().__init__(
            503, "the server is shutting down; try again", code="shutting_down", retry_after=5
        )


class DeadlineError(APIError):
    """A request took longer than the server allows."""

    def __init__(self, timeout_s: float, has_begun: bool) -> None:
        limit = f"{timeout_s:g} s, the most that this server gives a request"
        super().__init__(
            504,
            f"the answer was not complete after {limit}; ask for fewer tokens"
            if has_begun
            else f"the request waited for its turn for {limit}; try again later",
            code="timeout",
            retry_after=None if has_begun else 5,
        )


class NoMemoryError(APIError):
    """The system has less memory than the server was told to use."""

    def __init__(self) -> None:
        super().__init__(
            503, "the system is out of memory; try again", code="out_of_memory", retry_after=5
        )
