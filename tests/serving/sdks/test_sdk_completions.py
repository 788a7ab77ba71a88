"""The legacy completions endpoint, which only OpenAI's SDK has."""

from __future__ import annotations

import openai
import pytest
from sdk_clients import KING, MODEL, complete, connect


@pytest.fixture(scope="module")
def lenient(server):
    """For responses of the API that the SDK's types do not allow: null in lists."""
    with connect(openai, server.url, _strict_response_validation=False) as client:
        yield client


def test_completion_has_the_documented_fields(openai_client, engine):
    completion = complete(openai_client, max_tokens=9, seed=1)

    assert completion.id.startswith("cmpl-")
    assert completion.object == "text_completion"
    assert completion.model == MODEL
    [choice] = completion.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert completion.usage.prompt_tokens == len(engine.encode(KING))
    assert completion.usage.completion_tokens == 9
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 9


def test_completion_has_16_tokens_by_default(openai_client, endless):
    completion = complete(openai_client, logit_bias=endless["logit_bias"])

    assert completion.usage.completion_tokens == 16


def test_completion_of_token_ids_equals_that_of_their_text(openai_client, engine):
    options = {"max_tokens": 12, "seed": 1}

    of_text = complete(openai_client, **options)
    of_tokens = complete(openai_client, prompt=engine.encode(KING), **options)

    assert of_tokens.choices[0].text == of_text.choices[0].text
    assert of_tokens.usage.prompt_tokens == of_text.usage.prompt_tokens


@pytest.mark.parametrize("kind", ["texts", "tokens"])
def test_completion_answers_each_prompt_of_a_list(openai_client, engine, kind):
    prompts = [KING, "In the beginning", "A ship"]
    listed = prompts if kind == "texts" else [engine.encode(prompt) for prompt in prompts]
    options = {"max_tokens": 8, "temperature": 0}

    completion = complete(openai_client, prompt=listed, **options)

    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    alone = [complete(openai_client, prompt=prompt, **options) for prompt in prompts]
    assert [c.text for c in completion.choices] == [one.choices[0].text for one in alone]
    assert completion.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)


def test_completion_returns_n_choices_of_each_prompt(openai_client):
    completion = complete(
        openai_client, prompt=[KING, "A ship"], n=2, echo=True, max_tokens=5, seed=1
    )

    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in completion.choices]
    assert [t.startswith(KING) for t in texts] == [True, True, False, False]
    assert [t.startswith("A ship") for t in texts] == [False, False, True, True]
    assert completion.usage.completion_tokens == 20


def test_completion_logprobs_describe_each_token(openai_client):
    completion = complete(openai_client, max_tokens=6, temperature=0, logprobs=2)

    [choice] = completion.choices
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 6
    starts = [len("".join(logprobs.tokens[:i])) for i in range(6)]
    assert [offset - logprobs.text_offset[0] for offset in logprobs.text_offset] == starts
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert 2 <= len(top) <= 3  # "up to logprobs+1 elements"
        assert top[token] == logprob == max(top.values()) <= 0


@pytest.mark.parametrize("max_tokens", [0, 4])
@pytest.mark.parametrize("kind", ["text", "tokens", "tokens without the first"])
def test_completion_echo_scores_the_prompt(lenient, engine, kind, max_tokens):
    tokens = engine.encode(KING)
    prompt = {"text": KING, "tokens": tokens, "tokens without the first": tokens[1:]}[kind]
    options = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}

    completion = complete(lenient, echo=True, logprobs=1, **options)

    [choice] = completion.choices
    logprobs = choice.logprobs
    if max_tokens == 0:
        assert choice.text == KING
    else:
        assert choice.text == KING + complete(lenient, **options).choices[0].text
    assert len(logprobs.tokens) == completion.usage.total_tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert logprobs.token_logprobs[0] is None  # nothing comes before the first token
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs[1:])


@pytest.mark.parametrize("with_first", [True, False])
def test_completion_text_offset_is_the_position_of_a_token(lenient, engine, with_first):
    prompt = engine.encode(KING)[0 if with_first else 1 :]

    [choice] = complete(lenient, prompt=prompt, max_tokens=3, echo=True, logprobs=1).choices

    # The first token may be a special one, which is not part of the text.
    placed = list(zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))[1:]
    assert [choice.text[at : at + len(token)] for token, at in placed] == [t for t, _ in placed]


def test_completion_logprob_is_of_the_distribution_it_sampled_from(lenient):
    sampled = complete(lenient, max_tokens=5, temperature=0, logprobs=0, echo=True).choices[0]

    scored = complete(lenient, prompt=sampled.text, max_tokens=0, logprobs=0, echo=True).choices[0]

    assert scored.logprobs.tokens == sampled.logprobs.tokens
    assert scored.logprobs.token_logprobs == sampled.logprobs.token_logprobs


def test_completion_streams_the_whole_text(lenient):
    options = {"max_tokens": 9, "seed": 1}

    *chunks, last = complete(
        lenient, stream=True, stream_options={"include_usage": True}, **options
    )

    whole = complete(lenient, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert {chunk.object for chunk in (*chunks, last)} == {"text_completion"}
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert last.choices == []
    assert last.usage.completion_tokens == 9


def test_completion_stream_keeps_prompts_apart(lenient):
    options = {"prompt": [KING, "A ship"], "max_tokens": 6, "temperature": 0}
    texts = ["", ""]

    for chunk in complete(lenient, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert texts == [choice.text for choice in complete(lenient, **options).choices]
