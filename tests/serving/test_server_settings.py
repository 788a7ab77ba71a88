"""ServerSettings: environment variables and validation."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from pathlib import Path

import pytest
import typer

from yocobit import cli, serving
from yocobit.cli import app
from yocobit.config import ConfigError, preset
from yocobit.costs import session_bytes
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


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        ((), {"KEY": "key-1-of-two key-2-of-two"}, {"key-1-of-two", "key-2-of-two"}),
        ((), {"KEYS": "key-1-of-two, key-2-of-two"}, {"key-1-of-two", "key-2-of-two"}),
        ((), {"KEY": "one-of-two", "KEYS": "two-of-two"}, {"one-of-two", "two-of-two"}),
        (("--api-key", "the-option"), {"KEY": "one-of-two", "KEYS": "two-of-two"}, {"the-option"}),
        (
            ("--api-key", "an-option", "--api-key", "other-option"),
            {},
            {"an-option", "other-option"},
        ),
    ],
)
@pytest.mark.parametrize("has_file", [False, True])
def test_option_replaces_the_variables_of_keys_and_a_file_adds_to_both(
    settings_of, tmp_path, options, variables, expected, has_file
):
    """The same rule for `serve` and for create_app, which has no options."""
    environment = {f"YOCOBIT_API_{name}": value for name, value in variables.items()}
    if has_file:
        (tmp_path / "keys").write_text("key-of-a-file\n")
        environment["YOCOBIT_API_KEY_FILE"] = str(tmp_path / "keys")
        expected = {*expected, "key-of-a-file"}

    found = settings_of(*options, **environment).api_keys

    assert set(found) == expected and len(found) == len(expected)
    if not options:
        assert ServerSettings.from_environment(environment).api_keys == found


def test_key_in_two_variables_is_one_key():
    variables = {"YOCOBIT_API_KEY": "the-same-key", "YOCOBIT_API_KEYS": "the-same-key"}

    assert ServerSettings.from_environment(variables).api_keys == ("the-same-key",)


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
        ({"root_path": "llm"}, "root_path must be a path such as /llm"),
        ({"root_path": "/llm/"}, "without a slash at its end, but is '/llm/'"),
        ({"forwarded_allow_ips": ("proxy",)}, "must be addresses or networks .* has 'proxy'"),
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


# ---- variables of `yocobit serve` ----


@pytest.fixture
def settings_of(monkeypatch):
    """A function that returns the settings which `yocobit serve` starts a server with."""

    def start(*options: str, **variables: str) -> ServerSettings:
        found = []
        monkeypatch.setattr(serving, "serve", lambda settings, *_, **__: found.append(settings))
        monkeypatch.setattr(sys, "argv", ["yocobit", "serve", *options])
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main()
            sys.exit(0)
        assert ended.value.code in (0, None)
        return found[0]

    return start


def test_option_has_precedence_over_variable_over_default(settings_of):
    settings = settings_of("--cache-mb", "3", YOCOBIT_CACHE_MB="5", YOCOBIT_MAX_WAITING="7")

    assert (settings.cache_mb, settings.max_waiting) == (3, 7)
    assert settings.max_sequences == ServerSettings().max_sequences


def test_serve_reads_the_variables_of_create_app(settings_of):
    variables = {
        "YOCOBIT_ALIAS": "a, b",
        "YOCOBIT_CACHE": "int4",
        "YOCOBIT_CONTEXT": "64",
        "YOCOBIT_API_KEYS": "key-of-a-list,another-one",
        "YOCOBIT_CORS_ORIGINS": "https://a.b",
        "YOCOBIT_TIMEOUT_S": "1.5",
        "YOCOBIT_VERIFY": "true",
        "YOCOBIT_ROOT_PATH": "/llm",
        "YOCOBIT_FORWARDED_ALLOW_IPS": "10.0.0.0/8,::1",
        "YOCOBIT_MAX_BODY_MB": "2",
    }

    found = settings_of(**variables)

    expected = ServerSettings.from_environment(variables)
    hosts = found.trusted_hosts  # of this machine
    assert dataclasses.replace(found, trusted_hosts=()) == expected
    assert "localhost" in hosts


def test_every_setting_has_an_option_that_reads_its_variable():
    (serve,) = (c for name, c in typer.main.get_command(app).commands.items() if name == "serve")

    variables = {parameter.envvar for parameter in serve.params}

    for field in dataclasses.fields(ServerSettings):
        name = f"YOCOBIT_{field.name.upper()}"
        assert {name, name.removesuffix("S")} & variables, name


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("YOCOBIT_CONTEXT", "0", "YOCOBIT_CONTEXT must be between 1 and"),
        ("YOCOBIT_CACHE", "int2", "YOCOBIT_CACHE"),
        ("YOCOBIT_CORS_ORIGINS", "foo", "YOCOBIT_CORS_ORIGINS must have the form"),
        ("YOCOBIT_CONTEXTS", "1", "YOCOBIT_CONTEXTS is not a setting"),
        ("YOCOBIT_ROOT_PATH", "llm", "YOCOBIT_ROOT_PATH must be a path"),
    ],
)
def test_error_of_a_variable_names_it(variable, value, words, monkeypatch, capsys):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["yocobit", "serve", "--port", "0"])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in error and len(error.splitlines()) == 1


# ---- the context of a model ----


def test_context_is_that_of_training_unless_given():
    config = preset("tiny").replace(trained_context=1000)

    assert ServerSettings().of_model(config).context == 1000
    assert ServerSettings(context=5).of_model(config).context == 5
    assert ServerSettings().of_model(preset("tiny")).context == 8192


def test_context_by_default_is_bounded_by_the_cache_memory():
    config = preset("tiny").replace(trained_context=1 << 20)

    context = ServerSettings(cache_mb=16).of_model(config).context

    assert session_bytes(config, "int8", context) <= 16 << 20
    assert session_bytes(config, "int8", context + 1) > 16 << 20
