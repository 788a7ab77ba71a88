"""Request fields of vLLM and llama.cpp, and those of OpenAI that are rarely sent."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import servers
from servers import ok

from yocobit.pretrained import TINY
from yocobit.serving import ServerSettings, limits
from yocobit.serving.api import chat, completions, ollama, responses
from yocobit.serving.api.chat_request import ChatRequest
from yocobit.serving.api.completions import CompletionRequest
from yocobit.serving.api.ollama import OllamaChatRequest
from yocobit.serving.api.protocol import decode
from yocobit.serving.api.refused_fields import REFUSED
from yocobit.serving.api.response_request import ResponseRequest
from yocobit.serving.errors import APIError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SEA = [{"role": "user", "content": "Tell me about the sea."}]
END_NOW = {"0": 100}  # logit_bias: the packaged model's end token is by far the most probable
GREEDY = {"temperature": 0, "max_tokens": 12}
CONTEXT = 256
SETTINGS = {"context": CONTEXT}
# The packaged model's format of a turn, and all that a request can set.
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}[{{ call['function']['name'] }}]{% endfor %}"
    "<|end|>{% endfor %}{{ mood }}{{ reasoning_effort }}{{ enable_thinking }}"
    "{% for tool in tools or [] %}{{ tool['function']['name'] }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def templated(tmp_path_factory):
    """A server whose chat template writes what it is given."""
    path = tmp_path_factory.mktemp("model") / "templated"
    shutil.copytree(TINY, path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    with servers.running(ServerSettings(model=path, threads=1)) as running:
        yield running


def refusal(response) -> dict:
    assert response.status_code == 400, response.text
    return response.json()["error"]


def text(body) -> str:
    (choice,) = body["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def tokens_of(server, prompt="The king", **changes) -> list[int]:
    """Return the generated tokens of a completion, as the engine's tokenizer gives them."""
    body = ok(server.post(TEXT, prompt=prompt, **{**GREEDY, "logprobs": 0, **changes}))
    assert len(body["choices"]) == 1
    return body["choices"][0]["logprobs"]["tokens"]


# ---- the end of the text ----


@pytest.mark.parametrize(
    ("path", "start"), [(TEXT, {"prompt": "The king"}), (CHAT, {"messages": SEA})]
)
def test_ignore_eos_generates_max_tokens(server, path, start):
    body = {**start, **GREEDY, "logit_bias": END_NOW}
    ended = ok(server.post(path, **body))

    whole = ok(server.post(path, **body, ignore_eos=True))

    assert ended["usage"]["completion_tokens"] == 0
    assert whole["usage"]["completion_tokens"] == GREEDY["max_tokens"]
    assert whole["choices"][0]["finish_reason"] == "length"


def test_min_tokens_come_before_the_end_token(server):
    body = {"prompt": "The king", **GREEDY, "logit_bias": END_NOW}

    found = ok(server.post(TEXT, **body, min_tokens=5))

    assert found["usage"]["completion_tokens"] == 5
    assert found["choices"][0]["finish_reason"] == "stop"


def test_stop_strings_end_only_the_text_after_min_tokens(server):
    whole = tokens_of(server)
    early, late = whole[1], whole[8]

    found = ok(server.post(TEXT, prompt="The king", **GREEDY, stop=[early, late], min_tokens=4))

    rest = "".join(whole[4:])
    cuts = [rest.index(stop) for stop in (early, late) if stop in rest]
    assert text(found) == "".join(whole[:4]) + rest[: min(cuts)]


def test_min_tokens_above_max_tokens_are_refused(server):
    found = refusal(server.post(TEXT, prompt="The king", max_tokens=4, min_tokens=5))

    assert found["param"] == "min_tokens"
    assert "max_tokens, which is 4" in found["message"]


@pytest.mark.parametrize("is_kept", [False, True])
def test_stop_token_ids_end_the_text(server, engine, is_kept):
    whole = tokens_of(server)
    at = next(i for i, each in enumerate(whole) if i > 3 and each not in whole[:i])
    (stop,) = engine.encoder.encode(whole[at])

    found = ok(
        server.post(
            TEXT,
            prompt="The king",
            **GREEDY,
            stop_token_ids=[stop],
            include_stop_str_in_output=is_kept,
        )
    )

    assert text(found) == "".join(whole[: at + is_kept])
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == at + is_kept


@pytest.mark.parametrize("name", ["ignore_eos", "min_tokens"])
def test_structured_output_ends_when_it_is_complete(server, name):
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}}
    body = {"messages": SEA, "max_tokens": 9, "response_format": form}

    stopped = ok(server.post(CHAT, **body, stop_token_ids=list(range(4, 4096))[:128]))

    assert json.loads(text(stopped)) in ("a", "b")
    assert (
        refusal(server.post(CHAT, **body, **{name: 1 if name == "min_tokens" else True}))["param"]
        == name
    )


def test_stop_token_outside_the_vocabulary_is_refused(server):
    found = refusal(server.post(TEXT, prompt="The king", stop_token_ids=[4096]))

    assert found["param"] == "stop_token_ids"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_kept_stop_string_ends_the_text(server, is_streamed):
    body = {"prompt": "The king", **GREEDY}
    whole = text(ok(server.post(TEXT, **body)))
    stop = whole[9:14]  # starts and ends within tokens
    body |= {"stop": stop, "include_stop_str_in_output": True}

    if is_streamed:
        found = "".join(event["choices"][0]["text"] for event in server.events(TEXT, **body))
    else:
        found = text(ok(server.post(TEXT, **body)))

    assert found == whole[: whole.index(stop) + len(stop)]


def test_the_models_own_stop_strings_are_never_kept(server, engine):
    body = {"messages": SEA, "max_tokens": 60, "seed": 3}

    found = ok(server.post(CHAT, **body, stop=["@@"], include_stop_str_in_output=True))

    assert engine.stop_strings
    assert not any(stop in text(found) for stop in engine.stop_strings)
    assert text(found) == text(ok(server.post(CHAT, **body)))


@pytest.mark.parametrize("name", ["max_tokens", "n_predict"])
@pytest.mark.parametrize(
    ("path", "start"), [(TEXT, {"prompt": "The king"}), (CHAT, {"messages": SEA})]
)
def test_minus_one_is_the_rest_of_the_context(server, path, start, name):
    body = ok(server.post(path, **start, temperature=0, ignore_eos=True, **{name: -1}))

    assert body["usage"]["total_tokens"] == CONTEXT


LOGPROBS = {"logprobs": True, "top_logprobs": 20}


@pytest.mark.parametrize(
    ("build", "kind", "body"),
    [
        (chat.build, ChatRequest, {"messages": SEA, **LOGPROBS}),
        (chat.build, ChatRequest, {"messages": SEA, "max_tokens": -1, **LOGPROBS}),
        (completions.build, CompletionRequest, {"prompt": "a", "max_tokens": -1, "logprobs": 20}),
        (responses.build, ResponseRequest, {"input": "a", "top_logprobs": 20}),
        (
            responses.build,
            ResponseRequest,
            {"input": "a", "top_logprobs": 20, "max_output_tokens": 100},
        ),
        (ollama.build_chat, OllamaChatRequest, {"model": "tiny", "messages": SEA, **LOGPROBS}),
    ],
)
def test_answer_without_a_limit_has_the_logprobs_that_a_response_may_have(
    server, monkeypatch, build, kind, body
):
    monkeypatch.setattr(limits, "RESPONSE_LOGPROBS", 7 * 21)

    (request,) = build(server.model, decode(json.dumps(body).encode(), kind), "").requests

    assert request.max_tokens == 7


def test_limit_with_too_many_logprobs_is_refused(server, monkeypatch):
    monkeypatch.setattr(limits, "RESPONSE_LOGPROBS", 7 * 21)
    body = {"messages": SEA, "max_tokens": 8, **LOGPROBS}

    with pytest.raises(APIError, match="168 log-probabilities, but at most 147 are allowed"):
        chat.build(server.model, decode(json.dumps(body).encode(), ChatRequest), "")


def test_n_predict_is_max_tokens(server):
    few = {"prompt": "The king", "temperature": 0}

    assert ok(server.post(TEXT, **few, n_predict=3))["usage"]["completion_tokens"] == 3
    assert (
        ok(server.post(TEXT, **few, n_predict=3, max_tokens=4))["usage"]["completion_tokens"] == 4
    )


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_an_answer_of_no_tokens_is_refused(server, name):
    found = refusal(server.post(CHAT, messages=SEA, **{name: 0}))

    assert found["param"] == name


# ---- numbers ----


def test_integers_may_be_written_as_floats(server):
    exact = ok(server.post(TEXT, prompt=[5, 6], max_tokens=4, seed=7, top_k=3))

    floats = ok(server.post(TEXT, prompt=[5.0, 6.0], max_tokens=4.0, seed=7.0, top_k=3e0))

    assert floats["choices"] == exact["choices"]
    assert refusal(server.post(TEXT, prompt="a", max_tokens=4.5))["param"] == "max_tokens"


def test_top_p_of_zero_is_greedy(server):
    greedy = text(ok(server.post(TEXT, prompt="The king", **GREEDY)))

    found = ok(server.post(TEXT, prompt="The king", max_tokens=12, temperature=5, top_p=0, seed=1))

    assert text(found) == greedy


def test_repeat_penalty_is_repetition_penalty(server):
    body = {"prompt": "The king and the king", **GREEDY}
    expected = text(ok(server.post(TEXT, **body, repetition_penalty=3.0)))

    assert text(ok(server.post(TEXT, **body, repeat_penalty=3.0))) == expected
    assert text(ok(server.post(TEXT, **body, repeat_penalty=9, repetition_penalty=3.0))) == expected
    assert text(ok(server.post(TEXT, **body))) != expected


def test_logit_bias_may_be_pairs(server, engine):
    token = engine.encode(" sea")[-1]
    first = engine.encode(" king")[-1]
    body = {"prompt": "The", "max_tokens": 3, "temperature": 0}

    biased = ok(server.post(TEXT, **body, logit_bias=[[token, 100]]))
    excluded = ok(server.post(TEXT, **body, logit_bias=[[token, 100], [first, 99], [token, False]]))

    assert text(biased) == " sea sea sea"
    assert text(excluded) == " king king king"
    assert refusal(server.post(TEXT, **body, logit_bias=[[4096, 1]]))["param"] == "logit_bias"


# ---- prompts ----


@pytest.mark.parametrize(("fields", "kept"), [
    ({"truncate_prompt_tokens": 3}, slice(-3, None)),
    ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, slice(3)),
    ({"truncate_prompt_tokens": 100}, slice(None)),
    ({"truncate_prompt_tokens": -1}, slice(-(CONTEXT - 12), None)),
])  # fmt: skip
def test_truncated_prompt_is_a_part_of_its_tokens(server, engine, fields, kept):
    n_tokens = 20 if fields["truncate_prompt_tokens"] > 0 else 2 * CONTEXT
    prompt = [int(t) for t in np.resize(engine.encode("In the beginning was the word"), n_tokens)]

    found = ok(server.post(TEXT, prompt=prompt, **GREEDY, **fields))

    assert found["usage"]["prompt_tokens"] == len(prompt[kept])
    assert text(found) == text(ok(server.post(TEXT, prompt=prompt[kept], **GREEDY)))


def test_truncation_leaves_at_least_one_token(server):
    found = refusal(server.post(TEXT, prompt="The king", truncate_prompt_tokens=0))

    assert found["param"] == "truncate_prompt_tokens"


@pytest.mark.parametrize(
    "fields",
    [
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"chat_template_kwargs": {"mood": "calm"}},
        {"tools": [{"type": "function", "function": {"name": "look"}}]},
    ],
)
def test_tokenize_renders_a_conversation_as_chat_completions_do(templated, fields):
    tokens = ok(templated.post("/tokenize", messages=SEA, **fields))["tokens"]
    chat = ok(templated.post(CHAT, messages=SEA, max_tokens=1, return_token_ids=True, **fields))

    assert tokens == chat["prompt_token_ids"]
    assert tokens != ok(templated.post("/tokenize", messages=SEA))["tokens"]


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_variables_may_have_any_name(templated, path):
    variables = dict.fromkeys(("self", "cls", "template", "", "a b", "loop", "__class__"), 1)

    assert ok(templated.post(path, messages=SEA, chat_template_kwargs=variables))


def test_tokenize_adds_no_special_tokens_to_a_conversation(templated):
    refused = refusal(templated.post("/tokenize", messages=SEA, add_special_tokens=True))

    assert refused["param"] == "add_special_tokens"
    assert ok(templated.post("/tokenize", messages=SEA, add_special_tokens=False))["count"] > 0


def test_continued_message_has_no_end(server, engine):
    messages = [*SEA, {"role": "assistant", "content": "The sea is "}]
    prompt = engine.chat_template.render(messages, continue_final_message=True)

    found = ok(server.post(CHAT, messages=messages, **GREEDY, continue_final_message=True))

    assert prompt.endswith("<|assistant|>\nThe sea is")  # the template strips messages
    assert found["usage"]["prompt_tokens"] == len(engine.encode(prompt))
    expected = engine.generate(
        prompt, max_tokens=12, sampling=engine.sampling(temperature=0), stop=engine.stop_strings
    )
    assert text(found) == expected


def test_continued_message_keeps_its_blanks_unless_the_template_strips_them(templated):
    template = templated.model.engine.chat_template
    messages = [*SEA, {"role": "assistant", "content": "The sea  "}]

    assert template.render(messages, continue_final_message=True).endswith("<|assistant|>The sea  ")


def test_message_to_continue_must_be_written(templated, engine):
    silent = type(engine.chat_template)("{{ messages[0]['content'] }}", "silent")

    with pytest.raises(Exception, match="cannot be continued"):
        silent.render([*SEA, {"role": "assistant", "content": "a"}], continue_final_message=True)


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, "<|assistant|>"),
    ({"add_generation_prompt": False}, "<|end|>"),
    ({"chat_template_kwargs": {"mood": "calm"}}, "<|end|>calm<|assistant|>"),
    ({"reasoning_effort": "low"}, "<|end|>lowTrue<|assistant|>"),
    ({"reasoning_effort": "none"}, "<|end|>noneFalse<|assistant|>"),
])  # fmt: skip
def test_variables_reach_the_chat_template(templated, fields, expected):
    assert prompt_of(templated, messages=SEA, **fields).endswith(expected)


@pytest.mark.parametrize(("fields", "param"), [
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
])  # fmt: skip
def test_variables_that_are_fields_are_refused(server, fields, param):
    assert refusal(server.post(CHAT, messages=SEA, **fields))["param"] == param


def prompt_of(server, **body) -> str:
    """Return the text of a conversation's prompt: echoed by completions, from its tokens."""
    from yocobit.serving.api import chat, protocol

    model = server.model
    prepared = chat.build(model, protocol.decode(json.dumps(body).encode(), ChatRequest), "")
    (request,) = prepared.requests
    return model.engine.tokenizer.decode(list(request.prompt), skip_special_tokens=False)


# ---- messages and tools ----


def test_refusals_are_the_text_of_an_answer(templated):
    parts = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    field = {"role": "assistant", "content": None, "refusal": "No."}

    for message in (parts, field):
        assert "<|assistant|>No.<|end|>" in prompt_of(templated, messages=[*SEA, message])


def test_function_messages_are_calls_and_results(templated):
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "42"}

    prompt = prompt_of(templated, messages=[*SEA, call, result])

    assert "<|assistant|>[f]<|end|><|tool|>42<|end|>" in prompt


def tool(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def allowed(mode: str, *names: str) -> dict:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_allowed_tools_are_the_offered_ones(templated):
    tools = [tool("f"), tool("g"), tool("h")]

    prompt = prompt_of(templated, messages=SEA, tools=tools, tool_choice=allowed("auto", "h", "f"))

    assert prompt.endswith("<|end|>f h <|assistant|>")


def test_allowed_tools_may_be_required(server):
    body = {"messages": SEA, "tools": [tool("f"), tool("g")], "max_tokens": 60, "seed": 1}

    found = ok(server.post(CHAT, **body, tool_choice=allowed("required", "g")))

    calls = found["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"g"}


def test_allowed_tools_must_be_offered(server):
    body = {"messages": SEA, "tools": [tool("f")], "tool_choice": allowed("auto", "f", "g")}

    assert "the function 'g'" in refusal(server.post(CHAT, **body))["message"]


# ---- refused fields ----


@pytest.mark.parametrize("name", sorted({*ChatRequest.refused, *CompletionRequest.refused}))
def test_field_that_would_change_the_answer_is_refused_by_name(server, name):
    for kind, path, start in (
        (ChatRequest, CHAT, {"messages": SEA}),
        (CompletionRequest, TEXT, {"prompt": "a"}),
    ):
        if name in kind.refused:
            found = refusal(server.post(path, **start, max_tokens=1, **{name: "changed"}))
            assert found["param"] == name
            assert found["message"].startswith((f"{name}: only ", f"{name} is not supported"))


def test_defaults_of_refused_fields_are_accepted(server):
    defaults = {name: each.accepted[-1] for name, each in REFUSED.items() if each.accepted}
    absent = {name: None for name, each in REFUSED.items() if not each.accepted}

    body = ok(server.post(CHAT, messages=SEA, **GREEDY, **defaults, **absent))

    assert text(body) == text(ok(server.post(CHAT, messages=SEA, **GREEDY)))


@pytest.mark.parametrize("n", [-1, 0, 64, 10 * CONTEXT])
def test_window_of_penalties_has_no_effect_without_them(server, n):
    body = ok(server.post(CHAT, messages=SEA, **GREEDY, repeat_last_n=n))

    assert text(body) == text(ok(server.post(CHAT, messages=SEA, **GREEDY)))


def test_empty_window_disables_penalties(server):
    body = ok(server.post(CHAT, messages=SEA, **GREEDY, repeat_last_n=0, repeat_penalty=1.5))

    assert text(body) == text(ok(server.post(CHAT, messages=SEA, **GREEDY)))
    penalised = ok(server.post(CHAT, messages=SEA, **GREEDY, repeat_last_n=-1, repeat_penalty=1.5))
    assert text(body) != text(penalised)


def test_short_window_is_refused_next_to_penalties(server):
    found = refusal(server.post(CHAT, messages=SEA, repeat_last_n=64, presence_penalty=1))

    assert found["param"] == "repeat_last_n"


# ---- answers ----


def test_models_have_their_context_under_vllms_name(server):
    (model,) = ok(server.client.get("/v1/models"))["data"]

    assert model["max_model_len"] == CONTEXT


def test_service_tier_is_returned(server):
    body = {"messages": SEA, **GREEDY}

    assert ok(server.post(CHAT, **body))["service_tier"] == "auto"
    events = server.events(CHAT, **body, service_tier="flex")
    assert {event["service_tier"] for event in events} == {"flex"}


def test_requests_of_different_salts_share_no_entries(server):
    body = {"prompt": "And God said, Let there be light. " * 8, "max_tokens": 1}

    def n_cached(**salt) -> int:
        usage = ok(server.post(TEXT, **body, **salt))["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    found = [n_cached(cache_salt=salt) for salt in ("a", "b", "a", None)]

    # Others of this file may share the first few tokens with the request without a salt.
    assert [n > 8 for n in found] == [False, False, True, False]
    assert n_cached() > 8


def test_messages_have_annotations(server):
    (choice,) = ok(server.post(CHAT, messages=SEA, **GREEDY))["choices"]

    assert choice["message"]["annotations"] == []


def test_token_ids_are_those_of_prompt_and_answer(server, engine):
    body = {"prompt": ["The king", "A sea"], **GREEDY, "return_token_ids": True, "n": 2}

    whole = ok(server.post(TEXT, **body))
    events = server.events(TEXT, **body)

    assert sum(len(c["token_ids"]) for c in whole["choices"]) == whole["usage"]["completion_tokens"]
    for i, choice in enumerate(whole["choices"]):
        chunks = [c for event in events for c in event["choices"] if c["index"] == i]
        prompt = engine.encode(body["prompt"][i // 2])
        assert choice["prompt_token_ids"] == prompt
        assert [c["prompt_token_ids"] for c in chunks if "prompt_token_ids" in c] == [prompt]
        assert engine.tokenizer.decode(choice["token_ids"]) == choice["text"]
        assert [t for c in chunks for t in c["token_ids"]] == choice["token_ids"]


def test_chat_token_ids_are_those_of_prompt_and_answer(server, engine):
    body = {"messages": SEA, "max_tokens": 40, "seed": 1, "return_token_ids": True}

    whole = ok(server.post(CHAT, **body))
    first, *rest = server.events(CHAT, **body)

    (choice,) = whole["choices"]
    assert len(choice["token_ids"]) == whole["usage"]["completion_tokens"]
    assert engine.tokenizer.decode(choice["token_ids"]).startswith(text(whole))
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert len(first["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]
    chunks = [c for event in rest for c in event["choices"]]
    assert [t for c in chunks for t in c["token_ids"]] == choice["token_ids"]
    assert "prompt_token_ids" not in rest[0]
    body["return_token_ids"] = False
    assert "token_ids" not in ok(server.post(CHAT, **body))["choices"][0]


def logprob_texts(choices) -> str:
    entries = [c["logprobs"]["content"] for c in choices if c["logprobs"]]
    return "".join(entry["token"] for each in entries for entry in each)


@pytest.mark.parametrize("stop", [None, "e", ["th", "s a", "\n"]])
def test_texts_of_logprobs_join_to_the_content(server, stop):
    for seed in range(4):
        body = {"messages": SEA, "max_tokens": 30, "seed": seed, "logprobs": True, "stop": stop}

        whole = ok(server.post(CHAT, **body))
        events = server.events(CHAT, **body)

        assert logprob_texts(whole["choices"]) == text(whole)
        assert logprob_texts([c for event in events for c in event["choices"]]) == text(whole)


def test_texts_of_logprobs_join_across_bytes(server, engine):
    model = server.model
    partial = [t for t in range(4096) if max(model.token_text(t)[1], default=0) >= 0x80][:1024]
    assert len(partial) >= 128
    bias = {str(token): 100 for token in partial}
    for seed in range(8):
        body = {"messages": SEA, "max_tokens": 9, "seed": seed, "temperature": 3, "top_p": 1}

        whole = ok(server.post(CHAT, **body, logprobs=True, logit_bias=bias))

        assert any(ord(character) >= 0x80 for character in text(whole))
        assert logprob_texts(whole["choices"]) == text(whole)
        entries = whole["choices"][0]["logprobs"]["content"]
        raw = bytes(byte for entry in entries for byte in entry["bytes"])
        assert raw.decode(errors="replace") == text(whole)


def test_exceeded_time_limit_is_not_retried():
    with servers.running(ServerSettings(threads=1, timeout_s=0.05)) as hurried:
        body = {"prompt": "The king", "max_tokens": 5000, "ignore_eos": True}
        response = hurried.post(TEXT, **body)

    assert response.status_code == 504
    assert response.headers["x-should-retry"] == "false"
