"""The access log: one record per HTTP request, as a line of text or as JSON with the same fields.

No record has a prompt, an answer or an API key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from starlette.types import Scope

from yocobit.errors import printable
from yocobit.serving.runtime.sequence import SequenceGroup

logger = logging.getLogger("yocobit.access")

_MAX_PATH, _MAX_CLIENT, _MAX_ERROR = 256, 64, 300  # characters


class AccessRecord:
    """The log record of one HTTP request."""

    def __init__(self, scope: Scope, request_id: str, keys: Sequence[str]) -> None:
        """Start the clock. The record has "[key]" in place of any of `keys`."""
        self._started_at = time.perf_counter()
        self._keys = keys
        self.error: str | None = None  # why the request was rejected, or failed
        self.groups: Sequence[SequenceGroup] = ()  # its requests to the scheduler
        client = str((scope.get("client") or ("", 0))[0])  # may come from a proxy's header
        self.fields: dict[str, Any] = {
            "request_id": self._without_keys(request_id),
            "client": printable(self._without_keys(client), _MAX_CLIENT),
            "method": scope["method"],
            # Quoted: a line break in it would forge a log line.
            "path": quote(self._without_keys(scope["path"])[:_MAX_PATH]),
        }

    def write(self, status: int) -> None:
        """Write the record."""
        fields = self.fields
        seconds = round(time.perf_counter() - self._started_at, 6)
        fields |= {"status": status, "seconds": seconds, **_generation(self.groups)}
        failures = [str(group.failure) for group in self.groups if group.failure]
        if error := self.error or next(iter(failures), None):
            fields["error"] = printable(self._without_keys(error), _MAX_ERROR)
        logger.info("%s", _line(fields), extra={"fields": fields})

    def _without_keys(self, text: str) -> str:
        for key in self._keys:
            text = text.replace(key, "[key]")
        return text


def _generation(groups: Sequence[SequenceGroup]) -> dict[str, Any]:
    """Return the fields of requests to the scheduler; times are in seconds."""
    if not groups:
        return {}
    first = min((group.first_token_at for group in groups if group.first_token_at), default=0.0)
    last = max(group.finished_at for group in groups) or time.monotonic()
    n_generated = sum(group.n_generated for group in groups)
    reasons = dict.fromkeys(group.outcome or "cancelled" for group in groups)
    fields: dict[str, Any] = {
        "prompt_tokens": sum(len(group.request.prompt) for group in groups),
        "cached_tokens": sum(group.n_cached_tokens for group in groups),
        "generated_tokens": n_generated,
    }
    if first:
        fields["first_token_s"] = round(first - min(group.queued_at for group in groups), 4)
    if first and n_generated > 1 and last > first:
        fields["tokens_per_s"] = round((n_generated - 1) / (last - first), 1)
    if n_preemptions := sum(group.n_preemptions for group in groups):
        fields["preemptions"] = n_preemptions
    return {**fields, "finish_reason": ",".join(reasons)}


def _line(fields: dict[str, Any]) -> str:
    """Return the fields as text."""
    line = "{client} {method} {path} {status} {seconds:.3f} s".format(**fields)
    if "prompt_tokens" in fields:
        line += (
            ", {prompt_tokens} prompt tokens ({cached_tokens} cached), {generated_tokens} generated"
        ).format(**fields)
    for name, text in (
        ("first_token_s", "first after {:.3f} s"),
        ("tokens_per_s", "{:,.1f} tokens/s"),
        ("preemptions", "preempted {} times"),
        ("finish_reason", "{}"),
    ):
        if name in fields:
            line += ", " + text.format(fields[name])
    return f"{line}: {fields['error']}" if "error" in fields else line
