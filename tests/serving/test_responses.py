"""The Responses API: items in and out, streams, stored conversations and their owners, errors."""

from __future__ import annotations

import json

import pytest
import servers

from yocobit import Engine
from yocobit.serving import ServerSettings, limits
from yocobit.serving.api import responses
from yocobit.serving.api.protocol import decode
from yocobit.serving.api.response_request import ResponseRequest

RESPONSES = "/v1/responses"
SEA = "Tell me about the sea."
SETTINGS = {"context": 256}
KEYS = ("the-first-key", "the-second-key")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":"x"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "7"}
REFERENCE = {"type": "item_reference", "id": "msg"}


@pytest.fixture(scope="module")
def guarded():
    with servers.running(ServerSettings(threads=1, api_keys=KEYS)) as running:
        yield running


def respond(server, **body) -> dict:
    response = server.post(RESPONSES, **{"input": SEA, "max_output_tokens": 6, "seed": 1, **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(server, **body) -> list[dict]:
    body = {"input": SEA, "max_output_tokens": 6, "seed": 1, **body, "stream": True}
    with server.client.stream("POST", RESPONSES, json=body) as response:
        assert response.status_code == 200, response.read()
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text(response: dict) -> str:
    parts = [part for item in response["output"] for part in item.get("content", ())]
    return "".join(part["text"] for part in parts)


def error(server, **body) -> dict:
    response = server.post(RESPONSES, **{"input": SEA, **body})
    assert response.status_code in (400, 404), response.text
    return {**response.json()["error"], "status": response.status_code}


def without_ids(value):
    """Return JSON without ids and times, which differ between equal responses."""
    if isinstance(value, dict):
        names = ("id", "call_id", "created_at", "completed_at")
        return {k: without_ids(each) for k, each in value.items() if k not in names}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


def chat(server, messages: list[dict], **body) -> dict:
    return server.post("/v1/chat/completions", messages=messages, **body).json()


# ---- answers ----


def test_response_has_the_text_of_the_chat_completion(server):
    response = respond(server, instructions="Be short.", input=[{"role": "user", "content": SEA}])
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": SEA}]
    completion = chat(server, messages, max_tokens=6, seed=1)

    assert text(response) == completion["choices"][0]["message"]["content"]
    usage, expected = response["usage"], completion["usage"]
    assert usage["input_tokens"] == expected["prompt_tokens"]
    assert usage["output_tokens"] == expected["completion_tokens"] == 6
    assert usage["total_tokens"] == expected["total_tokens"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 40},
        {"include": ["message.output_text.logprobs"]},
    ],
    ids=["text", "call", "logprobs"],
)
def test_stream_ends_with_the_whole_response(server, options):
    respond(server, **options)  # so that both find the same cached prefix
    server.wait_until_idle()

    *_, last = events(server, **options)
    whole = respond(server, **options)

    assert last["type"] == f"response.{whole['status']}"
    assert without_ids(last["response"]) == without_ids(whole)


def test_stream_of_text_has_its_events_in_order(server):
    found = events(server)

    kinds = [event["type"].removeprefix("response.") for event in found]
    n_deltas = kinds.count("output_text.delta")
    assert n_deltas > 1
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * n_deltas,
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    joined = "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta")
    by_kind = {event["type"].removeprefix("response."): event for event in found}
    assert by_kind["output_text.done"]["text"] == joined == text(found[-1]["response"])
    assert by_kind["content_part.done"]["part"]["text"] == joined
    assert by_kind["output_item.done"]["item"] == found[-1]["response"]["output"][0]
    assert by_kind["output_item.added"]["item"]["content"] == []
    assert {e["item_id"] for e in found if "item_id" in e} == {
        by_kind["output_item.added"]["item"]["id"]
    }
    for kind in ("created", "in_progress"):
        snapshot = by_kind[kind]["response"]
        assert (snapshot["status"], snapshot["output"], snapshot["usage"]) == (
            *("in_progress", []),
            None,
        )


def test_stream_of_a_call_has_its_events_in_order(server):
    found = events(server, tools=[TOOL], tool_choice="required", max_output_tokens=40)

    kinds = [event["type"].removeprefix("response.") for event in found]
    n_deltas = kinds.count("function_call_arguments.delta")
    assert n_deltas >= 1
    assert kinds == [
        *("created", "in_progress", "output_item.added"),
        *["function_call_arguments.delta"] * n_deltas,
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    arguments = "".join(e["delta"] for e in found if e["type"].endswith("arguments.delta"))
    assert found[-3]["arguments"] == arguments
    assert found[-2]["item"] == found[-1]["response"]["output"][0]
    assert json.loads(arguments)["a"] in ("x", "y")
    assert found[-2]["item"]["call_id"] == found[2]["item"]["call_id"]


def test_text_and_calls_are_separate_items(server, monkeypatch):
    from yocobit.serving.api.answer import Answer, CallArguments, CallStart, Content

    extra = [
        *(Content("a"), CallStart(0, "c0", "f"), CallArguments(0, "{"), CallArguments(0, "}")),
        *(CallStart(1, "c1", "g"), CallArguments(1, "{}"), Content("b")),
    ]
    add = Answer.add

    def answer(self, event):
        found = add(self, event)
        return [*extra, found[-1]] if self.done else []

    monkeypatch.setattr(Answer, "add", answer)
    response = respond(server)
    *streamed, last = events(server)

    first, f, g, second = response["output"]
    assert (first["content"][0]["text"], second["content"][0]["text"]) == ("a", "b")
    assert [(c["call_id"], c["name"], c["arguments"]) for c in (f, g)] == [
        ("c0", "f", "{}"),
        ("c1", "g", "{}"),
    ]
    done = [e["item"] for e in streamed if e["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]
    assert without_ids(done) == without_ids(response["output"])
    assert [e["output_index"] for e in streamed if e["type"].endswith("item.added")] == [0, 1, 2, 3]


def test_answer_without_text_is_an_empty_message(server):
    end = str(min(server.model.engine.end_tokens))

    response = respond(server, logit_bias={end: 100}, temperature=0)

    (item,) = response["output"]
    assert (item["content"][0]["text"], item["status"]) == ("", "completed")
    assert response["status"] == "completed"
    assert response["completed_at"] >= response["created_at"]


def test_answer_at_the_token_limit_is_incomplete(server):
    response = respond(server, max_output_tokens=2)

    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_text_format_is_followed(server, kind):
    given = {"type": kind, "name": "x", "schema": SCHEMA, "strict": True}
    given = given if kind == "json_schema" else {"type": kind}

    response = respond(server, text={"format": given}, max_output_tokens=40)

    found = json.loads(text(response))
    assert isinstance(found, dict)
    assert kind == "json_object" or found["a"] in ("x", "y")
    assert response["text"]["format"] == given


def test_logprobs_are_included_on_request(server):
    plain = respond(server)
    with_logprobs = respond(server, include=["message.output_text.logprobs"], top_logprobs=2)

    (part,) = plain["output"][0]["content"]
    assert part["logprobs"] == []
    (part,) = with_logprobs["output"][0]["content"]
    assert "".join(each["token"] for each in part["logprobs"]) == part["text"]
    assert all(len(each["top_logprobs"]) == 2 for each in part["logprobs"])


def test_request_is_repeated_in_the_response(server):
    tools = [TOOL, {"type": "function", "name": "g"}]
    response = respond(
        server,
        instructions="Be short.",
        metadata={"a": "b"},
        tools=tools,
        tool_choice="none",
        parallel_tool_calls=False,
        temperature=0.5,
        top_p=0.25,
        user="u",
    )

    assert response["instructions"] == "Be short."
    assert response["metadata"] == {"a": "b"}
    assert [tool["name"] for tool in response["tools"]] == ["f", "g"]
    assert response["tools"][0]["parameters"] == SCHEMA
    assert (response["tool_choice"], response["parallel_tool_calls"]) == ("none", False)
    assert (response["temperature"], response["top_p"]) == (0.5, 0.25)
    assert (response["user"], response["max_output_tokens"]) == ("u", 6)


# ---- input ----


def test_items_become_the_messages_of_a_chat(server):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":"x"}'}}
    messages = [
        {"role": "user", "content": SEA},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "7"},
        {"role": "user", "content": "And?"},
    ]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": SEA}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Wait.", "annotations": []}],
        },
        CALL,
        {**OUTPUT, "output": [{"type": "input_text", "text": "7"}]},
        {"type": "message", "role": "user", "content": "And?"},
    ]

    response = respond(server, input=items)
    completion = chat(server, messages, max_tokens=6, seed=1)

    assert response["usage"]["input_tokens"] == completion["usage"]["prompt_tokens"]
    assert text(response) == completion["choices"][0]["message"]["content"]


def test_parallel_calls_are_one_message(server):
    calls = [{**CALL, "call_id": name} for name in "cd"]
    outputs = [{**OUTPUT, "call_id": name} for name in "cd"]
    function = {"name": "f", "arguments": '{"a":"x"}'}
    messages = [
        {"role": "user", "content": SEA},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": n, "type": "function", "function": function} for n in "cd"],
        },
        *({"role": "tool", "tool_call_id": n, "content": "7"} for n in "cd"),
    ]

    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    user = {"role": "user", "content": SEA}
    response = respond(server, input=[user, calls[0], reasoning, calls[1], *outputs])

    expected = chat(server, messages, max_tokens=6, seed=1)
    assert response["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]


SET = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "uniqueItems": True}
SET_FORMAT = {"type": "json_schema", "name": "set", "schema": SET}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": None}, "input", "missing"),
        ({"input": []}, "input", "missing"),
        ({"input": [{"role": "user"}]}, "input[0]", "role and content"),
        ({"input": [CALL, {"content": "x"}]}, "input[1]", "role and content"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0]", "'web_search_call'"),
        ({"input": [{**CALL, "name": None}]}, "input[0]", "a name and arguments"),
        ({"input": [{**OUTPUT, "output": None}]}, "input[0]", "an output"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            *("input[0]", "'input_image' parts"),
        ),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "Invalid enum"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search' runs on OpenAI's servers"),
        ({"tools": [TOOL, {"type": "mcp", "name": "f"}]}, "tools", r"tools[1]: 'mcp'"),
        ({"tools": [{"type": "function"}]}, "tools", "name is missing"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "'file_search'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "'g'"),
        # A name of the client is quoted unchanged, even one that is a field of chat completions.
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "max_tokens"}},
            *("tool_choice", "the function 'max_tokens'"),
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "missing"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", 'only "medium"'),
        ({"include": ["everything"]}, "include", "'everything' is unknown"),
        ({"background": True}, "background", "background"),
        ({"conversation": "c"}, "conversation", "use previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "use instructions and input"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "truncation"),
        ({"response_format": {"type": "json_object"}}, "response_format", "use text.format"),
        ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
        ({"guided_choice": ["a"]}, "guided_choice", "use text.format"),
        ({"grammar": 'root ::= "a"'}, "grammar", "use text.format"),
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"logprobs": True}, "logprobs", "use include"),
        (
            {"text": {"format": SET_FORMAT}, "max_output_tokens": 1},
            *("max_output_tokens", "max_output_tokens is 1"),
        ),
        (
            {"text": {"format": {**SET_FORMAT, "strict": True}}},
            *("text.format", "text.format: the keyword at /text/format/schema/uniqueItems"),
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "0"),
        ({"n": 2}, "n", "one output"),
        ({"metadata": {"a": "b" * 513}}, "metadata", "512"),
        ({"input": "word " * 300}, "input", "maximum context length"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
    ],
)
def test_invalid_request_names_the_field(server, body, param, message):
    found = error(server, **body)

    assert found["status"] == 400
    assert found["param"].startswith(param)
    assert message in found["message"]


def test_answer_without_a_limit_may_fill_the_context(server, monkeypatch):
    """Whatever the model's max_new_tokens is: clients treat an incomplete answer as an error."""
    monkeypatch.setattr(Engine, "max_new_tokens", 5)
    body = decode(json.dumps({"input": SEA}).encode(), ResponseRequest)

    (request,) = responses.build(server.model, body, "").requests

    assert request.n_tokens == server.model.settings.context
    assert respond(server, max_output_tokens=None)["max_output_tokens"] is None


def test_references_of_a_large_body_are_found_in_a_worker(server, monkeypatch):
    """Its decoding would stall the event loop, for half a second with 15 MB of empty objects."""
    found_here = []
    find = responses.find_references

    def watched(body):
        found_here.append(len(body))
        return find(body)

    monkeypatch.setattr(responses, "find_references", watched)
    first = respond(server)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}

    for n_padding, n_found in [(0, 1), (limits.REFERENCING_BYTES, 0)]:
        found_here.clear()
        padding = {"unknown_field": "x" * n_padding}
        continued = respond(server, previous_response_id=first["id"], **padding)
        assert continued["previous_response_id"] == first["id"]
        assert continued["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        assert len(found_here) == n_found
        referenced = respond(server, input=[reference, {"role": "user", "content": "?"}], **padding)
        assert referenced["status"] in ("completed", "incomplete")
        assert len(found_here) == 2 * n_found


@pytest.mark.parametrize("n_padding", [0, limits.REFERENCING_BYTES])
def test_unknown_references_of_any_body_are_not_found(server, n_padding):
    padding = {"unknown_field": "x" * n_padding}

    for fields in ({"previous_response_id": "resp_x"}, {"input": [{**REFERENCE, "id": "msg_x"}]}):
        assert error(server, **fields, **padding)["status"] == 404
    invalid = {"previous_response_id": 5}
    assert error(server, **invalid, **padding)["param"] == "previous_response_id"


def test_allowed_tools_limit_the_offered_ones(server):
    tools = [TOOL, {**TOOL, "name": "g"}]
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "g"}],
    }

    response = respond(server, tools=tools, tool_choice=allowed, max_output_tokens=40)

    assert {item["name"] for item in response["output"]} == {"g"}
    assert response["tool_choice"] == allowed
    assert [tool["name"] for tool in response["tools"]] == ["f", "g"]


def test_truncation_drops_the_oldest_turns(server):
    user = {"role": "user", "content": "word " * 50}
    last = [{"role": "user", "content": SEA}]
    items = [{"role": "system", "content": "Be short."}, user, CALL, OUTPUT, user, user, user, user]
    items += last

    refused = error(server, input=items)
    response = respond(server, input=items, truncation="auto")

    assert refused["code"] == "context_length_exceeded"
    kept = [
        respond(server, input=[items[0], *[user] * n, *last])["usage"]["input_tokens"]
        for n in (2, 3)
    ]
    n_tokens = response["usage"]["input_tokens"]
    assert n_tokens in kept
    assert response["truncation"] == "auto"
    assert n_tokens + 6 <= 256
    more = kept[1] - kept[0]
    assert n_tokens + more + 6 > 256  # no turn was dropped without need


def test_truncation_of_a_short_conversation_changes_nothing(server):
    assert text(respond(server)) == text(respond(server, truncation="auto"))


# ---- stored responses ----


def test_response_continues_the_previous_one(server):
    first = respond(server, instructions="Be short.")
    second = respond(server, input="And the land?", previous_response_id=first["id"])
    third = respond(server, input="Why?", previous_response_id=second["id"])

    items = [
        {"role": "user", "content": SEA},
        *first["output"],
        {"role": "user", "content": "And the land?"},
        *second["output"],
        {"role": "user", "content": "Why?"},
    ]
    whole = respond(server, input=items)  # without the instructions, which are not inherited
    assert third["previous_response_id"] == second["id"]
    assert text(third) == text(whole)
    assert third["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_call_of_the_previous_response_is_answered(server):
    tools = {"tools": [TOOL], "max_output_tokens": 40}
    first = respond(server, **tools, tool_choice="required")
    (call,) = first["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}

    chained = respond(server, input=[result], previous_response_id=first["id"])
    whole = respond(server, input=[{"role": "user", "content": SEA}, call, result])

    assert text(chained) == text(whole)


def test_items_are_referred_to_by_id(server):
    first = respond(server)
    (item,) = first["output"]
    user = {"role": "user", "content": SEA}

    by_id, whole = (
        respond(server, input=[user, found, user])
        for found in ({"type": "item_reference", "id": item["id"]}, item)
    )

    assert text(by_id) == text(whole)
    assert by_id["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert error(server, input=[{"type": "item_reference", "id": "msg_x"}])["status"] == 404


def test_stored_response_is_returned_listed_and_deleted(server):
    first = respond(server)
    second = respond(
        server,
        input=[{"role": "user", "content": "a"}, CALL, OUTPUT],
        previous_response_id=first["id"],
    )
    path = f"{RESPONSES}/{second['id']}"

    assert server.client.get(path).json() == second
    items = server.client.get(f"{path}/input_items", params={"order": "asc"}).json()
    assert [item["type"] for item in items["data"]] == [
        *("message", "message", "message"),
        *("function_call", "function_call_output"),
    ]
    assert items["data"][0]["content"] == [{"type": "input_text", "text": SEA}]
    assert items["data"][1] == first["output"][0]
    assert (items["first_id"], items["last_id"]) == (
        items["data"][0]["id"],
        items["data"][-1]["id"],
    )
    assert items["has_more"] is False

    assert server.client.delete(path).json() == {
        "id": second["id"],
        "object": "response",
        "deleted": True,
    }
    for gone in (
        server.client.get(path),
        server.client.delete(path),
        server.client.get(f"{path}/input_items"),
        server.post(RESPONSES, input="x", previous_response_id=second["id"]),
    ):
        assert gone.status_code == 404
        assert second["id"] in gone.json()["error"]["message"]


def test_input_items_come_in_pages(server):
    response = respond(server, input=[{"role": "user", "content": str(i)} for i in range(5)])
    path = f"{RESPONSES}/{response['id']}/input_items"

    pages, after = [], None
    while True:
        query = {"limit": 2, **({"after": after} if after else {})}
        page = server.client.get(path, params=query).json()
        pages.append([item["content"][0]["text"] for item in page["data"]])
        after = page["last_id"]
        if not page["has_more"]:
            break

    assert pages == [["4", "3"], ["2", "1"], ["0"]]
    for query in (
        {"limit": 0},
        {"limit": 101},
        {"limit": "x"},
        {"order": "up"},
        {"after": "msg_x"},
    ):
        found = server.client.get(path, params=query)
        assert (found.status_code, found.json()["error"]["param"]) == (400, next(iter(query)))


@pytest.mark.parametrize("stream", [False, True])
def test_response_is_not_stored_if_the_request_declines(server, stream):
    response = (
        events(server, store=False)[-1]["response"] if stream else respond(server, store=False)
    )

    assert response["store"] is False
    assert server.client.get(f"{RESPONSES}/{response['id']}").status_code == 404


def test_streamed_response_is_stored(server):
    response = events(server)[-1]["response"]

    assert server.client.get(f"{RESPONSES}/{response['id']}").json() == response


def test_response_belongs_to_its_api_key(guarded):
    first = respond(guarded)
    other = {"authorization": f"Bearer {KEYS[1]}"}
    path = f"{RESPONSES}/{first['id']}"
    body = {"input": "x", "max_output_tokens": 1}

    for method, url, given in (
        ("GET", path, None),
        ("GET", f"{path}/input_items", None),
        ("DELETE", path, None),
        ("POST", RESPONSES, {**body, "previous_response_id": first["id"]}),
        (
            "POST",
            RESPONSES,
            {"input": [{"type": "item_reference", "id": first["output"][0]["id"]}]},
        ),
    ):
        found = guarded.client.request(method, url, json=given, headers=other)
        assert found.status_code == 404, (method, url)
    assert guarded.client.get(path).json() == first


def test_unknown_previous_response_is_an_error_before_any_work(server):
    found = error(server, previous_response_id="resp_unknown")

    assert (found["status"], found["param"]) == (404, "previous_response_id")
    assert found["code"] == "previous_response_not_found"
    assert "'resp_unknown'" in found["message"]


def test_stored_conversation_above_the_size_of_bodies_is_refused(server, monkeypatch):
    first = respond(server)
    monkeypatch.setattr(type(server.state.settings), "max_body_bytes", 500)

    response = server.post(RESPONSES, input="x", previous_response_id=first["id"])

    assert response.status_code == 413
    assert response.json()["error"]["param"] == "previous_response_id"


def test_stored_responses_are_not_streamed(server):
    first = respond(server)

    response = server.client.get(f"{RESPONSES}/{first['id']}", params={"stream": "true"})

    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


def test_time_limit_ends_a_stream_with_a_failed_response():
    with servers.running(ServerSettings(threads=1, timeout_s=0.2)) as server:
        found = events(server, max_output_tokens=5000, logit_bias=servers.NO_END)

    assert found[-1]["type"] == "response.failed"
    assert found[-1]["response"]["error"]["code"] == "server_error"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
