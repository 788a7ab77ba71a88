"""Tools: complete and streamed calls, their arguments, and their results."""

from __future__ import annotations

import json

import openai
import pytest
from sdk_clients import MODEL, SEA, Clock, Day, Forecast, chat, details, named, text, tool

ARGUMENTS = {"weather": Day, "clock": Clock, "forecast": Forecast}
WEATHER, CLOCK, FORECAST = (tool(name, arguments) for name, arguments in ARGUMENTS.items())


def test_tool_choice_required_calls_a_tool(client):
    completion = chat(client, tools=[WEATHER, CLOCK], tool_choice="required", seed=1)

    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert not choice.message.content
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert call.id
        assert call.function.name in ("weather", "clock")
        assert isinstance(json.loads(call.function.arguments), dict)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_named_tool_is_called_with_arguments_of_its_schema(client, name, seed):
    completion = chat(client, tools=[WEATHER, CLOCK, FORECAST], tool_choice=named(name), seed=seed)

    [call] = completion.choices[0].message.tool_calls
    assert call.function.name == name
    ARGUMENTS[name].model_validate_json(call.function.arguments, strict=True)
    # For a named tool, OpenAI's API reports "stop" and Groq's "tool_calls".
    assert completion.choices[0].finish_reason in ("stop", "tool_calls")


def test_tool_calls_have_unique_ids(client):
    completion = chat(client, tools=[CLOCK], tool_choice="required", n=3, seed=1)

    ids = [call.id for choice in completion.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids) >= 3


def test_parallel_tool_calls_false_calls_one_tool(client):
    completion = chat(
        client, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False, seed=1
    )

    assert len(completion.choices[0].message.tool_calls) == 1


def test_tool_choice_none_calls_no_tool(client):
    completion = chat(client, tools=[CLOCK], tool_choice="none", max_tokens=10, seed=1)

    assert completion.choices[0].message.tool_calls is None
    assert text(completion)


def test_tool_choice_auto_calls_or_answers(client):
    [choice] = chat(client, tools=[CLOCK], tool_choice="auto", seed=1).choices

    assert (choice.finish_reason == "tool_calls") == bool(choice.message.tool_calls)
    assert choice.message.tool_calls or choice.message.content


def test_tool_without_parameters_is_called_without_arguments(client):
    completion = chat(client, tools=[named("now")], tool_choice="required", max_tokens=60, seed=1)

    # "Omitting parameters defines a function with an empty parameter list."
    for call in completion.choices[0].message.tool_calls:
        assert json.loads(call.function.arguments) == {}


def test_deprecated_function_call_is_rejected(client, sdk):
    with pytest.raises(sdk.BadRequestError) as caught:
        chat(client, functions=[CLOCK["function"]], function_call={"name": "clock"})

    assert details(caught.value)["param"] == "functions"


def test_streamed_tool_calls_equal_the_complete_ones(client):
    options = {"tools": [WEATHER, CLOCK], "tool_choice": "required", "seed": 1}
    [choice] = chat(client, **options).choices

    chunks = list(chat(client, stream=True, **options))

    calls: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or ():
            call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
            call["id"] += delta.id or ""
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""
    assert sorted(calls) == list(range(len(choice.message.tool_calls)))
    for index, call in enumerate(choice.message.tool_calls):
        assert calls[index]["id"]
        assert calls[index]["name"] == call.function.name
        assert calls[index]["arguments"] == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_stream_helper_assembles_tool_calls(openai_client):
    with openai_client.chat.completions.stream(
        model=MODEL,
        messages=SEA,
        tools=[openai.pydantic_function_tool(Day, name="weather")],
        tool_choice="required",
        seed=1,
    ) as stream:
        events = list(stream)
        calls = stream.get_final_completion().choices[0].message.tool_calls

    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert len(done) == len(calls) >= 1
    for event, call in zip(done, calls, strict=True):
        assert (event.name, call.type) == ("weather", "function")
        pieces = [delta.arguments_delta for delta in deltas if delta.index == event.index]
        assert "".join(pieces) == event.arguments == call.function.arguments
        assert isinstance(call.function.parsed_arguments, Day)


@pytest.mark.parametrize("model", [Day, Forecast], ids=["flat", "nested"])
def test_parse_returns_the_arguments_as_pydantic_model(openai_client, model):
    completion = openai_client.chat.completions.parse(
        model=MODEL,
        messages=SEA,
        tools=[openai.pydantic_function_tool(model, name="weather")],
        tool_choice=named("weather"),
        seed=1,
    )

    [call] = completion.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, model)


def test_tool_results_extend_the_prompt(client):
    call = chat(client, tools=[CLOCK], tool_choice="required", seed=1)
    message = call.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": tool_call.id, "content": "It is 10:42."}
        for tool_call in message.tool_calls
    ]

    # The message is sent back as the SDK returned it, as documented.
    completion = chat(client, messages=[*SEA, message, *results], tools=[CLOCK], max_tokens=9)

    assert completion.usage.prompt_tokens > call.usage.prompt_tokens
    assert completion.choices[0].message.role == "assistant"


def test_tool_results_in_parts_are_joined(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    conversation = [*SEA, {"role": "assistant", "content": None, "tool_calls": [call]}]
    parts = [{"type": "text", "text": "10:"}, {"type": "text", "text": "42"}]

    whole, split = (
        chat(
            client,
            messages=[
                *conversation,
                {"role": "tool", "tool_call_id": "call_1", "content": content},
            ],
            max_tokens=9,
            seed=1,
        )
        for content in ("10:42", parts)
    )

    assert text(whole) == text(split)
    assert whole.usage.prompt_tokens == split.usage.prompt_tokens
