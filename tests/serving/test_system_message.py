"""A system message that was seen once is a prefix hit for other conversations."""

from __future__ import annotations

import pytest

from yocobit.serving.api import chat_request
from yocobit.serving.api.protocol import Message

CHAT = "/v1/chat/completions"
SYSTEM = "You are a preacher of the seventeenth century, and answer in few words. "


def conversation(system: str, user: str) -> list[dict]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def answer(server, messages) -> tuple[str, int]:
    """Return the answer to a conversation, and the tokens of its prompt that were cached."""
    response = server.post(CHAT, messages=messages, max_tokens=12, seed=1, temperature=1.0)
    assert response.status_code == 200, response.text
    body = response.json()
    content = body["choices"][0]["message"]["content"]
    return content, body["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("n_repeats", [1, 20])
def test_second_conversation_resumes_after_the_system_message(server, engine, n_repeats):
    system = f"{n_repeats} times. " + SYSTEM * n_repeats
    first, second = (conversation(system, text) for text in ("Tell me of the sea.", "Who is he?"))

    _, none = answer(server, first)
    found, cached = answer(server, second)

    prompts = [engine.encode_chat(messages) for messages in (first, second)]
    shared = next(i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b)
    assert none == 0
    assert 0 < len(engine.encode(system)) - 2 <= cached <= shared
    sampling = engine.sampling(temperature=1.0, seed=1)
    options = {"max_tokens": 12, "stop": engine.stop_strings, "sampling": sampling}
    assert found == engine.generate(prompts[1], **options)


def test_conversations_without_a_system_message_share_no_checkpoint(server):
    users = ["Speak of war and of the kings of old.", "Nothing is as it was before."]

    cached = [answer(server, [{"role": "user", "content": text}])[1] for text in users]

    assert cached == [0, 0]


def test_shared_tokens_do_not_depend_on_the_user(server):
    """Whatever the text of the user starts with, and however many turns follow."""
    model, found = server.model, []
    for user in ("Tell me of the sea.", "0 is a number.", "1", "  x", "\n"):
        messages = [*conversation(SYSTEM, user), {"role": "assistant", "content": "Yes."}]
        body = chat_request.ChatRequest(messages=[Message(**each) for each in messages])
        prompt = chat_request.render(model, body.messages, [])
        found.append(chat_request.n_shared_tokens(model, body, prompt))

    assert min(found) > 0
    assert max(found) - min(found) <= 1  # a token may span the start of the user's text
