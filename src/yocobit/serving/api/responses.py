"""POST responses, GET and DELETE responses/ID: OpenAI's Responses API.

A body is converted to a ChatRequest. The conversation before `previous_response_id` is stored in
the server's process: `recall` looks it up before a worker builds the response. A large body is
decoded only in workers: the decoder holds the GIL and would stall the event loop, even in a thread.
"""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from yocobit.errors import shown
from yocobit.serving import limits
from yocobit.serving.api.call import Call, Events, Reply, ServerState
from yocobit.serving.api.chat_request import ChatRequest, PreparedChat, prepare, prompt_tokens
from yocobit.serving.api.generated_response import generate
from yocobit.serving.api.protocol import Message, Name
from yocobit.serving.api.response import Response
from yocobit.serving.api.response_items import (
    Item,
    Output,
    append_messages,
    resolve,
    to_stored,
)
from yocobit.serving.api.response_request import (
    ResponseRequest,
    chat_request,
    check_supported,
    repeated_fields,
)
from yocobit.serving.api.response_store import Turn
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError


class Page(Struct, kw_only=True):
    """The query of input_items."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Name | None = None


class Retrieval(Struct, kw_only=True):
    """The query of a stored response."""

    stream: bool = False


@dataclasses.dataclass(frozen=True)
class Recalled:
    """Stored JSON that a request continues or references."""

    turns: tuple[tuple[bytes, bytes], ...] = ()  # input items and response of each
    responses: tuple[bytes, ...] = ()  # with items that the input references

    @property
    def n_bytes(self) -> int:
        return sum(map(len, (*(each for turn in self.turns for each in turn), *self.responses)))


class _Body(Struct, kw_only=True):
    """The part of a body that references stored responses."""

    previous_response_id: Name | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")


class _Item(Struct, kw_only=True):
    type: Any = None
    id: Any = None


_Items = Annotated[list[_Item], Meta(max_length=limits.MESSAGES)]


@dataclasses.dataclass(frozen=True)
class References:
    """The references of a body: a response to continue, and output items of other responses."""

    previous_id: str | None
    item_ids: tuple[str, ...]


async def recall(
    state: ServerState, body: bytes, client: str, arrived_at: float
) -> Recalled | None:
    """Return what a body continues or references; APIError 404 for what is not stored.

    An invalid body is reported when it is decoded as a whole.
    """
    if b"previous_response_id" not in body and b"item_reference" not in body:
        return None
    if len(body) <= limits.REFERENCING_BYTES:
        references = find_references(body)
    else:
        _, runtime = state.require_ready()
        work = runtime.in_worker(_find_in_worker, body, client=client, is_heavy=True)
        references = await runtime.prepare(arrived_at, work)
    return None if references is None else _look_up(state, references, client)


def find_references(body: bytes) -> References | None:
    """Return what a body references; None if it is invalid."""
    items: list[_Item] = []
    try:
        found = msgspec.json.decode(body, type=_Body)
        given = bytes(found.input)
        if given.lstrip()[:1] == b"[" and b"item_reference" in given:
            items = msgspec.json.decode(given, type=_Items)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    ids = [item.id for item in items if item.type == "item_reference" and isinstance(item.id, str)]
    return References(found.previous_response_id, tuple(ids))


def _find_in_worker(model: ServedModel, body: bytes) -> References | None:
    return find_references(body)


def _look_up(state: ServerState, references: References, client: str) -> Recalled:
    """Return the stored JSON that is referenced."""
    owner, turns, responses = _owner(state, client), list[Turn](), dict[str, Turn]()
    if references.previous_id is not None:
        previous = state.responses.get(owner, references.previous_id, "previous_response_id")
        turns = previous.conversation()
    for item_id in references.item_ids:
        turn = state.responses.get_by_item(owner, item_id, "input")
        responses[turn.id] = turn
    recalled = Recalled(
        tuple((turn.input, turn.response) for turn in turns),
        tuple(turn.response for turn in responses.values()),
    )
    if recalled.n_bytes > state.settings.max_body_bytes:
        raise APIError(
            413,
            f"the stored conversation has {recalled.n_bytes:,} bytes, but at most "
            f"{state.settings.max_body_bytes:,} are allowed; send the part that matters as input",
            param="previous_response_id",
        )
    return recalled


def is_heavy(body: ResponseRequest) -> bool:
    """Whether a schema must be compiled."""
    return body.format.type != "text" or body.tool_choice not in (None, "none", "auto")


def build(
    model: ServedModel, body: ResponseRequest, client: str, recalled: Recalled | None = None
) -> Response:
    """Return the response to generate for a body; APIError 400 if it is invalid."""
    check_supported(body)
    recalled = recalled or Recalled()
    items: list[Item] = []
    if isinstance(body.input, str):
        items = [Item(role="user", content=body.input)]
    elif body.input is not None:
        items = body.input
    own = list(resolve(items, _referred(recalled)))
    messages: list[Message] = []
    if body.instructions is not None:
        messages.append(Message(role="system", content=body.instructions))
    for given, answer in recalled.turns:
        earlier = msgspec.json.decode(given, type=list[Item])
        earlier += msgspec.json.decode(answer, type=Output).output
        append_messages(messages, enumerate(earlier))
    append_messages(messages, own)
    if not own and not recalled.turns:
        raise APIError(400, "input is missing; give a text or a list of items", param="input")
    if len(messages) > limits.MESSAGES:
        raise APIError(
            400,
            f"the conversation has {len(messages)} messages, but at most {limits.MESSAGES} are "
            "allowed; send the part that matters as input",
            param="input",
        )
    prepared = _prepare(model, body, chat_request(body, messages), client)
    fields = repeated_fields(body, model.name, prepared.request.sampling[0])
    # A queued request keeps no more of its body than it needs.
    stored = _stored_input(item for _, item in own) if fields["store"] else b""
    return Response(model, prepared, bool(body.stream), fields, stored)


def _stored_input(items: Iterable[Item]) -> bytes:
    """Return items as JSON to be stored; APIError 400 if they are too large."""
    encoded = msgspec.json.encode(to_stored(items))
    if len(encoded) > limits.STORED_INPUT_BYTES:
        raise APIError(
            400,
            f"input must have at most {limits.STORED_INPUT_BYTES:,} bytes to be stored but has "
            f"{len(encoded):,}; set store to false",
            param="input",
        )
    return encoded


async def create(call: Call) -> Reply | Events:
    """Generate a response, and store it unless the request declines."""
    response: Response = call.prepared
    previous_id, store = response.fields["previous_response_id"], call.state.responses
    owner = _owner(call.state, call.client)
    if response.fields["store"]:
        previous: Turn | None = None
        if previous_id is not None:
            previous = store.get(owner, previous_id, "previous_response_id")
            store.hold(previous)
            call.resources.callback(store.release, previous)

        def keep(found: dict[str, Any], item_ids: tuple[str, ...]) -> None:
            encoded = msgspec.json.encode(found)
            items = response.input_items
            store.add(Turn(owner, response.id, encoded, items, item_ids, previous))

        response.on_complete = keep
    return await generate(call)


async def retrieve(call: Call) -> Reply:
    if call.query.stream:
        raise APIError(400, "stored responses are not streamed; leave stream out", param="stream")
    return Reply(_stored(call).response)


async def delete(call: Call) -> Reply:
    turn = _stored(call)
    call.state.responses.delete(turn.owner, turn.id)
    return Reply({"id": turn.id, "object": "response", "deleted": True})


async def input_items(call: Call) -> Reply:
    """List the input items of a response, a page at a time."""
    return Reply(await asyncio.to_thread(_page, _stored(call).conversation(), call.query))


def _page(turns: list[Turn], page: Page) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for turn in turns:
        found += msgspec.json.decode(turn.input)
        if turn is not turns[-1]:
            found += msgspec.json.decode(turn.response)["output"]
    if page.order == "desc":
        found.reverse()
    if page.after is not None:
        ids = [item["id"] for item in found]
        if page.after not in ids:
            raise APIError(400, f"after: there is no item {shown(page.after)}", param="after")
        found = found[ids.index(page.after) + 1 :]
    data = found[: page.limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": len(found) > len(data),
    }


def _stored(call: Call) -> Turn:
    return call.state.responses.get(_owner(call.state, call.client), call.path_params["id"])


def _owner(state: ServerState, client: str) -> str:
    """Return the owner of a client's responses: its API key; without keys, all share one."""
    return client if state.settings.api_keys else ""


def _referred(recalled: Recalled) -> Mapping[str, Item]:
    """Return the stored items that the input may reference, by id."""
    return {
        item.id: item
        for response in recalled.responses
        for item in msgspec.json.decode(response, type=Output).output
        if item.id is not None
    }


def _prepare(
    model: ServedModel, body: ResponseRequest, request: ChatRequest, client: str
) -> PreparedChat:
    """Prepare a conversation, without its oldest turns if it is to be truncated."""
    if body.truncation == "auto":
        # A quarter of the context is left for the answer, unless its limit is given.
        n_answer = request.token_limit or -1
        if n_answer < 0:
            n_answer = model.settings.context // 4
        request = _truncated(model, request, model.settings.context - n_answer)
    return prepare(model, request, client, is_clamped=True)


def _truncated(model: ServedModel, request: ChatRequest, n_tokens: int) -> ChatRequest:
    """Return a request without the fewest of its oldest turns that make the prompt fit.

    Instructions at the start stay, and the last turn does. A turn starts with the user's message:
    results of tools without their calls have no meaning.
    """
    messages = request.messages
    is_kept = [message.role in ("system", "developer") for message in messages]
    first = is_kept.index(False) if False in is_kept else 0
    starts = [first, *(i for i, m in enumerate(messages) if m.role == "user" and i > first)]

    def shortened(start: int) -> ChatRequest:
        kept = [*messages[:first], *messages[start:]]
        return msgspec.structs.replace(request, messages=kept)

    def fits(start: int) -> bool:
        try:
            return len(prompt_tokens(model, shortened(start))) <= n_tokens
        except APIError as error:
            if error.code != "context_length_exceeded":
                raise
            return False

    found = min(bisect.bisect_left(starts, True, key=fits), len(starts) - 1)
    return shortened(starts[found])
