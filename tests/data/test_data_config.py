"""[data]: paths and tables of sources in TOML."""

import json
import re
from pathlib import Path

import pytest

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig, SourceConfig, sources
from yocobit.data.windows import shares
from yocobit.training.config import TrainConfig, load

DOCS = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "data.md"
TOML = """
[model]
preset = "nano"
[run]
steps = 1
[data]
valid = ["valid.txt"]
"""


def data_of(tmp_path, text: str) -> DataConfig:
    """The settings of a minimal file."""
    (tmp_path / "run.toml").write_text(f'[model]\npreset = "nano"\n[run]\nsteps = 1\n{text}')
    overrides = [] if "valid" in text else ["data.valid_every=2"]
    return load(tmp_path / "run.toml", overrides).data


def data(tmp_path, lines: str, *overrides: str) -> DataConfig:
    (tmp_path / "run.toml").write_text(TOML + lines)
    return load(tmp_path / "run.toml", overrides).data


def test_paths_and_tables_are_sources_relative_to_the_file(tmp_path):
    found = data(tmp_path, 'train = ["a/**/*.md", {path = "b.txt", by_line = true}]')

    assert sources(found.train) == (
        SourceConfig(path=str(tmp_path / "a/**/*.md")),
        SourceConfig(path=str(tmp_path / "b.txt"), by_line=True),
    )


def test_examples_of_the_documentation_are_settings(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)

    found = [data_of(tmp_path, block) for block in blocks]

    assert [len(config.train) for config in found] == [2, 2]
    assert sources(found[1].train)[0].weight == 3.0


def test_sources_can_be_an_array_of_tables(tmp_path):
    lines = """
        [[data.train]]
        path = "prose/*.jsonl.zst"
        weight = 3
        [[data.train]]
        path = "python-stdlib"
        weight = 1
    """
    found = data(tmp_path, lines)

    assert [source.weight for source in sources(found.train)] == [3.0, 1.0]
    assert sources(found.train)[1].path == "python-stdlib"


def test_tables_of_an_override_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    found = data(tmp_path, 'train = ["a.txt"]', 'data.train=[{path="x/b.txt", text_field="body"}]')

    (source,) = sources(found.train)
    assert source == SourceConfig(path=str(tmp_path / "x/b.txt"), text_field="body")


def test_config_with_tables_survives_a_checkpoint(tmp_path):
    (tmp_path / "run.toml").write_text(TOML + 'train = [{path = "a.txt", weight = 2}]')
    config = load(tmp_path / "run.toml")

    stored = json.loads(json.dumps(config.to_dict()))

    assert stored["data"]["train"][0].keys() == {"path", "weight", "text_field", "by_line"}
    assert TrainConfig.from_dict(stored, "train.json") == config


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('train = ["a", {path = "b", weight = 1}]', "must have a weight in every item or in none"),
        ('train = [{path = "b", weight = 0}]', r"train\[0\]: weight must be above 0 but is 0"),
        ('train = [{path = "b", weight = inf}]', r"train\[0\]: weight must be a finite number"),
        (
            'train = [{path = "b", weight = 1e300}]',
            r"train\[0\]: weight must be at most 1e\+09 but",
        ),
        ("train = [{path = 'b', text_field = 'a\"b'}]", r"text_field must have no quotation mark"),
        ('train = [{path = "b", text_field = "\\\\"}]', r"text_field must have no quotation mark"),
        (
            'train = [{path = "b", text_field = "\\u0000"}]',
            r"text_field must have no quotation mark",
        ),
        ('train = ["a", ""]', "path must not be empty"),
        ('train = [{path = ""}]', r"train\[0\]: path must not be empty"),
        ('train = ["a"]\nvocab_size = 256', "vocab_size must be at least 257"),
        (
            'train = ["a"]\nvocab_size = 2000000',
            "vocab_size must be at most 1,048,576 but is 2000000",
        ),
        ('train = ["a", {paht = "b"}]', r"train\[1\]: unknown key 'paht'; did you mean path\?"),
        ("train = [{weight = 1}]", r"train\[0\]: key 'path' is missing"),
        ("train = [1]", r"each item a string or a table but is \(1,\)"),
        (
            f"train = {[{'path': 'a', 'weight': 1}] * 1025}".replace(":", " ="),
            "at most 1024 weights",
        ),
    ],
)
def test_invalid_sources_are_refused(tmp_path, lines, message):
    with pytest.raises(ConfigError, match=message):
        data(tmp_path, lines.replace("'path'", "path").replace("'weight'", "weight"))


def test_weight_of_validation_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="valid must have no weight"):
        data(tmp_path, 'train = ["a"]', 'data.valid=[{path="v", weight=1}]')


def test_home_directory_is_expanded_and_an_unknown_one_is_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")

    found = data(tmp_path, 'train = ["~/a.txt", "~absent-user/b.txt"]')

    assert found.train == ("/home/me/a.txt", str(tmp_path / "~absent-user/b.txt"))


@pytest.mark.parametrize("name", ["tokenizer", "valid"])
def test_empty_path_is_not_the_directory_of_the_file(tmp_path, name):
    value = '""' if name == "tokenizer" else '[""]'
    with pytest.raises(ConfigError, match="must not be empty"):
        data(tmp_path, 'train = ["a"]', f"data.{name}={value}")


@pytest.mark.parametrize(
    "weights", [(5e-324, 1e9), (1e9,) * 1024, (5e-324,) * 3, (1e-300, 1.0, 1e9)]
)
def test_extreme_weights_have_shares(weights):
    counts = shares(weights)

    assert sum(counts) == 1024 and min(counts) >= 1


@pytest.mark.parametrize(
    "fields",
    [
        {"train": ["a.txt", "caf\udce9.txt"]},
        {"train": [{"path": "caf\udce9.txt"}]},
        {"train": ["a.txt"], "tokenizer": "caf\udce9.json"},
    ],
)
def test_paths_that_run_json_could_not_hold_are_refused(fields):
    with pytest.raises(ConfigError, match=r"must be UTF-8 but is .*caf\\udce9"):
        DataConfig.from_dict({"valid_every": 2, **fields})
