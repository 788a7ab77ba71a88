"""Chat: what was said is remembered, fed once, and never changes an answer."""

from __future__ import annotations

import json

import pytest
from packed_models import nano, packed, trained

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.data.conversations import CHAT_TEMPLATE
from yocobit.engine import Chat, SamplingConfig
from yocobit.engine.chat_template import ChatTemplate
from yocobit.errors import UserError

QUESTION = "What is a License?"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    path = packed(trained(nano("yoco-gret", "ternary")), tmp_path_factory.mktemp("model")).path
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    generation = json.loads((path / "generation_config.json").read_text())
    generation["stop_strings"] = ["<|end|>"]
    (path / "generation_config.json").write_text(json.dumps(generation))
    return Engine.load(path)


def told(chat: Chat, message: str) -> str:
    return "".join(chat.reply(message))


def test_answers_are_those_of_the_whole_conversation_as_one_prompt(engine):
    chat = Chat(engine, system="Be brief.", max_tokens=12, sampling=SamplingConfig(seed=3))
    told(chat, QUESTION)
    said = chat.messages
    answer = chat.reply("And then?")
    text = "".join(answer)

    prompt = engine.chat_template.render([*said, {"role": "user", "content": "And then?"}])
    alone = engine.stream(prompt, max_tokens=12, stop=["<|end|>"], sampling=SamplingConfig(seed=4))

    assert "".join(alone) == text
    assert alone.tokens == answer.tokens
    assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 2]
    assert chat.messages[-1]["content"] == text.strip()


def test_only_what_is_new_is_fed(engine, monkeypatch):
    fed = []
    chat = Chat(engine, max_tokens=12)
    feed = type(chat._session).feed

    def watched(session, tokens, out=None):
        fed.append(len(tokens))
        return feed(session, tokens, out)

    monkeypatch.setattr(type(chat._session), "feed", watched)
    told(chat, QUESTION)
    first = fed[0]
    # What the model says need not have the tokens that its text has; here it has.
    chat._reply.text = engine.tokenizer.decode(chat._reply.tokens)
    taken = chat._consumed()
    monkeypatch.setattr(engine, "encode", lambda text: [*taken, 5, 6, 7])
    fed.clear()

    told(chat, "And then?")

    assert first > 3 and fed[0] == 3


def test_an_answer_that_was_stopped_is_kept_as_far_as_it_came(engine):
    chat = Chat(engine, max_tokens=50)
    reply = chat.reply(QUESTION)
    said = next(reply) + next(reply)

    assert chat.messages[-1] == {"role": "assistant", "content": said.strip()}
    assert told(chat, "And then?")


def test_withdrawn_messages_are_forgotten_and_answered_anew(engine):
    chat = Chat(engine, max_tokens=20)
    told(chat, QUESTION)
    told(chat, "And then?")
    before = chat.messages

    assert chat.withdraw() == "And then?"
    assert chat.messages == before[:2]
    assert told(chat, "And then?").strip() != before[-1]["content"]


def test_clear_forgets_all_but_the_system(engine):
    chat = Chat(engine, system="Be brief.", max_tokens=4)
    told(chat, QUESTION)

    chat.clear()

    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.n_tokens == 0
    with pytest.raises(UserError, match="there is no message to withdraw yet"):
        chat.withdraw()


def test_a_conversation_that_is_full_says_so_and_stays_as_it_is(engine):
    chat = Chat(engine, context=120, max_tokens=30)
    told(chat, QUESTION)
    before, n_tokens = chat.messages, chat.n_tokens

    with pytest.raises(UserError, match=r"has \d+ tokens but its context is 120"):
        chat.reply("And then? " * 30)

    assert chat.messages == before and chat.n_tokens == n_tokens


def test_template_that_is_none_or_reaches_out_is_refused():
    with pytest.raises(ConfigError, match="it: is not a Jinja template"):
        ChatTemplate("{% for %}", "it")
    for source in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no such role') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ range(1000000000) | length }}",
    ):
        with pytest.raises(ConfigError, match="it: rejects these messages"):
            ChatTemplate(source, "it").render([{"role": "user", "content": "x"}])


def test_template_knows_what_those_of_hugging_face_use():
    source = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}"
    source += "{% endfor %}{{ strftime_now('%Y') | length }}{{ bos_token }}"
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "<é>"}]

    shown = ChatTemplate(source, "it").render(messages, bos_token="<s>")

    assert shown == '{"role": "user", "content": "<é>"}4<s>'


@pytest.mark.parametrize("strings", [[""], [1], {"a": 1}])
def test_stop_strings_that_are_none_are_refused(engine, monkeypatch, strings):
    monkeypatch.setitem(engine.generation_config, "stop_strings", strings)

    with pytest.raises(ConfigError, match="stop_strings must be strings but is"):
        _ = engine.stop_strings
