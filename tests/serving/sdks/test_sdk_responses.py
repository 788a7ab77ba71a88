"""The Responses API by OpenAI's client: text, streams, parsed JSON, tools, stored responses."""

from __future__ import annotations

import json

import openai
import pytest
from sdk_clients import MODEL, Clock, Day

SEA = "Tell me about the sea."
# The packaged model rarely ends a text by itself.
SHORT = {"max_output_tokens": 200, "extra_body": {"stop": ["e"], "seed": 1}}
TOOL = {
    "type": "function",
    "name": "clock",
    "parameters": Clock.model_json_schema(),
    "strict": True,
}


def respond(client: openai.OpenAI, **options):
    return client.responses.create(**{"model": MODEL, "input": SEA, **SHORT, **options})


def test_response_has_text_and_usage(openai_client):
    response = respond(openai_client, instructions="Be short.")

    assert response.status == "completed"
    assert response.output_text
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response._request_id


def test_stream_helper_assembles_the_response(openai_client):
    with openai_client.responses.stream(model=MODEL, input=SEA, **SHORT) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()

    assert "".join(deltas) == final.output_text == respond(openai_client).output_text


def test_parse_returns_the_pydantic_model(openai_client):
    response = openai_client.responses.parse(model=MODEL, input=SEA, text_format=Day)

    assert isinstance(response.output_parsed, Day)


def test_tool_is_called_and_its_result_continues_the_response(openai_client):
    one_call = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    first = respond(openai_client, **one_call)
    [call] = first.output
    Clock.model_validate(json.loads(call.arguments))
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "10:42"}

    chained = respond(openai_client, input=[result], previous_response_id=first.id)
    # The items are sent back as the client returned them, as documented.
    items = [{"role": "user", "content": SEA}, *first.output, result]
    whole = respond(openai_client, input=items, store=False)

    assert chained.output_text == whole.output_text
    assert chained.usage.input_tokens == whole.usage.input_tokens


def test_streamed_call_is_assembled(openai_client):
    options = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "clock"}, **SHORT}

    with openai_client.responses.stream(model=MODEL, input=SEA, **options) as stream:
        events = list(stream)
        [call] = stream.get_final_response().output

    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    Clock.model_validate_json(call.arguments)


def test_stored_response_is_retrieved_listed_and_deleted(openai_client):
    response = respond(openai_client)

    assert openai_client.responses.retrieve(response.id).output_text == response.output_text
    [item] = openai_client.responses.input_items.list(response.id)
    assert item.content[0].text == SEA
    openai_client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(response.id)


def test_hosted_tool_is_refused_by_name(openai_client):
    with pytest.raises(openai.BadRequestError, match="web_search") as caught:
        respond(openai_client, tools=[{"type": "web_search"}])

    assert caught.value.param == "tools"
