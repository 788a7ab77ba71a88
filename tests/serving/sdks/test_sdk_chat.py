"""Complete chat responses, as both SDKs document them."""

from __future__ import annotations

import math
import time

import pytest
from sdk_clients import KING, MODEL, SEA, chat, joined, text


def test_chat_completion_has_the_documented_fields(client):
    started = int(time.time())

    completion = chat(client, max_completion_tokens=12, seed=1)

    assert completion.id.startswith("chatcmpl-")
    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert started <= completion.created <= time.time()
    assert completion.system_fingerprint
    [choice] = completion.choices
    assert choice.index == 0
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None


def test_chat_usage_counts_tokens(client, engine):
    short = chat(client, max_completion_tokens=7, seed=1).usage
    long = chat(client, messages=[{"role": "user", "content": KING * 9}], max_tokens=3).usage

    assert short.completion_tokens == 7
    assert short.prompt_tokens >= len(engine.encode(SEA[0]["content"])) - 1
    assert short.total_tokens == short.prompt_tokens + short.completion_tokens
    assert long.completion_tokens == 3
    assert long.prompt_tokens > short.prompt_tokens


def test_chat_ends_with_the_end_token(client, engine):
    completion = chat(client, logit_bias={str(max(engine.end_tokens)): 100})

    assert completion.choices[0].finish_reason == "stop"
    assert not text(completion)


def test_chat_is_deterministic_for_a_seed(client):
    first, again, other = (chat(client, max_tokens=30, temperature=1, seed=s) for s in (5, 5, 6))

    assert text(first) == text(again) != text(other)
    assert first.id != again.id
    assert first.system_fingerprint == again.system_fingerprint


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "top_p": 1e-6}])
def test_chat_ignores_the_seed_when_only_one_token_can_be_sampled(client, sampling):
    first, other = (chat(client, max_tokens=20, seed=seed, **sampling) for seed in (1, 2))

    assert text(first) == text(other) == text(chat(client, max_tokens=20, temperature=0))


def test_chat_accepts_an_alias(client):
    completion = chat(client, model="gpt-4o", max_tokens=5, seed=2)

    assert text(completion) == text(chat(client, max_tokens=5, seed=2))


def test_chat_accepts_fields_that_do_not_affect_the_text(client):
    plain = chat(client, max_tokens=8, seed=2)

    completion = chat(
        client,
        max_tokens=8,
        seed=2,
        user="someone",
        metadata={"trace": "7"},
        store=False,
        service_tier="auto",
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=0,
        stop=None,
    )

    assert text(completion) == text(plain)


@pytest.mark.parametrize("are_several", [False, True])
def test_chat_stops_before_the_first_stop_string(client, are_several):
    whole = text(chat(client, max_tokens=30, seed=3))
    first = whole[10:16]
    options = {
        "max_tokens": 30,
        "seed": 3,
        "stop": [whole[20:28], first, "\x00", "@@@"] if are_several else first,
    }

    completion = chat(client, **options)

    assert completion.choices[0].finish_reason == "stop"
    assert text(completion) == whole[: whole.index(first)]
    assert joined(chat(client, stream=True, **options)) == text(completion)


def test_chat_returns_n_choices_and_counts_all_their_tokens(client):
    completion = chat(client, n=3, max_tokens=10, temperature=1.5, seed=4)

    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({text(completion, index) for index in range(3)}) == 3
    assert completion.usage.completion_tokens == 30


def test_chat_logit_bias_of_100_selects_and_of_minus_100_bans(client, engine):
    options = {"max_tokens": 4, "temperature": 0, "logprobs": True}
    first = chat(client, **options).choices[0].logprobs.content[0].token

    selected = chat(client, logit_bias={str(engine.encode(" sea")[-1]): 100}, **options)
    banned = chat(client, logit_bias={str(engine.encode(first)[-1]): -100}, **options)

    assert {t.token for t in selected.choices[0].logprobs.content} == {" sea"}
    assert banned.choices[0].logprobs.content[0].token != first


def test_chat_logprobs_describe_each_token(client):
    completion = chat(client, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3)

    tokens = completion.choices[0].logprobs.content
    assert len(tokens) == completion.usage.completion_tokens == 6
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text(completion)
    for token in tokens:
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert all(logprob <= 0 for logprob in tops)
        # Greedy: the sampled token is the most probable one.
        assert (token.token, token.logprob) == (
            token.top_logprobs[0].token,
            token.top_logprobs[0].logprob,
        )
        # Disjoint outcomes; the slack is the rounding of three float32 logarithms.
        assert sum(math.exp(logprob) for logprob in tops) <= 1 + 1e-5


def test_chat_logprobs_without_top_logprobs_list_no_others(client):
    completion = chat(client, max_tokens=3, logprobs=True)

    assert [token.top_logprobs for token in completion.choices[0].logprobs.content] == [[]] * 3


def test_chat_treats_developer_as_system(client):
    system, developer, none = (
        chat(client, messages=head + SEA, max_tokens=10, seed=1)
        for head in (
            [{"role": "system", "content": "Speak of fish."}],
            [{"role": "developer", "content": "Speak of fish."}],
            [],
        )
    )

    assert text(system) == text(developer)
    assert system.usage.prompt_tokens == developer.usage.prompt_tokens > none.usage.prompt_tokens


def test_chat_joins_text_parts(client):
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "about the sea."}]

    completion = chat(client, messages=[{"role": "user", "content": parts}], max_tokens=10, seed=1)

    assert text(completion) == text(chat(client, max_tokens=10, seed=1))


def test_chat_continues_a_conversation(client):
    answer = chat(client, max_tokens=10, seed=1)
    conversation = [*SEA, answer.choices[0].message, {"role": "user", "content": "And?"}]

    completion = chat(client, messages=conversation, max_tokens=5, seed=1)

    assert completion.usage.prompt_tokens > answer.usage.prompt_tokens


def test_chat_answers_the_same_on_a_prefix_cache_hit(client, sdk):
    messages = [{"role": "user", "content": f"For {sdk.__name__}: " + KING * 10}]

    first, again = (chat(client, messages=messages, max_tokens=20, seed=1) for _ in range(2))

    cached = [usage.prompt_tokens_details.cached_tokens for usage in (first.usage, again.usage)]
    assert 0 <= cached[0] < cached[1] <= again.usage.prompt_tokens
    assert text(first) == text(again)
