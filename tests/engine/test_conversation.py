"""Chat: messages are kept, prefilled once, and do not change a reply."""

from __future__ import annotations

import json

import pytest
from packed_models import nano, packed, trained

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.costs import summarize
from yocobit.data.conversations import CHAT_TEMPLATE
from yocobit.engine import Chat, SamplingConfig
from yocobit.errors import UserError
from yocobit.text.chat_template import ChatTemplate

QUESTION = "What is a License?"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    path = packed(trained(nano("yoco-gret", "ternary")), tmp_path_factory.mktemp("model")).path
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    generation = json.loads((path / "generation_config.json").read_text())
    generation["stop_strings"] = ["<|end|>"]
    (path / "generation_config.json").write_text(json.dumps(generation))
    return Engine.load(path)


def reply_to(chat: Chat, message: str) -> str:
    return "".join(chat.reply(message))


def test_replies_equal_those_to_the_whole_conversation_as_one_prompt(engine):
    chat = Chat(engine, system="Be brief.", max_tokens=12, sampling=SamplingConfig(seed=3))
    reply_to(chat, QUESTION)
    before = chat.messages
    reply = chat.reply("And then?")
    text = "".join(reply)

    prompt = engine.chat_template.render([*before, {"role": "user", "content": "And then?"}])
    alone = engine.stream(prompt, max_tokens=12, stop=["<|end|>"], sampling=SamplingConfig(seed=4))

    assert "".join(alone) == text
    assert alone.tokens == reply.tokens
    assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 2]
    assert chat.messages[-1]["content"] == text.strip()


def test_a_reply_prefills_new_tokens_only(engine, monkeypatch):
    fed = []
    chat = Chat(engine, max_tokens=12)
    feed = type(chat._session).feed

    def watched(session, tokens, out=None):
        fed.append(len(tokens))
        return feed(session, tokens, out)

    monkeypatch.setattr(type(chat._session), "feed", watched)
    reply_to(chat, QUESTION)
    first = fed[0]
    # Generated tokens may differ from the tokens of their text; here they are equal.
    chat._reply.text = engine.tokenizer.decode(chat._reply.tokens)
    consumed = chat._consumed()
    monkeypatch.setattr(engine, "encode", lambda text: [*consumed, 5, 6, 7])
    fed.clear()

    reply_to(chat, "And then?")

    assert first > 3 and fed[0] == 3


def test_the_generated_part_of_a_stopped_reply_is_kept(engine):
    chat = Chat(engine, max_tokens=50)
    reply = chat.reply(QUESTION)
    generated = next(reply) + next(reply)

    assert chat.messages[-1] == {"role": "assistant", "content": generated.strip()}
    assert reply_to(chat, "And then?")


def test_withdrawn_messages_are_dropped_and_get_a_new_reply(engine):
    chat = Chat(engine, max_tokens=20)
    reply_to(chat, QUESTION)
    reply_to(chat, "And then?")
    before = chat.messages

    assert chat.withdraw() == "And then?"
    assert chat.messages == before[:2]
    assert reply_to(chat, "And then?").strip() != before[-1]["content"]


def test_clear_drops_all_but_the_system_message(engine):
    chat = Chat(engine, system="Be brief.", max_tokens=4)
    reply_to(chat, QUESTION)

    chat.clear()

    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.n_tokens == 0
    with pytest.raises(UserError, match="there is no message to withdraw yet"):
        chat.withdraw()


def test_a_message_beyond_the_context_is_rejected_and_changes_nothing(engine):
    chat = Chat(engine, context=120, max_tokens=30)
    reply_to(chat, QUESTION)
    before, n_tokens = chat.messages, chat.n_tokens

    with pytest.raises(UserError, match=r"has \d+ tokens but its context is 120"):
        chat.reply("And then? " * 30)

    assert chat.messages == before and chat.n_tokens == n_tokens


def test_invalid_or_unsafe_template_is_rejected():
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


def test_template_supports_the_features_of_hugging_face_templates():
    source = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}"
    source += "{% endfor %}{{ strftime_now('%Y') | length }}{{ bos_token }}"
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "<é>"}]

    shown = ChatTemplate(source, "it").render(messages, bos_token="<s>")

    assert shown == '{"role": "user", "content": "<é>"}4<s>'


@pytest.mark.parametrize("strings", [[""], [1], {"a": 1}])
def test_invalid_stop_strings_are_rejected(engine, monkeypatch, strings):
    monkeypatch.setitem(engine.generation_config, "stop_strings", strings)

    with pytest.raises(ConfigError, match="stop_strings must be strings but is"):
        _ = engine.stop_strings


def test_a_saved_conversation_continues_as_it_would_have(engine, tmp_path):
    settings = {"max_tokens": 12, "sampling": SamplingConfig(temperature=0)}
    chat, other = Chat(engine, system="Be brief.", **settings), Chat(engine, **settings)
    reply_to(chat, QUESTION)

    chat.save(tmp_path / "chat.json")
    other.load(tmp_path / "chat.json")

    assert other.messages == chat.messages
    assert other.system == "Be brief."
    assert json.loads((tmp_path / "chat.json").read_text()) == {"messages": chat.messages}
    assert reply_to(other, "And then?") == reply_to(chat, "And then?")


def test_the_last_message_of_a_loaded_conversation_can_be_withdrawn(engine, tmp_path):
    chat = Chat(engine, max_tokens=12)
    reply_to(chat, QUESTION)
    chat.save(tmp_path / "chat.json")

    chat.load(tmp_path / "chat.json")

    assert chat.withdraw() == QUESTION
    assert chat.messages == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "chat.json: "),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        ('{"messages": [{"role": "user"}]}', "content"),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}',
            "a system message must be the first one",
        ),
    ],
)
def test_an_invalid_file_changes_nothing(engine, tmp_path, content, message):
    chat = Chat(engine, max_tokens=12)
    reply_to(chat, QUESTION)
    before = chat.messages
    (tmp_path / "chat.json").write_text(content)

    with pytest.raises(ConfigError, match=message):
        chat.load(tmp_path / "chat.json")

    assert chat.messages == before


def test_another_system_message_or_temperature_holds_from_the_next_reply_on(engine):
    chat = Chat(engine, system="Be brief.", max_tokens=12, sampling=SamplingConfig(temperature=0))
    fresh = Chat(engine, system="Be long.", max_tokens=12, sampling=SamplingConfig(temperature=0))

    chat.system = "Be long."

    assert reply_to(chat, QUESTION) == reply_to(fresh, QUESTION)
    chat.sampling = SamplingConfig(seed=5, temperature=1.5)
    assert chat.withdraw() == QUESTION
    assert reply_to(chat, QUESTION) != fresh.messages[-1]["content"]


def test_used_cache_grows_by_the_bytes_of_a_token(engine):
    chat = Chat(engine, max_tokens=12, cache="f32")
    empty = chat.used_cache_bytes
    reply_to(chat, QUESTION)

    per_token = summarize(engine.model).cache_bytes_per_token["f32"]
    assert chat.used_cache_bytes - empty == chat.n_tokens * per_token
    assert chat.used_cache_bytes < chat.cache_bytes
    assert chat.transformer_cache_bytes > chat.n_tokens * per_token
