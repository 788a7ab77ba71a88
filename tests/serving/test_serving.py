"""The server over HTTP: endpoints, their fields, and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from servers import ok

from yocobit.serving.api.endpoints import ENDPOINTS, listing

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SEA = [{"role": "user", "content": "Tell me about the sea."}]
SETTINGS = {"alias": ("gpt-4o", "tiny")}


def error(response) -> dict:
    assert response.status_code >= 400
    return response.json()["error"]


# ---- completions ----


def test_completion_equals_the_engine_output(server, engine):
    body = ok(server.post(TEXT, prompt="In the beginning", max_tokens=20, temperature=0))

    assert body["object"] == "text_completion"
    assert body["model"] == "tiny"
    assert body["choices"][0]["text"] == engine.generate(
        "In the beginning", max_tokens=20, sampling=engine.sampling(temperature=0.0)
    )
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["prompt_tokens"] == len(engine.encode("In the beginning"))
    assert body["usage"]["completion_tokens"] == 20
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 20


def test_completion_samples_as_the_engine_with_that_seed(server, engine):
    sampling = engine.sampling(temperature=1.0, top_k=50, seed=7)
    expected = engine.generate("The king", max_tokens=30, sampling=sampling)

    body = ok(server.post(TEXT, prompt="The king", max_tokens=30, temperature=1, top_k=50, seed=7))

    assert body["choices"][0]["text"] == expected


@pytest.mark.parametrize("prompt", ["The king", ["The king"]])
def test_text_and_its_tokens_are_equivalent_prompts(server, engine, prompt):
    tokens = engine.encode("The king")

    def text(prompt):
        body = ok(server.post(TEXT, prompt=prompt, max_tokens=8, temperature=0))
        return [choice["text"] for choice in body["choices"]]

    assert text(prompt) == text(tokens) == text([tokens])


def test_several_prompts_and_choices_are_numbered_in_order(server, engine):
    body = ok(
        server.post(TEXT, prompt=["The king", "The sea"], n=2, max_tokens=5, temperature=1, seed=3)
    )

    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    for i, choice in enumerate(body["choices"]):
        prompt = ["The king", "The sea"][i // 2]
        sampling = engine.sampling(temperature=1.0, seed=3 + i)
        assert choice["text"] == engine.generate(prompt, max_tokens=5, sampling=sampling)


def test_completion_defaults_to_16_tokens(server):
    assert ok(server.post(TEXT, prompt="The"))["usage"]["completion_tokens"] <= 16


def test_streamed_completion_equals_the_complete_one(server):
    body = {"prompt": "The king", "max_tokens": 25, "seed": 5}
    whole = ok(server.post(TEXT, **body))["choices"][0]

    events = server.events(TEXT, **body, stream_options={"include_usage": True})

    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == whole["text"]
    assert [e["choices"][0]["finish_reason"] for e in events[:-2]] == [None] * (len(events) - 2)
    assert events[-2]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 25
    assert len({e["id"] for e in events}) == 1


def test_stream_has_usage_only_when_requested(server):
    events = server.events(TEXT, prompt="The king", max_tokens=3)

    assert all(e["choices"] for e in events)
    assert all("usage" not in e for e in events)


def test_stop_string_is_not_part_of_the_text(server):
    whole = ok(server.post(TEXT, prompt="The king", max_tokens=30, temperature=0))
    text = whole["choices"][0]["text"]
    stop = text[10:14]

    cut = ok(server.post(TEXT, prompt="The king", max_tokens=30, temperature=0, stop=["@@", stop]))
    events = server.events(TEXT, prompt="The king", max_tokens=30, temperature=0, stop=stop)

    assert cut["choices"][0]["text"] == text[: text.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert "".join(e["choices"][0]["text"] for e in events) == text[: text.index(stop)]


def test_logprobs_are_those_of_the_engine(server, engine):
    body = ok(server.post(TEXT, prompt="The king", max_tokens=4, temperature=0, logprobs=3))

    found = body["choices"][0]["logprobs"]
    tokens = engine.encode("The king")
    session = engine.session(64)
    logits = session.feed(tokens)
    for i, text in enumerate(found["tokens"]):
        scores = logits.astype(np.float64)
        scores -= np.log(np.exp(scores - scores.max()).sum()) + scores.max()
        best = int(scores.argmax())
        assert text == engine.tokenizer.decode([best])
        assert found["token_logprobs"][i] == pytest.approx(scores[best], abs=1e-9)
        assert sorted(found["top_logprobs"][i].values()) == pytest.approx(np.sort(scores)[-3:])
        logits = session.step(best)
    texts = found["tokens"]
    assert found["text_offset"] == [sum(map(len, texts[:i])) for i in range(len(texts))]


def test_echo_returns_the_prompt_and_its_logprobs(server, engine):
    text = "In the beginning God created"
    body = ok(server.post(TEXT, prompt=text, max_tokens=1, echo=True, logprobs=1, temperature=0))

    choice = body["choices"][0]
    tokens = engine.encode(text)
    logits = engine.logits(tokens).astype(np.float64)
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [scores[i, token] for i, token in enumerate(tokens[1:])]
    assert choice["text"].startswith(text)
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-5)
    assert choice["logprobs"]["token_logprobs"][-1] == pytest.approx(scores[-1].max(), abs=1e-5)


def test_prompt_longer_than_a_prefill_chunk_has_logprobs(server, engine):
    tokens = (engine.encode("And God said, Let there be light: and there was light. ") * 40)[:500]

    body = ok(server.post(TEXT, prompt=tokens, max_tokens=0, echo=True, logprobs=0))

    logits = engine.logits(tokens).astype(np.float64)
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [scores[i, token] for i, token in enumerate(tokens[1:])]
    found = body["choices"][0]["logprobs"]["token_logprobs"]
    assert found[1:] == pytest.approx(expected, abs=1e-4)
    assert body["usage"]["completion_tokens"] == 0


def test_logit_bias_of_100_forces_a_token(server, engine):
    (token,) = engine.tokenizer.encode(" the").ids
    body = ok(server.post(TEXT, prompt="The", max_tokens=3, logit_bias={str(token): 100}))

    assert body["choices"][0]["text"] == " the the the"


def test_null_means_absent(server):
    fields = (
        "stop",
        "n",
        "temperature",
        "top_p",
        "logprobs",
        "echo",
        "logit_bias",
        "user",
        "best_of",
    )
    nothing = dict.fromkeys(fields)
    body = {"prompt": "The king", "max_tokens": 5, "seed": 1}

    with_null = ok(server.post(TEXT, **body, **nothing, stream=None, suffix=None))

    assert with_null["choices"] == ok(server.post(TEXT, **body))["choices"]


def test_unknown_fields_are_accepted(server):
    ok(server.post(TEXT, prompt="The", max_tokens=1, user="me", store=True, metadata={"a": "b"}))


# ---- chat ----


def test_chat_equals_the_engine_output(server, engine):
    prompt = engine.encode(engine.chat_template.render(SEA))
    sampling = engine.sampling(seed=11)
    stop = engine.stop_strings
    expected = engine.generate(prompt, max_tokens=40, stop=stop, sampling=sampling)

    body = ok(server.post(CHAT, messages=SEA, max_tokens=40, seed=11))

    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["message"]["content"] == expected
    assert body["usage"]["prompt_tokens"] == len(prompt)
    assert {"queue_time", "prompt_time", "completion_time", "total_time"} <= body["usage"].keys()
    assert body["x_groq"]["id"].startswith("req_")
    assert body["system_fingerprint"].startswith("fp_")


def test_streamed_chat_equals_the_complete_one(server):
    body = {"messages": SEA, "max_completion_tokens": 40, "seed": 11}
    whole = ok(server.post(CHAT, **body))["choices"][0]

    events = server.events(CHAT, **body, stream_options={"include_usage": True})

    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [e["choices"][0]["delta"].get("content", "") for e in events[:-1]]
    assert "".join(deltas) == whole["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert events[-2]["x_groq"]["usage"] == events[-1]["usage"]


def test_chat_choices_are_sampled_with_consecutive_seeds(server):
    both = ok(server.post(CHAT, messages=SEA, max_tokens=10, n=2, seed=5))["choices"]
    second = ok(server.post(CHAT, messages=SEA, max_tokens=10, seed=6))["choices"]

    assert both[0]["message"] != both[1]["message"]
    assert both[1]["message"] == second[0]["message"]


def test_chat_logprobs_have_tokens_and_bytes(server):
    body = ok(server.post(CHAT, messages=SEA, max_tokens=6, logprobs=True, top_logprobs=2, seed=1))

    entries = body["choices"][0]["logprobs"]["content"]
    assert "".join(e["token"] for e in entries) == body["choices"][0]["message"]["content"]
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 2
        assert entry["logprob"] <= entry["top_logprobs"][0]["logprob"] <= 0


def test_content_may_have_several_parts(server):
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "about the sea."}]
    in_parts = [{"role": "user", "content": parts}]

    def content(messages):
        body = ok(server.post(CHAT, messages=messages, max_tokens=10, seed=1))
        return body["choices"][0]["message"]["content"]

    assert content(in_parts) == content(SEA)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_tokens", [4, 12, 40])
def test_json_object_always_parses(server, seed, max_tokens):
    body = ok(
        server.post(
            CHAT,
            messages=SEA,
            max_tokens=max_tokens,
            seed=seed,
            temperature=1.5,
            response_format={"type": "json_object"},
        )
    )

    assert isinstance(json.loads(body["choices"][0]["message"]["content"]), dict)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_tokens", [40, 120])
def test_json_schema_is_followed(server, seed, max_tokens):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "size": {"type": "integer", "minimum": 1, "maximum": 99},
            "kinds": {"type": "array", "items": {"enum": ["big", "small"]}, "minItems": 2},
        },
        "required": ["name", "size", "kinds"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    body = ok(
        server.post(
            CHAT,
            messages=SEA,
            max_tokens=max_tokens,
            seed=seed,
            temperature=1.5,
            response_format=form,
        )
    )

    value = json.loads(body["choices"][0]["message"]["content"])
    assert value.keys() == {"name", "size", "kinds"}
    assert isinstance(value["name"], str) and 1 <= value["size"] <= 99
    assert len(value["kinds"]) >= 2 and set(value["kinds"]) <= {"big", "small"}


def test_schema_without_a_short_output_is_rejected(server):
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 50}
    form = {"type": "json_schema", "json_schema": {"name": "many", "schema": schema}}

    response = server.post(CHAT, messages=SEA, max_tokens=20, response_format=form)

    assert response.status_code == 400
    assert "max_tokens is 20" in error(response)["message"]


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_required_tool_is_called(server, choice):
    body = {"messages": SEA, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 60, "seed": 2}
    body["parallel_tool_calls"] = False
    whole = ok(server.post(CHAT, **body))["choices"][0]
    events = server.events(CHAT, **body)

    (call,) = whole["message"]["tool_calls"]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Rome")
    first, *others = [
        delta["tool_calls"][0]
        for event in events
        if "tool_calls" in (delta := event["choices"][0]["delta"])
    ]
    parts = [each["function"]["arguments"] for each in (first, *others)]
    assert first["function"]["name"] == "get_weather" and len(parts) > 1
    assert "".join(parts) == call["function"]["arguments"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_required_call_may_contain_call_markers(server):
    said = {"note": "<tool_call>{}</tool_call>"}
    tool = {"type": "function", "function": {"name": "write", "parameters": {"const": said}}}
    choice = {"type": "function", "function": {"name": "write"}}
    body = {"messages": SEA, "tools": [tool], "tool_choice": choice, "seed": 2}
    whole = ok(server.post(CHAT, **body))["choices"][0]["message"]
    deltas = [event["choices"][0]["delta"] for event in server.events(CHAT, **body)]

    assert json.loads(whole["tool_calls"][0]["function"]["arguments"]) == said
    streamed = [delta["tool_calls"][0]["function"] for delta in deltas if "tool_calls" in delta]
    arguments = "".join(each["arguments"] for each in streamed)
    assert arguments == whole["tool_calls"][0]["function"]["arguments"]


def test_optional_tools_change_only_the_template(server):
    body = {"messages": SEA, "max_tokens": 20, "seed": 2}

    for choice in ("auto", "none", None):
        found = ok(server.post(CHAT, **body, tools=[WEATHER], tool_choice=choice))["choices"]
        assert found == ok(server.post(CHAT, **body))["choices"]


# ---- other endpoints ----


def test_paths_under_openai_v1_are_equivalent(server):
    body = {"prompt": "The king", "max_tokens": 5, "seed": 1}

    found = ok(server.post("/openai" + TEXT, **body))["choices"]

    assert found == ok(server.post(TEXT, **body))["choices"]


def test_models_are_listed_with_their_sizes(server):
    body = ok(server.client.get("/v1/models"))

    assert [model["id"] for model in body["data"]] == ["tiny", "gpt-4o"]
    numbers = body["data"][0]["yocobit"]
    assert numbers["cache_bytes_per_token"] == 256 + 4 * 4  # int8 values, and four scales
    assert numbers["transformer_cache_bytes_per_token"] == 6 * (256 + 4 * 4)
    assert ok(server.client.get("/v1/models/gpt-4o"))["id"] == "gpt-4o"
    assert server.client.get("/v1/models/none").status_code == 404


def test_negative_seed_is_reported_as_sent(server):
    first = ok(server.post(TEXT, prompt="The king", max_tokens=3, temperature=1, seed=-2))

    again = server.post(
        TEXT, prompt="The king", max_tokens=3, temperature=1, seed=first["x_groq"]["seed"]
    )

    assert first["x_groq"]["seed"] == -2
    assert ok(again)["choices"] == first["choices"]


def test_seed_of_minus_one_is_random_as_in_other_servers(server):
    body = {"prompt": "The king", "max_tokens": 1, "seed": -1}

    seeds = {ok(server.post(TEXT, **body))["x_groq"]["seed"] for _ in range(3)}

    assert len(seeds) == 3
    assert -1 not in seeds


def test_each_name_of_the_model_is_listed_once(server):
    names = [each["id"] for each in ok(server.client.get("/v1/models"))["data"]]

    assert names == ["tiny", "gpt-4o"]


def test_alias_serves_the_model(server):
    assert ok(server.post(TEXT, model="gpt-4o", prompt="The", max_tokens=1))["model"] == "gpt-4o"


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokenize_and_detokenize_are_inverse(server, engine, prefix):
    text = "The king of Ægypt 👑"
    tokens = ok(server.post(prefix + "/tokenize", prompt=text))["tokens"]
    plain = ok(server.post(prefix + "/tokenize", prompt=text, add_special_tokens=False))["tokens"]

    assert tokens == engine.encode(text)
    assert ok(server.post(prefix + "/detokenize", tokens=plain))["prompt"] == text


def test_tokenize_looks_up_the_name_of_a_special_token(server, engine):
    (end,) = engine.end_tokens
    name = engine.tokenizer.id_to_token(end)

    body = ok(server.post("/tokenize", prompt=name, add_special_tokens=False))
    longer = ok(server.post("/tokenize", prompt=f"a {name}", add_special_tokens=False))

    assert body["tokens"] == [end]
    assert end not in longer["tokens"]


def test_tokenize_accepts_conversations(server, engine):
    body = ok(server.post("/tokenize", messages=SEA))

    assert body["tokens"] == engine.encode(engine.chat_template.render(SEA))
    assert body["count"] == len(body["tokens"])


def test_tokenize_returns_the_strings_of_tokens(server, engine):
    body = ok(server.post("/tokenize", prompt="a king", return_token_strs=True))

    assert body["token_strs"] == [engine.tokenizer.id_to_token(token) for token in body["tokens"]]


def test_health_and_metrics(server):
    ok(server.post(TEXT, prompt="The", max_tokens=3))
    server.wait_until_idle()

    assert ok(server.client.get("/health")) == {"status": "ok"}
    text = server.client.get("/metrics").text
    for name in (
        "num_requests_running 0.0",
        "num_requests_waiting 0.0",
        "num_requests_preparing 0.0",
        "kv_cache_usage_perc 0.0",
        "prompt_tokens_total ",
        "generation_tokens_total ",
        "time_to_first_token_seconds_bucket",
        'request_success_total{finished_reason="length"}',
    ):
        assert f"yocobit:{name}" in text


# ---- invalid requests ----


@pytest.mark.parametrize(
    ("path", "change", "status", "param", "words"),
    [
        (TEXT, {"model": "gpt-5"}, 404, "model", "'gpt-5' does not exist"),
        (TEXT, {"prompt": []}, 400, "prompt", "at least one token"),
        (TEXT, {"prompt": [[]]}, 400, "prompt", "at least one token"),
        (TEXT, {"prompt": [4096]}, 400, "prompt", "token 4096 must be"),
        (TEXT, {"prompt": [-1]}, 400, "prompt", "token -1 must be"),
        (TEXT, {"prompt": ["a", 3]}, 400, "prompt", "not a mixture"),
        (TEXT, {"prompt": 3}, 400, "prompt", "Expected"),
        (TEXT, {"max_tokens": -2}, 400, "max_tokens", "Expected `int` >= -1"),
        (TEXT, {"max_tokens": 9000}, 400, "prompt", "maximum context length is 8192"),
        (TEXT, {"max_tokens": 0}, 400, "max_tokens", "only with echo"),
        (TEXT, {"best_of": 3}, 400, "best_of", "best_of is not supported"),
        (TEXT, {"suffix": "x"}, 400, "suffix", "suffix is not supported"),
        (TEXT, {"temperature": "hot"}, 400, "temperature", "Expected `float"),
        (TEXT, {"temperature": -0.1}, 400, "temperature", ">= 0"),
        (TEXT, {"top_p": -0.1}, 400, "top_p", ">= 0"),
        (TEXT, {"n": 17}, 400, "n", "<= 16"),
        (TEXT, {"stop": [""]}, 400, "stop", "length >= 1"),
        (TEXT, {"stop": ["a"] * 17}, 400, "stop", "length <= 16"),
        (TEXT, {"logit_bias": {"x": 1}}, 400, "logit_bias", "'x' must be a token"),
        (TEXT, {"logit_bias": {"5000": 1}}, 400, "logit_bias", "'5000' must be a token"),
        (TEXT, {"logit_bias": {"5": 101}}, 400, "logit_bias", "<= 100"),
        (CHAT, {"messages": []}, 400, "messages", "length >= 1"),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages", "'king'"),
        (CHAT, {"top_logprobs": 2}, 400, "top_logprobs", "requires logprobs"),
        (CHAT, {"tool_choice": "required"}, 400, "tool_choice", "not in tools"),
        (CHAT, {"tool_choice": NAMED, "tools": []}, 400, "tool_choice", "'get_weather'"),
        (CHAT, {"response_format": {"type": "json_schema"}}, 400, "response_format", "missing"),
        (CHAT, {"response_format": {"type": "xml"}}, 400, "response_format", "'xml'"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages",
            "'image_url' parts are not supported",
        ),
        ("/tokenize", {"messages": SEA, "prompt": "x"}, 400, "prompt", "either prompt or messages"),
        (
            "/tokenize",
            {"prompt": "x", "chat_template": "x"},
            400,
            "chat_template",
            "that of the model",
        ),
        ("/detokenize", {"tokens": [5000]}, 400, "tokens", "5000 must be"),
    ],
)
def test_invalid_field_is_named(server, path, change, status, param, words):
    good = {TEXT: {"prompt": "The"}, CHAT: {"messages": SEA}}.get(path, {})

    response = server.post(path, **{**good, **change})

    assert response.status_code == status, response.text
    assert words in error(response)["message"]
    assert (error(response)["param"] or "").split("[")[0].split(".")[0] == param
    assert error(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100_000]
)
def test_invalid_json_body_is_rejected(server, body):
    headers = {"content-type": "application/json"}

    response = server.client.post(TEXT, content=body, headers=headers)

    assert response.status_code == 400
    assert error(response)["type"] == "invalid_request_error"


def test_other_content_types_are_rejected(server):
    response = server.client.post(TEXT, content=b'{"prompt": "x"}')

    assert response.status_code == 415


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("identity", 200)])
def test_compressed_bodies_are_rejected(server, encoding, status):
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    headers = {"content-type": "application/json", "content-encoding": encoding}

    response = server.client.post(TEXT, content=body, headers=headers)

    assert response.status_code == status
    assert status == 200 or "uncompressed" in error(response)["message"]


def test_body_may_start_with_a_byte_order_mark(server):
    body = b"\xef\xbb\xbf" + json.dumps({"prompt": "x", "max_tokens": 1}).encode()

    assert ok(server.client.post(TEXT, content=body, headers={"content-type": "application/json"}))


def test_openapi_and_the_listing_have_every_endpoint(server):
    endpoints = [(endpoint.method, endpoint.paths[0]) for endpoint in ENDPOINTS]

    described = ok(server.client.get("/openapi.json"))["paths"]

    found = [
        (method.upper(), path)
        for path, methods in described.items()
        for method in methods
        if method != "parameters"
    ]
    assert found == endpoints
    assert [tuple(line.split()[:2]) for line in listing()] == endpoints


def test_former_names_warn_and_still_resolve():
    import yocobit.serving
    from yocobit.errors import UserError
    from yocobit.serving.app import create_app

    assert create_app is yocobit.serving.create_app
    with pytest.warns(DeprecationWarning, match=r"is now yocobit\.errors\.UserError"):
        assert yocobit.serving.ServeError is UserError


def test_unknown_paths_and_methods_are_rejected(server):
    assert error(server.client.get("/v1/nothing"))["code"] == "not_found"
    for method, path, allowed in (
        ("GET", TEXT, "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/v1/responses/x", "DELETE, GET, HEAD"),
    ):
        response = server.client.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == set(allowed.split(", "))
    assert server.client.get("/page/../app.py").status_code == 404
    assert server.client.get("/page/%2e%2e%2fapp.py").status_code == 404
