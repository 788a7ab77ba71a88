"""/v1/embeddings: values, inputs, encodings, usage, and invalid requests."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
import servers

from yocobit import Engine

PATH = "/v1/embeddings"
TEXTS = ["In the beginning", "The king of the island " * 60, "light"]
SETTINGS = {"context": 512, "max_sequences": 8, "max_waiting": 8}


def vectors(response) -> np.ndarray:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    return np.array([each["embedding"] for each in data], dtype=np.float32)


def expected(engine: Engine, text: str, pooling: str) -> np.ndarray:
    tokens = engine.encode(text)
    hidden = engine.session(len(tokens)).hidden_states(tokens).astype(np.float64)
    pooled = hidden[-1] if pooling == "last" else np.add.accumulate(hidden)[-1]
    return (pooled / np.sqrt((pooled * pooled).sum())).astype(np.float32)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_pooled_normalised_hidden_states(server, engine, pooling):
    found = vectors(server.post(PATH, input=TEXTS, pooling=pooling))

    assert np.array_equal(found, [expected(engine, text, pooling) for text in TEXTS])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_mean_is_the_default_pooling(server):
    assert np.array_equal(
        vectors(server.post(PATH, input=TEXTS)),
        vectors(server.post(PATH, input=TEXTS, pooling="mean")),
    )


def test_embedding_has_the_same_bits_alone_and_among_running_requests(server):
    alone = vectors(server.post(PATH, input=TEXTS[1]))
    body = {"prompt": "The king", "max_tokens": 500, "logit_bias": servers.NO_END}
    running = [server.send("/v1/completions", **body, stream=True) for _ in range(4)]
    servers.wait_for(lambda: any(g.n_generated for g in server.runtime.scheduler.running))

    among_others = vectors(server.post(PATH, input=TEXTS[1]))

    for connection in running:
        connection.close()
    server.wait_until_idle()
    assert np.array_equal(among_others, alone)


def test_embedding_of_text_equals_that_of_its_tokens(server, engine):
    tokens = engine.encode(TEXTS[0])

    for given in (TEXTS[0], [TEXTS[0]], tokens, [tokens]):
        assert np.array_equal(
            vectors(server.post(PATH, input=given)), [expected(engine, TEXTS[0], "mean")]
        )


def test_base64_encoding_is_little_endian_float32(server):
    numbers = vectors(server.post(PATH, input=TEXTS))
    encoded = server.post(PATH, input=TEXTS, encoding_format="base64").json()["data"]

    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in encoded]

    assert np.array_equal(decoded, numbers)


def test_usage_counts_the_tokens_of_all_inputs(server, engine):
    body = server.post(PATH, input=TEXTS, model="tiny").json()

    n_tokens = sum(len(engine.encode(text)) for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    assert (body["object"], body["model"]) == ("list", "tiny")


def test_openai_client_gets_vectors_in_either_encoding(server, engine):
    # The client decodes its default, base64, after validation, which therefore cannot be strict.
    for options in ({}, {"encoding_format": "float"}):
        client = openai.OpenAI(
            base_url=f"{server.url}/v1",
            api_key="none",
            _strict_response_validation=bool(options),
        )
        answer = client.embeddings.create(model="tiny", input=TEXTS, **options)
        found = np.array([each.embedding for each in answer.data], dtype=np.float32)
        assert np.array_equal(found, [expected(engine, text, "mean") for text in TEXTS])
        assert answer.usage.total_tokens == answer.usage.prompt_tokens


def test_fields_without_an_effect_are_accepted(server, engine):
    fields = {
        "dimensions": engine.config.d_model,
        "normalize": True,
        "truncate_prompt_tokens": None,
    }

    assert np.array_equal(
        vectors(server.post(PATH, input=TEXTS, **fields)), vectors(server.post(PATH, input=TEXTS))
    )


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"dimensions": 64}, "dimensions", "vectors have the model's width, 256"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "is not supported"),
        ({"normalize": False}, "normalize", "only true is supported"),
        ({"input": []}, "input", "at least one token"),
        ({"input": ["a", []]}, "input", "at least one token"),
        ({"input": ["a", 5]}, "input", "not a mixture"),
        ({"input": [5000]}, "input", "5000 must be at least 0 and below"),
        ({"input": "x y " * 600}, "input", "maximum context length is 512 tokens"),
        ({"input": ["a"] * 17}, "input", "accepts at most 16: 8 running and 8 waiting"),
        ({"input": None}, "input", "got `null`"),
        ({"pooling": "max"}, "pooling", "'max'"),
        ({"encoding_format": "int8"}, "encoding_format", "'int8'"),
        ({"model": "other"}, "model", "does not exist"),
    ],
)
def test_invalid_request_names_the_parameter(server, change, param, words):
    response = server.post(PATH, **{"input": "light", **change})

    assert response.status_code == (404 if param == "model" else 400)
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_embeddings_reserve_and_release_cache_memory(server):
    vectors(server.post(PATH, input=TEXTS))
    server.wait_until_idle()

    assert server.runtime.scheduler.memory.reserved_bytes == 0
    assert 'request_success_total{finished_reason="length"}' in server.metrics()
