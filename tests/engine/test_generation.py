"""Generation: streamed pieces are the text; they split no character and no stop string."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from packed_models import nano, packed, text, tokenizer, trained

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.data.tokenizer import END
from yocobit.engine import SamplingConfig
from yocobit.engine.generation import Generation

GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    return packed(trained(nano("yoco-gret", "ternary")), tmp_path_factory.mktemp("model")).path


@pytest.fixture
def engine(model_directory) -> Engine:
    return Engine.load(model_directory)


class Script:
    """A session whose logits generate a fixed text, whatever it is fed."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)
        self.position = 0

    def feed(self, tokens, out=None):
        self.position += len(tokens)
        if out is None:
            out = np.empty(tokenizer().get_vocab_size(), dtype=np.float32)
        out[:] = 0
        out[next(self.tokens)] = 1
        return out

    def step(self, token, out=None):
        return self.feed([token], out)


def scripted(scripted_text: str, stop=(), end="", max_tokens=1000) -> Generation:
    tokens = tokenizer().encode(scripted_text).ids + ([tokenizer().token_to_id(end)] if end else [])
    return Generation(
        session=Script(tokens),
        tokenizer=tokenizer(),
        prompt=[0],
        max_tokens=max_tokens,
        end_tokens=frozenset([tokenizer().token_to_id(END)]),
        stop=tuple(stop),
        sampling=GREEDY,
    )


def test_joined_pieces_are_the_text_and_never_split_a_character():
    scripted_text = "x = 'Größe, 漢字, 🙂🙃'  # naïve\n\tend"

    generation = scripted(scripted_text, end=END)
    pieces = list(generation)

    assert "".join(pieces) == scripted_text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) > 10
    assert generation.finish_reason == "stop"
    assert generation.tokens == tokenizer().encode(scripted_text).ids


def test_an_incomplete_character_at_the_end_becomes_a_replacement_character():
    n_tokens = len(tokenizer().encode("ab").ids) + 1

    pieces = list(scripted("ab🙂", max_tokens=n_tokens))

    assert "".join(pieces) == "ab\ufffd"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["return"], "def f():\n    "),
        (["zzz", "f()"], "def "),
        (["d"], ""),
        (["ef", "def"], ""),  # the one that starts first
        (["returns"], "def f():\n    return 1"),
        (["1"], "def f():\n    return "),
    ],
)
def test_text_ends_before_the_first_stop_string(stop, expected):
    generation = scripted("def f():\n    return 1", stop=stop, end=END)

    assert "".join(generation) == expected
    assert generation.finish_reason == "stop"


@pytest.mark.parametrize("stop", ["():\n    ret", "f():", "urn 1x"])
def test_no_piece_contains_the_start_of_a_stop_string(stop):
    scripted_text = "def f():\n    return 1"

    streamed = ""
    for piece in scripted(scripted_text, stop=[stop], end=END):
        streamed += piece
        if stop in scripted_text:
            assert scripted_text.index(stop) >= len(streamed)

    assert streamed == scripted_text.split(stop)[0]


def test_finish_reason_is_length_at_max_tokens(engine):
    generation = engine.stream("def ", max_tokens=7)

    assert "".join(generation) == tokenizer().decode(generation.tokens)
    assert len(generation.tokens) == 7
    assert generation.finish_reason == "length"


def test_generate_equals_argmax_of_logits(engine):
    generation = engine.stream("import ", max_tokens=20, sampling=GREEDY)
    list(generation)

    tokens = generation.prompt
    for token in generation.tokens:
        assert token == engine.logits(tokens)[-1].argmax()
        tokens = [*tokens, token]


def test_same_seed_gives_the_same_text_for_any_threads(model_directory):
    def generated(threads, seed):
        engine = Engine.load(model_directory, threads=threads)
        return engine.generate("def ", max_tokens=40, sampling=engine.sampling(seed=seed))

    assert generated(1, seed=1) == generated(2, seed=1)
    assert generated(1, seed=1) != generated(1, seed=2)


def test_text_prompts_get_a_bos_token_and_token_prompts_are_unchanged(engine):
    end = tokenizer().token_to_id(END)

    assert engine.encode("x") == [end, *tokenizer().encode("x").ids]
    assert engine.stream([5, 6]).prompt == [5, 6]


def test_sampling_defaults_come_from_generation_config(model_directory, tmp_path):
    directory = shutil.copytree(model_directory, tmp_path / "model")
    (directory / "generation_config.json").write_text(
        json.dumps({"temperature": 0.25, "top_k": 3, "do_sample": True})
    )

    sampling = Engine.load(directory).sampling(top_k=5)

    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.25, 5, 1.0)


def test_model_without_a_temperature_is_sampled_at_temperature_one(model_directory, tmp_path):
    directory = shutil.copytree(model_directory, tmp_path / "model")
    for fields, own in (({}, {}), ({"do_sample": True}, {}), ({"top_p": 0.5}, {"top_p": 0.5})):
        (directory / "generation_config.json").write_text(json.dumps(fields))
        engine = Engine.load(directory)

        assert engine.own_sampling == own
        assert engine.sampling() == SamplingConfig(**{"temperature": 1.0, **own})


def test_do_sample_false_is_greedy(model_directory, tmp_path):
    directory = shutil.copytree(model_directory, tmp_path / "model")
    (directory / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')

    assert Engine.load(directory).sampling().temperature == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "must hold an object"), ("{", "is not valid JSON"), ('{"top_p": 2}', "top_p must be")],
)
def test_an_invalid_generation_config_is_rejected(model_directory, tmp_path, content, message):
    directory = shutil.copytree(model_directory, tmp_path / "model")
    (directory / "generation_config.json").write_text(content)

    with pytest.raises(ConfigError, match=message):
        Engine.load(directory).generate("x")


def test_a_model_without_tokenizer_accepts_tokens_and_rejects_text(tmp_path, engine):
    directory = shutil.copytree(engine.model.path, tmp_path / "model")
    (directory / "tokenizer.json").unlink()
    bare = Engine.load(directory)

    assert bare.logits([1, 2]).shape == (2, 512)
    with pytest.raises(ConfigError, match=r"has no tokenizer.json; give tokens, not text"):
        bare.generate("x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "prompt must hold at least one token"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens must be at least 1 but is 0"),
        ({"prompt": "x", "stop": [""]}, "stop must hold strings of at least one character"),
    ],
)
def test_invalid_requests_are_rejected(engine, options, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(**options)


def test_stop_may_be_a_single_string(engine):
    options = {"max_tokens": 200, "sampling": GREEDY}
    whole = engine.generate(text()[:300], **options)
    stop = whole[100:110]

    found = engine.generate(text()[:300], stop=stop, **options)

    assert found == engine.generate(text()[:300], stop=[stop], **options) == whole.split(stop)[0]


def test_a_trained_model_is_better_than_a_uniform_one(engine):
    """After 30 training steps, the loss is one nat below that of a uniform model."""
    tokens = engine.encode(text()[:400])
    logits = engine.logits(tokens[:-1]).astype(np.float64)

    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nats = -log_probabilities[np.arange(len(tokens) - 1), tokens[1:]].mean()

    assert nats < np.log(len(logits[0])) - 1


def test_a_session_with_a_prefix_of_the_prompt_gives_the_same_text(engine):
    prompt = engine.encode(text()[:300])
    whole = engine.stream(prompt, max_tokens=20)
    session = engine.session(len(prompt) + 20)
    session.feed(prompt[:40])

    rest = engine.stream(prompt, max_tokens=20, session=session)

    assert "".join(rest) == "".join(whole)
    assert rest.tokens == whole.tokens
    assert rest.text == whole.text != ""
    assert session.position == len(prompt) + 19


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([5, 6, 8], "holds 3 tokens that are not a prefix of the prompt"),
        ([5, 6, 7, 8, 9], "holds 5 tokens that are not a prefix of the prompt"),
        ([5, 6, 7, 8], "holds all 4 tokens of the prompt"),
    ],
)
def test_a_session_without_a_proper_prefix_of_the_prompt_is_rejected(engine, held, message):
    session = engine.session(100)
    session.feed(held)

    with pytest.raises(ValueError, match=message):
        engine.stream([5, 6, 7, 8], session=session)

    assert session.position == len(held)
