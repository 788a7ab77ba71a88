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


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://huggingface.co/a/b", "a/b"),
        ("https://huggingface.co/a/b/", "a/b"),
        ("http://www.huggingface.co/a/b?library=transformers", "a/b"),
        ("huggingface.co/a/b", "a/b"),
        ("hf.co/a/b", "a/b"),
        ("https://huggingface.co/a/b/tree/main", "a/b"),
        ("https://huggingface.co/a/b/tree/v2", "a/b@v2"),
        ("https://huggingface.co/a/b/blob/main/x.gguf", "a/b:x.gguf"),
        ("https://huggingface.co/a/b/resolve/v2/sub/x.gguf?download=true", "a/b@v2:sub/x.gguf"),
    ],
)
def test_urls_of_the_hub_are_names(url, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert str(parse_name(url)) == name
    assert str(parse_name(str(Path(url)))) == name  # a Path has one slash after the scheme


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a/b",
        "https://huggingface.co/a",
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/a/b/discussions/1",
        "https://huggingface.co/a/b/blob/main/../x",
    ],
)
def test_other_urls_are_paths(url):
    assert parse_name(url) == Path(url)


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
