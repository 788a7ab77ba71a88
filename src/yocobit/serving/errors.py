"""APIError: an error response in OpenAI's shape, with its HTTP status."""

from __future__ import annotations

from typing import Any

from yocobit.errors import printable
from yocobit.serving import limits

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


class APIError(Exception):
    """An error response; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(printable(message))  # it may quote the request
        self.status = status
        self.retry_after = retry_after
        self.param = param and printable(param, 200)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:  # errors cross processes
        return _restored, (self.status, str(self), self.param, self.code, self.retry_after)

    def to_dict(self) -> dict[str, Any]:
        """Return the response body."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def _restored(
    status: int, message: str, param: str | None, code: str | None, retry_after: int | None
) -> APIError:
    return APIError(status, message, param=param, code=code, retry_after=retry_after)


def queue_full(n_waiting: int) -> APIError:
    """Return the error of a request that exceeds the queue."""
    return APIError(
        429,
        f"the queue is full: {n_waiting} requests are waiting already; try again",
        code="queue_full",
        retry_after=1,
    )


def shutting_down() -> APIError:
    """Return the error of a request that the server cannot complete before it exits."""
    return APIError(
        503, "the server is shutting down; try again", code="shutting_down", retry_after=5
    )


def timed_out(timeout_s: float, is_started: bool) -> APIError:
    """Return the error of a request that exceeded the server's time limit."""
    if is_started:
        message = f"the response was not complete after the limit of {timeout_s:g} s per request"
        return APIError(504, f"{message}; request fewer tokens", code="timeout")
    message = f"the request was still queued after the limit of {timeout_s:g} s per request"
    return APIError(504, f"{message}; try again later", code="timeout", retry_after=5)


def too_costly() -> APIError:
    """Return the error of a request whose preparation exceeded a limit."""
    return APIError(
        400,
        f"the request needs more than {limits.PREPARATION_CPU_S:g} s of CPU time or "
        f"{limits.PREPARATION_BYTES >> 20} MB of memory before it can run; send less text, or a "
        "simpler schema",
        code="too_costly",
    )


def out_of_memory() -> APIError:
    """Return the error of a request for whose caches no memory is left."""
    return APIError(
        503, "the system is out of memory; try again", code="out_of_memory", retry_after=5
    )


def internal_error() -> APIError:
    """Return the error of a bug; its details are in the log only."""
    return APIError(500, "internal server error; see the server's log")
