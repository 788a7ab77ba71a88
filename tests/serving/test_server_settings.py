"""ServerSettings: environment variables and validation."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
import typer

from yocobit.cli import app
from yocobit.config import ConfigError
from yocobit.engine import Chat, Engine
from yocobit.serving import ServerSettings


def test_environment_gives_settings():
    settings = ServerSettings.from_environment(
        {"YOCOBIT_CONTEXT": "64", "YOCOBIT_ALIAS": "a, b", "YOCOBIT_VERIFY": "true", "HOME": "/"}
    )

    assert (settings.context, settings.alias, settings.verify) == (64, ("a", "b"), True)


def test_keys_of_all_variables_are_combined(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\n  # theirs\n key-of-a-file \n\n")

    settings = ServerSettings.from_environment(
        {
            "YOCOBIT_API_KEY": "key-of-serve",
            "YOCOBIT_API_KEYS": "key-of-a-list,another-one",
            "YOCOBIT_API_KEY_FILE": str(file),
        }
    )

    assert set(settings.api_keys) == {
        "key-of-serve",
        "key-of-a-list",
        "another-one",
        "key-of-a-file",
    }


def test_keys_may_come_from_a_pipe():
    reader, writer = os.pipe()
    os.write(writer, b"key-of-a-pipe\n")
    os.close(writer)

    settings = ServerSettings.from_environment({"YOCOBIT_API_KEY_FILE": f"/dev/fd/{reader}"})

    os.close(reader)
    assert settings.api_keys == ("key-of-a-pipe",)


def test_empty_variable_names_no_key_file():
    assert ServerSettings.from_environment({"YOCOBIT_API_KEY_FILE": ""}).api_keys == ()


def test_unknown_variable_is_rejected():
    with pytest.raises(ConfigError, match="YOCOBIT_API_KEYZ is not a setting"):
        ServerSettings.from_environment({"YOCOBIT_API_KEYZ": "a-secret-key"})


@pytest.mark.parametrize("name", ["YOCOBIT_PORT", "YOCOBIT_PORT_80_TCP", "YOCOBIT_A_SERVICE_HOST"])
def test_kubernetes_service_variables_are_ignored(name):
    assert ServerSettings.from_environment({name: "tcp://10.0.0.1:80"}) == ServerSettings()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prefix_dir": Path("x"), "prefix_mb": 0}, "prefix_dir has no effect if prefix_mb is 0"),
        ({"cors_origins": ("https://a.b", "foo")}, "must have the form https://a.b, .* has 'foo'"),
        ({"cors_origins": ("https://a.b/",)}, "without a path, but has 'https://a.b/'"),
        ({"attention": "index:100"}, "attention must be full or index:.* but is 'index:100'"),
    ],
)
def test_invalid_settings_are_rejected(settings, words):
    with pytest.raises(ConfigError, match=words):
        ServerSettings(**settings)


def test_repr_has_no_keys():
    assert "a-secret-key" not in repr(ServerSettings(api_keys=("a-secret-key",)))


def test_commands_server_and_engine_have_the_same_cache_type():
    """So that a seed gives the same text in all of them; eval measures with exact caches."""
    commands = typer.main.get_command(app).commands
    found = {
        name: option.default
        for name, command in commands.items()
        for option in command.params
        if option.name == "cache"
    }
    for function in (Engine.session, Engine.logits, Engine.stream, Chat):
        found[function.__qualname__] = inspect.signature(function).parameters["cache"].default

    assert found.pop("eval") is None
    assert {"generate", "chat", "serve", "bench", "plan", "Chat", "Engine.stream"} <= set(found)
    assert set(found.values()) == {ServerSettings().cache} == {"int8"}
