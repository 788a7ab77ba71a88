"""Ollama's API: raw requests with exact lines, and Ollama's client."""

from __future__ import annotations

import datetime
import json

import ollama
import pytest
from servers import ok

from yocobit.serving.api import ollama as protocol
from yocobit.serving.api import protocol as chat_protocol
from yocobit.serving.api.ollama import GenerateRequest, OllamaChatRequest
from yocobit.serving.runtime.request import Finish

SEA = [{"role": "user", "content": "Tell me about the sea."}]
GREEDY = {"temperature": 0, "num_predict": 20}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CONTEXT = 512
SETTINGS = {"context": CONTEXT, "alias": ("tiny", "llama3.2")}
TIMES = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def client(server):
    return ollama.Client(host=server.url)


def refusal(response, status: int = 400) -> str:
    """Return the message of an error in Ollama's shape."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    return response.json()["error"]


def lines_of(server, path: str, **body) -> list[dict]:
    """Return the lines of a stream, which is the default."""
    body = {"model": "tiny", **body}
    with server.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response.iter_lines()]


def chat(server, **body) -> dict:
    return ok(
        server.post("/api/chat", **{"model": "tiny", "messages": SEA, "stream": False, **body})
    )


# ---- chat and generate


def test_a_message_is_the_chats_answer(server, engine):
    body = chat(server, options=GREEDY)

    expected = engine.generate(
        engine.chat_template.render(SEA),
        max_tokens=20,
        sampling=engine.sampling(temperature=0),
        stop=engine.stop_strings,
    )
    assert body["model"] == "tiny"
    assert body["message"] == {"role": "assistant", "content": expected}
    assert body["done"] is True
    assert body["done_reason"] in ("stop", "length")
    assert body["prompt_eval_count"] == len(engine.encode(engine.chat_template.render(SEA)))
    assert body["eval_count"] <= 20
    assert all(isinstance(body[name], int) for name in TIMES)
    assert body["total_duration"] >= body["eval_duration"] > 0
    assert datetime.datetime.fromisoformat(body["created_at"]).tzinfo is not None


def test_lines_are_the_default(server):
    whole = chat(server, options=GREEDY)

    *lines, last = lines_of(server, "/api/chat", messages=SEA, options=GREEDY)

    assert all(line.keys() == {"model", "created_at", "message", "done"} for line in lines)
    assert not any(line["done"] for line in lines)
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last.keys() == whole.keys()
    assert last["eval_count"] == whole["eval_count"]


def test_generate_answers_a_prompt(server):
    system = {"role": "system", "content": "Be brief."}
    expected = chat(server, messages=[system, *SEA], options=GREEDY)["message"]["content"]
    body = {"prompt": SEA[0]["content"], "system": "Be brief.", "options": GREEDY}

    whole = ok(server.post("/api/generate", model="tiny", **body, stream=False))
    *lines, last = lines_of(server, "/api/generate", **body)

    assert whole["response"] == expected
    assert "".join(line["response"] for line in lines) == expected
    assert last["response"] == ""
    assert last["done"]


def test_raw_prompt_is_continued(server, engine):
    body = ok(
        server.post(
            "/api/generate", model="tiny", prompt="The king", raw=True, options=GREEDY, stream=False
        )
    )

    assert body["prompt_eval_count"] == len(engine.encode("The king"))
    assert body["response"] == engine.generate(
        "The king",
        max_tokens=20,
        sampling=engine.sampling(temperature=0),
        stop=engine.stop_strings,
    )


@pytest.mark.parametrize(
    ("path", "empty"),
    [
        ("/api/chat", {"message": {"role": "assistant", "content": ""}}),
        ("/api/generate", {"response": ""}),
    ],
)
@pytest.mark.parametrize(("fields", "reason"), [({}, "load"), ({"keep_alive": 0}, "unload")])
def test_empty_request_loads_the_model(server, path, empty, fields, reason):
    body = ok(server.post(path, model="tiny", **fields))

    assert (body["done"], body["done_reason"]) == (True, reason)
    assert empty.items() <= body.items()


def test_options_are_request_fields():
    body = OllamaChatRequest(
        model="tiny",
        options={
            **{"num_predict": 7.0, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
            **{"seed": 4, "stop": ["a"], "repeat_penalty": 1.5, "presence_penalty": 1},
            **{"num_ctx": 4096, "num_gpu": 99, "mirostat": 0, "typical_p": 1.0},
        },
    )

    request = protocol._to_chat(body, [])

    assert request.max_tokens == 7
    assert (request.temperature, request.top_k, request.top_p, request.min_p) == (0.5, 3, 0.5, 0.1)
    assert (request.seed, request.stop) == (4, ["a"])
    assert (request.repetition_penalty, request.presence_penalty) == (1.5, 1)


def test_seed_gives_the_same_answer(server):
    options = {"seed": 3, "temperature": 1.5, "num_predict": 12}

    first, second = (chat(server, options=options)["message"] for _ in range(2))

    assert first == second


@pytest.mark.parametrize("n", [-1, -2, 0])
def test_num_predict_below_one_is_the_rest_of_the_context(server, n):
    body = GenerateRequest(model="tiny", prompt="a", options={"num_predict": n})

    (request,) = protocol.build_generate(server.model, body, "").requests

    assert request.n_tokens == CONTEXT


def test_num_predict_beyond_the_context_ends_with_it(server):
    body = GenerateRequest(model="tiny", prompt="a", options={"num_predict": 10**6})

    (request,) = protocol.build_generate(server.model, body, "").requests

    assert request.n_tokens == CONTEXT


@pytest.mark.parametrize(
    "form", ["json", {"type": "object", "properties": {"a": {"enum": [1, 2]}}}]
)
def test_output_follows_a_format(server, form):
    body = chat(server, format=form, options={"num_predict": 40})

    assert isinstance(json.loads(body["message"]["content"]), dict)


def test_logprobs_join_to_the_content(server):
    body = chat(server, options=GREEDY, logprobs=True, top_logprobs=2)
    lines = lines_of(server, "/api/chat", messages=SEA, options=GREEDY, logprobs=True)

    assert "".join(entry["token"] for entry in body["logprobs"]) == body["message"]["content"]
    assert {len(entry["top_logprobs"]) for entry in body["logprobs"]} == {2}
    streamed = [entry for line in lines for entry in line.get("logprobs", ())]
    assert [e["logprob"] for e in streamed] == [e["logprob"] for e in body["logprobs"]]


def test_messages_of_calls_are_converted():
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    calls = [call, {"function": {"name": "g"}}]
    body = chat_protocol.decode(
        json.dumps(
            {
                "model": "m",
                "messages": [
                    *SEA,
                    {"role": "assistant", "content": "", "tool_calls": calls, "thinking": "hm"},
                    {"role": "tool", "tool_name": "f", "content": "42"},
                ],
            }
        ).encode(),
        OllamaChatRequest,
    )

    _, assistant, result = (protocol._message(i, each) for i, each in enumerate(body.messages))

    assert [each.function.arguments for each in assistant.tool_calls] == ['{"a":1}', "{}"]
    assert (result.role, result.name, result.content) == ("tool", "f", "42")


def test_calls_have_arguments_as_objects(server):
    body = OllamaChatRequest(
        model="tiny", messages=[protocol.OllamaMessage(role="user", content="a")]
    )
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
    body.tools = [chat_protocol.from_fields(WEATHER, chat_protocol.Tool)]
    generation = protocol.build_chat(server.model, body, "")

    lines = [*generation.chunks_of(0, Finish(0, "stop", text), None)]

    (call,) = lines[-1]["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo"}}


# ---- models


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "llama3.2:latest"])
def test_models_may_have_the_tag_latest(server, name):
    body = chat(server, model=name, options={"num_predict": 1})

    assert body["model"] == name


def test_models_are_listed(server):
    (tiny, _) = ok(server.client.get("/api/tags"))["models"]
    (loaded, _) = ok(server.client.get("/api/ps"))["models"]

    assert tiny["name"] == tiny["model"] == "tiny:latest"
    assert tiny["size"] > 10**6
    assert len(tiny["digest"]) == 64
    assert tiny["details"]["parameter_size"].endswith("M")
    assert loaded["digest"] == tiny["digest"]
    assert loaded["context_length"] == CONTEXT


def test_model_is_shown(server, engine):
    body = ok(server.post("/api/show", model="tiny:latest"))

    assert body["template"] == engine.chat_template.source
    assert body["model_info"]["yocobit.context_length"] == CONTEXT
    assert body["model_info"]["general.parameter_count"] > 10**6
    assert body["capabilities"] == ["completion", "embedding"]
    assert ok(server.post("/api/show", name="tiny")) == body
    assert "'big' does not exist" in refusal(server.post("/api/show", model="big"), 404)


def test_model_to_show_must_be_named(server):
    assert "model is missing" in refusal(server.post("/api/show", verbose=True))


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "", "text/plain"])
@pytest.mark.parametrize(
    ("browser", "status"),
    [({}, 200), ({"origin": "https://evil.example"}, 415), ({"sec-fetch-site": "cross-site"}, 415)],
)
def test_body_may_be_declared_as_any_type_unless_a_browser_sends_it(
    server, content_type, browser, status
):
    """Ollama's documentation uses curl, which declares a form; a page could send one, too."""
    headers = {"content-type": content_type, **browser}
    body = json.dumps({"model": "tiny", "prompt": "a", "options": {"num_predict": 1}})

    response = server.client.post("/api/generate", content=body, headers=headers)

    assert response.status_code == status, response.text
    assert server.client.post("/v1/completions", content=body, headers=headers).status_code == 415


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_probes_are_answered(server, path):
    assert server.client.head(path).status_code == 200


def test_version_is_one_that_clients_compare(server):
    version = ok(server.client.get("/api/version"))["version"]

    assert [int(part) for part in version.split(".")] >= [0, 6, 4]


@pytest.mark.parametrize("name", ["pull", "push", "create", "copy"])
def test_management_is_refused(server, name):
    message = refusal(server.post(f"/api/{name}", model="llama3", stream=False))

    assert "`yocobit pull`" in message


def test_deletion_is_refused(server):
    message = refusal(server.client.request("DELETE", "/api/delete", json={"model": "tiny"}))

    assert "`yocobit pull`" in message


# ---- embeddings


def test_embeddings_are_those_of_v1(server):
    texts = ["the sea", "a sermon"]
    expected = [e["embedding"] for e in ok(server.post("/v1/embeddings", input=texts))["data"]]

    assert ok(server.post("/api/embed", model="tiny", input=texts))["embeddings"] == expected
    assert ok(server.post("/api/embed", model="tiny", input=texts[0]))["embeddings"] == expected[:1]
    body = ok(server.post("/api/embeddings", model="tiny", prompt=texts[1]))
    assert body == {"embedding": expected[1]}


@pytest.mark.parametrize("fields", [{}, {"input": ""}, {"input": []}])
def test_nothing_is_embedded_without_input(server, fields):
    found = ok(server.post("/api/embed", model="tiny", **fields))

    assert found == {"model": "tiny", "embeddings": []}
    assert ok(server.post("/api/embeddings", model="tiny", prompt="")) == {"embedding": []}


def test_long_texts_are_truncated_unless_refused(server):
    text = "the sea " * CONTEXT

    body = ok(server.post("/api/embed", model="tiny", input=text))
    assert body["prompt_eval_count"] == CONTEXT
    message = refusal(server.post("/api/embed", model="tiny", input=text, truncate=False))
    assert "maximum context length" in message


# ---- refused requests


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/chat", {"think": True}, "think: only false is supported"),
        ("/api/chat", {"think": "high"}, "think: "),
        (
            "/api/chat",
            {"messages": [{"role": "user", "content": "a", "images": ["x"]}]},
            "messages[0].images",
        ),
        ("/api/chat", {"options": {"mirostat": 2}}, "options.mirostat: only 0"),
        ("/api/chat", {"options": {"temperature": "hot"}}, "options.temperature: "),
        ("/api/chat", {"options": {"grammar": 'root ::= "a"'}}, "options.grammar: "),
        ("/api/chat", {"options": {"logit_bias": {"5": 1}}}, "options.logit_bias: "),
        (
            "/api/chat",
            {"format": {"type": "object", "required": ["a"]}, "options": {"num_predict": 1}},
            "options.num_predict is 1",
        ),
        ("/api/chat", {"format": {"enum": []}}, "format: the schema"),
        (
            "/api/chat",
            {"options": {"repeat_last_n": 64, "repeat_penalty": 1.1}},
            "options.repeat_last_n: penalties cover the whole context",
        ),
        ("/api/chat", {"messages": [{"role": "king", "content": "a"}]}, "'king'"),
        ("/api/generate", {"prompt": "a", "images": ["x"]}, "images: "),
        ("/api/generate", {"prompt": "a", "suffix": "x"}, "suffix: "),
        ("/api/generate", {"prompt": "a", "template": "x"}, "template: "),
        ("/api/generate", {"prompt": "a", "context": [1]}, "context: "),
        ("/api/embed", {"input": "a", "dimensions": 8}, "dimensions"),
    ],
)
def test_unsupported_requests_are_refused(server, path, body, words):
    assert words in refusal(server.post(path, **{"model": "tiny", "messages": SEA, **body}))


def test_unknown_model_is_not_found(server):
    assert "'big' does not exist" in refusal(
        server.post("/api/chat", model="big", messages=SEA), 404
    )


# ---- Ollama's client


def test_client_chats(client):
    whole = client.chat("tiny", SEA, options=GREEDY)
    parts = [*client.chat("tiny", SEA, options=GREEDY, stream=True)]

    assert whole.message.content
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].done_reason == whole.done_reason


def test_client_generates_and_embeds(client):
    assert client.generate("tiny", "The sea", options=GREEDY).response
    assert len(client.embed("tiny", ["a", "b"]).embeddings) == 2
    assert client.embeddings("tiny", "a").embedding


def test_client_offers_tools(client):
    def get_weather(city: str) -> str:
        """Return the weather of a city."""
        return city

    reply = client.chat("tiny", SEA, tools=[get_weather], options=GREEDY)

    assert reply.message.content is not None


def test_client_lists_models(client):
    assert {model.model for model in client.list().models} == {"tiny:latest", "llama3.2:latest"}
    assert client.ps().models[0].context_length == CONTEXT
    assert "completion" in client.show("tiny").capabilities


def test_client_raises_errors(client):
    with pytest.raises(ollama.ResponseError, match="does not exist") as caught:
        client.chat("big", SEA)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="yocobit pull"):
        client.pull("llama3.2")
