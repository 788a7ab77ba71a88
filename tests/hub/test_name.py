"""Names of models: existing paths first, then ORG/NAME[@REVISION][:FILE]."""

from __future__ import annotations

from pathlib import Path

import pytest

from yocobit.hub import HubName, parse_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("microsoft/bitnet-b1.58-2B-4T", HubName("microsoft/bitnet-b1.58-2B-4T")),
        ("a/b@main", HubName("a/b", "main")),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        ("a/b:x.gguf", HubName("a/b", None, "x.gguf")),
        ("a/b@c0ffee:sub/x.gguf", HubName("a/b", "c0ffee", "sub/x.gguf")),
    ],
)
def test_hub_names_are_parsed_and_printed(text, name):
    assert parse_name(text) == name
    assert str(name) == text


def test_existing_path_has_precedence(tmp_path: Path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert parse_name("a/b") == Path("a/b")


def test_checkpoint_of_a_run_is_a_path(tmp_path: Path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)

    assert parse_name("checkpoints/last") == Path("checkpoints/last")


@pytest.mark.parametrize(
    "text", ["", "model", "./a/b", "/a/b", "a/b/c", "a/b@", "a/b:", "a/b:../x", "a/b\n", "\ud800"]
)
def test_other_strings_are_paths(text, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert parse_name(text) == Path(text)
