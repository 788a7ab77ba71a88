"""Response: the answer of the Responses API, whole and as a stream of events.

Deltas of the answer become output items: messages with one text part, and function calls. Both
forms of a response are built by the same code, so that they are equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from yocobit.serving.api.answer import CallArguments, CallStart, Content, Delta
from yocobit.serving.api.chat_request import PreparedChat
from yocobit.serving.api.generated_response import GeneratedResponse
from yocobit.serving.api.response_items import new_id, output_text
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Event
from yocobit.serving.runtime.runtime import EventStream

_Found = dict[str, Any]
_ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class _Item:
    """An output item in progress: the text of a message, or the arguments of a call."""

    def __init__(self, index: int, call: CallStart | None) -> None:
        self.index = index
        self.call = call
        self.id = new_id("msg" if call is None else "fc")
        self.status = "in_progress"
        self.pieces: list[str] = []
        self.logprobs: list[_Found] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def part(self) -> _Found:
        return output_text(self.text, self.logprobs)

    def to_dict(self, has_part: bool = True) -> _Found:
        if self.call is not None:
            call = {"call_id": self.call.id, "name": self.call.name, "arguments": self.text}
            return {"type": "function_call", "id": self.id, "status": self.status, **call}
        return {
            "type": "message",
            "id": self.id,
            "status": self.status,
            "role": "assistant",
            "content": [self.part] if has_part else [],
        }


class Response(GeneratedResponse):
    """The response to one request."""

    def __init__(
        self,
        model: ServedModel,
        chat: PreparedChat,
        is_streamed: bool,
        fields: _Found,
        input_items: bytes,
    ) -> None:
        """`fields` repeat the request; `input_items` are its items as JSON, to be stored."""
        super().__init__(model, [chat.request], is_streamed, chat.grammar)
        self.id = new_id("resp")
        self.input_items = input_items
        # Called with a response that is to be stored, and the ids of its output items.
        self.on_complete: Callable[[_Found, tuple[str, ...]], None] | None = None
        (self._answer,) = chat.answers()
        self._created = int(time.time())
        self.fields = fields
        self._items: list[_Item] = []
        self._n_events = 0

    def add(self, index: int, event: Event) -> None:
        for _ in self.chunks_of(index, event):
            pass

    def whole(self, stream: EventStream) -> _Found:
        done = self._answer.done
        is_cut = done is not None and done.reason == "length"
        group = stream.groups[0]
        n_prompt, n_generated = len(group.request.prompt), group.n_generated
        response = self._snapshot(
            "incomplete" if is_cut else "completed",
            completed_at=None if is_cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            usage={
                "input_tokens": n_prompt,
                "input_tokens_details": {
                    "cached_tokens": group.n_cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": n_generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": n_prompt + n_generated,
            },
        )
        if self.on_complete is not None:
            self.on_complete(response, tuple(item.id for item in self._items))
        return response

    def first_chunks(self) -> Iterator[_Found]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._snapshot("in_progress"))

    def chunks_of(
        self, index: int, event: Event, stream: EventStream | None = None
    ) -> Iterator[_Found]:
        for delta in self._answer.add(event):
            yield from self._render(delta)

    def last_chunks(self, stream: EventStream) -> Iterator[_Found]:
        response = self.whole(stream)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: APIError) -> _Found:
        for item in self._items:
            if item.status == "in_progress":
                item.status = "incomplete"
        code = _ERROR_CODES.get(error.status, "server_error")
        details = {"code": code, "message": str(error)}
        return self._event("response.failed", response=self._snapshot("failed", error=details))

    def _render(self, delta: Delta) -> Iterator[_Found]:
        if isinstance(delta, Content):
            item = self._items[-1] if self._items else None
            if item is None or item.call is not None:
                yield from self._close("completed")
                item = yield from self._open(None)
            logprobs = [self.logprob(each) for each in delta.logprobs]
            item.pieces.append(delta.text)
            item.logprobs += logprobs
            place = self._place(item)
            text = {"delta": delta.text, "logprobs": _without_bytes(logprobs)}
            yield self._event("response.output_text.delta", **place, **text)
        elif isinstance(delta, CallStart):
            yield from self._close("completed")
            yield from self._open(delta)
        elif isinstance(delta, CallArguments):
            item = self._items[-1]
            item.pieces.append(delta.text)
            place = self._place(item)
            yield self._event("response.function_call_arguments.delta", **place, delta=delta.text)
        else:
            if not self._items:  # an answer without text is an empty message
                yield from self._open(None)
            yield from self._close("incomplete" if delta.reason == "length" else "completed")

    def _open(self, call: CallStart | None) -> Generator[_Found, None, _Item]:
        """Start an item; return it."""
        item = _Item(len(self._items), call)
        self._items.append(item)
        found = item.to_dict(has_part=False)
        yield self._event("response.output_item.added", output_index=item.index, item=found)
        if call is None:
            place, part = self._place(item), item.part
            yield self._event("response.content_part.added", **place, part=part)
        return item

    def _close(self, status: str) -> Iterator[_Found]:
        """Complete the last item, if there is one."""
        if not self._items:
            return
        item = self._items[-1]
        item.status = status
        place = self._place(item)
        if item.call is not None:
            arguments = {"name": item.call.name, "arguments": item.text}
            yield self._event("response.function_call_arguments.done", **place, **arguments)
        else:
            text = {"text": item.text, "logprobs": _without_bytes(item.logprobs)}
            yield self._event("response.output_text.done", **place, **text)
            yield self._event("response.content_part.done", **place, part=item.part)
        found = item.to_dict()
        yield self._event("response.output_item.done", output_index=item.index, item=found)

    def _place(self, item: _Item) -> _Found:
        place: _Found = {"item_id": item.id, "output_index": item.index}
        return place if item.call is not None else {**place, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> _Found:
        self._n_events += 1
        return {"type": kind, "sequence_number": self._n_events - 1, **fields}

    def _snapshot(self, status: str, **fields: Any) -> _Found:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **self.fields,
            "output": [item.to_dict() for item in self._items],
            "usage": None,
            **fields,
        }


def _without_bytes(logprobs: list[_Found]) -> list[_Found]:
    """Return log-probabilities in the form of events, which have no bytes."""
    return [
        {
            "token": each["token"],
            "logprob": each["logprob"],
            "top_logprobs": [
                {"token": top["token"], "logprob": top["logprob"]} for top in each["top_logprobs"]
            ],
        }
        for each in logprobs
    ]
