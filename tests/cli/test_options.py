"""Every option of every command with odd values: a result or one line, never a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import typer
from servers import end_quickly

from yocobit.cli import app, output, run
from yocobit.cli.options import expand_tokens
from yocobit.errors import report_errors
from yocobit.serving.runtime.preparation import WorkerPool
from yocobit.tracking import bar

COMMAND = typer.main.get_command(app)
COMMANDS = COMMAND.commands
# A missing file, so that a command with a valid value ends before it works.
ARGUMENTS = {
    "train": ["missing.toml", "--out", "out"],
    "plot": ["missing"],
    "pack": ["missing", "out"],
    "import": ["missing", "out"],
    "export": ["missing", "out", "--to", "gguf"],
    "chat": ["missing"],
    "serve": ["missing", "--port", "0"],
    "generate": ["text", "--model", "missing"],
    "eval": ["missing", "missing.txt"],
    "verify": ["missing"],
    "inspect": ["missing"],
    "plan": ["missing"],
    "bench": ["missing"],
    "pull": ["missing"],
    "list": [],
    "remove": ["missing"],
}
NUMBERS = ["-1", "0", "1", str(2**31), str(2**63), str(2**64), str(10**30), "9" * 5000]
NUMBERS += ["nan", "inf", "-inf", "1e400", "0x10", "1.5", "", " ", "٣", "1,2"]
LISTS = ("--prompt", "--gen", "--depth", "--batch", "--threads")  # of bench
TEXTS = ["", " ", "\ud800", "a\nb", "\x1b[31mred", "x" * 100_000, "{}", "%s", "-", "--", "\0"]


def options(is_number: bool) -> list[tuple[str, str]]:
    """Return (command, option) of each option with a value."""
    found = []
    for name, command in COMMANDS.items():
        for option in command.params:
            numeric = re.fullmatch(r"[-.\d]+\.\.[.\d]+|FLOAT|N|TOKENS", option.metavar or "")
            numeric = numeric or (name == "bench" and option.opts[0] in LISTS)
            takes_value = option.param_type_name == "option" and not option.is_flag
            if takes_value and bool(numeric) == is_number:
                found.append((name, option.opts[0]))
    return found


def outcome(capfd, *arguments: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and its error line."""
    with pytest.raises(SystemExit) as ended:
        report_errors(lambda: run(list(arguments)))
    return ended.value.code, capfd.readouterr().err


def is_one_line(code: int, error: str) -> bool:
    """Assert that a command ended as a user's mistake."""
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.removesuffix("\n").isprintable()
    assert len(error) < 2100
    return True


@pytest.fixture(autouse=True)
def one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the parsers of all commands once, not for every value."""
    monkeypatch.setattr(typer.main, "get_command", lambda _: COMMAND)


@pytest.fixture(autouse=True)
def without_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process to prepare requests: `serve` ends before it has a model."""

    async def start(_: WorkerPool) -> None: ...

    monkeypatch.setattr(WorkerPool, "start", start)
    end_quickly(monkeypatch)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty directory the current one; there is no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_every_command_has_arguments_here():
    assert ARGUMENTS.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "microsoft/bitnet-b1.58-2B-4T"], "neither an existing path nor in the cache"),
        (["inspect", "bitnet-b1.58-2B-4T"], "; yocobit pull ORG/NAME downloads a model of"),
        (["inspect", "published"], "as yocobit pack or yocobit import writes it"),
        (["inspect", "."], "holds no config.json; name the directory of a packed model"),
        (["import", "org/name", "out"], "if it is on the hub, run: yocobit pull org/name"),
        (["import", "https://hf.co/org/name", "out"], "org/name: no such file or directory; if it"),
        (["import", "out", "other"], "out: no such file or directory"),
        (["import", ".", "out"], "downloaded from the Hugging Face Hub"),
        (
            ["train", "https://a.org/b.txt", "--out", "out"],
            "https://a.org/b.txt: must be a path but is",
        ),
        (["pull", "tiny"], "tiny: is part of the package; run it with: yocobit chat tiny"),
        (["import", "model.gguf", "out"], "was truncated: it ends after 4 bytes"),
        (["train", ".", "--out", "out"], "no file in this directory ends in .txt, "),
        (["pull", "https://a.org/b"], "https://a.org/b: must be a GGUF file, a Hugging Face"),
        (["verify", "tiny", "--against", "missing"], "missing: no such file or directory"),
        (
            ["chat", "my.txt"],
            "is text, not a model; train a model on it with: yocobit train my.txt",
        ),
        (["serve", "missing", "--port", "0"], "error: missing: no such directory; name the"),
    ],
)
def test_the_error_of_another_kind_of_model_names_the_remedy(arguments, words, tmp_path, capfd):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text("{}")
    if "my.txt" in arguments:
        (tmp_path / "my.txt").write_text("my")
    if "model.gguf" in arguments:
        (tmp_path / "model.gguf").write_bytes(b"GGUF")

    error = outcome(capfd, *arguments)

    assert is_one_line(*error)
    assert words in error[1]


def test_numeric_options_are_found():
    assert ("generate", "--seed") in options(is_number=True)
    assert ("serve", "--drain") in options(is_number=True)
    assert ("train", "--set") in options(is_number=False)
    assert len(options(is_number=True)) > 35


@pytest.mark.parametrize(("command", "option"), options(is_number=True))
def test_a_number_beyond_the_bounds_of_an_option_is_one_line(command, option, capfd):
    for value in NUMBERS:
        error = outcome(capfd, command, *ARGUMENTS[command], f"{option}={value}")
        assert is_one_line(*error), value
        if value in ("nan", "inf", "1e400", "9" * 5000, ""):
            assert error[1].startswith(f"error: {option} must be "), value
            assert value[:30] in error[1]


@pytest.mark.parametrize(("command", "option"), options(is_number=False))
def test_odd_text_of_an_option_is_one_line(command, option, directory, capfd):
    os.mkfifo(directory / "fifo")
    (directory / "file").write_bytes(b"\xff\xfe\0")
    for value in (*TEXTS, "fifo", "file", "file/below", ".", "missing", "x" * 300):
        if (command, option) in {("generate", "--model"), ("train", "--out")}:
            arguments = [*ARGUMENTS[command][:1], f"{option}={value}"]
        else:
            arguments = [*ARGUMENTS[command], f"{option}={value}"]
        assert is_one_line(*outcome(capfd, command, *arguments)), value


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "list"])
def test_an_odd_path_is_one_line(command, directory, capfd):
    os.mkfifo(directory / "fifo")
    (directory / "file").write_bytes(b"\xff\xfe\0")
    (directory / "a\nb").mkdir()
    for value in (*TEXTS, "fifo", "file", "file/below", ".", "a\nb", "x" * 300):
        if value in ("-", "--"):
            continue
        arguments = [each.replace("missing", value) for each in ARGUMENTS[command]]
        assert is_one_line(*outcome(capfd, command, *arguments)), value


@pytest.mark.parametrize(
    "option",
    [
        *("--seed=-1", f"--seed={2**64 - 1}", f"--top-k={2**31 - 1}", "--top-k=0"),
        *("--temperature=0", "--temperature=100", "--min-p=1", "--top-p=1e-30"),
        "--repetition-penalty=100",
    ],
)
def test_the_outermost_values_of_an_option_work(option, capfd):
    code, error = outcome(capfd, "generate", "In", "-n2", "--threads=1", option)

    assert (code, error) == (0, "")


@pytest.mark.parametrize("host", ["", "\udcff", "\0", "a b", "999.1.1.1", "x" * 300])
def test_an_odd_host_is_one_line(host, capfd):
    arguments = ("serve", "--port=0", "--threads=1", "--no-api-key", f"--host={host}")

    assert is_one_line(*outcome(capfd, *arguments))


def test_a_random_seed_gives_other_texts(capfd):
    texts = set()
    for _ in range(4):
        with pytest.raises(SystemExit):
            report_errors(lambda: run(["generate", "In", "-n20", "--threads=1", "--seed=-1"]))
        texts.add(capfd.readouterr().out)

    assert len(texts) > 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "no such command 'trian'; did you mean 'train'? (see yocobit --help)"),
        (["generate", "--thread", "1"], "no such option: --thread; did you mean --threads? (see"),
        (["generate", "-n"], "option '-n' requires an argument"),
        (["generate", "a", "b", "c"], "got unexpected extra argument(s) (c)"),
        (["generate", "a", "tiny", "-m", "tiny"], "MODEL must be given once but is given as an"),
        (["train"], "missing argument 'TEXT|CONFIG'; try: yocobit train my.txt --out runs/mine"),
        (["train", "my.txt"], "missing option '--out'; try: yocobit train my.txt --out runs/mine"),
        (["chat", "tiny", "--system"], "option '--system' requires an argument (see yocobit chat"),
        (["plan", "--cache", "q8"], "--cache must be one of f32, f16, int8, int4 but is 'q8'"),
        (["bench", "--weights", "ternay"], "--weights must be one of ternary, ternary_row, sign, "),
        (["bench", "--shape", "2b"], "--shape must be one of 2b4t, falcon3-3b, "),
        (["plan", "--shape", "2b4t-yco"], "--shape must be one of 2b4t, falcon3-3b, "),
        (["generate", "a", "\x1b[31m", "\nb"], "got unexpected extra argument(s) ("),
        (["chat", "--temp", "1"], "no such option: --temp; did you mean --temperature? (see"),
        (["chat", "--ctx-size", "1"], "no such option: --ctx-size; did you mean --context? (see"),
        (["generate", "-c", "1"], "no such option: -c (see yocobit generate --help)"),
        (["run", "tiny"], "no such command 'run'; did you mean 'chat'? (see yocobit --help)"),
        (["help", "chat"], "no such command 'help'; did you mean '--help'? (see yocobit --help)"),
        (["tiny"], "no such command 'tiny'; did you mean 'chat tiny'? (see yocobit --help)"),
        (["export", "a", "b"], "missing option '--to'; choose from: gguf, hf; try: yocobit export"),
        (["generate", "a", "--temperature", "-1"], "--temperature must be between 0 and 100 but"),
        (["generate", "a", "--top-p", "2"], "--top-p must be above 0 and at most 1 but is 2.0"),
        (["generate", "a", "--stop", ""], "--stop must hold strings of at least one character"),
        (["train", "a.txt", "--out", "b", "--minutes", "0"], "--minutes must be between 0.001 and"),
        (["chat", "--context", "1G"], "not enough memory: --context 1073741824 needs "),
    ],
)
def test_a_usage_error_is_one_line(arguments, line, capfd):
    error = outcome(capfd, *arguments)

    assert is_one_line(*error)
    assert error[1].startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["bench", "--weights", "ternay"], "ternary"),
        (["bench", "--shape", "2b"], "2b4t"),
        (["plan", "--shape", "2b4t-yco"], "2b4t-yoco"),
        (["plot", "runs", "--x", "steps"], "step"),
    ],
)
def test_the_error_of_a_misspelt_name_suggests_the_nearest(arguments, name, capfd):
    error = outcome(capfd, *arguments)

    assert is_one_line(*error)
    assert f"; did you mean {name}?" in error[1]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        *(("8192", "8192"), ("128k", "131072"), ("128K", "131072"), ("2M", str(2 << 20))),
        *(("1.5k", "1536"), ("1G", str(1 << 30)), ("1.3k", "1.3k"), ("k", "k"), ("1kk", "1kk")),
        *(("-1k", "-1k"), ("1 k", "1 k"), ("0.5M", str(1 << 19)), ("", "")),
    ],
)
def test_suffixes_of_tokens_are_powers_of_1024(text, tokens):
    assert expand_tokens(text) == tokens


@pytest.mark.parametrize("own, alias", [("int8", "q8_0"), ("int4", "q4_0")])
def test_cache_types_have_their_names_in_llama_cpp(own, alias, capfd):
    texts = []
    for name in (own, alias):
        with pytest.raises(SystemExit):
            report_errors(lambda name=name: run(["generate", "In", "-n9", f"--cache={name}"]))
        texts.append(capfd.readouterr().out)

    assert texts[0] == texts[1] != "In\n"


def test_lists_of_bench_have_suffixes_and_aliases(capfd):
    arguments = ["bench", "--shape=nano", "-p0", "-n1", "-d1k", "--cache=q8_0,q4_0", "-r1"]
    code, _ = outcome_with_output(capfd, *arguments, "--no-limits", "--json")

    tests = json.loads(code)["tests"]
    assert [(test["depth"], test["cache"]) for test in tests] == [(1024, "int8"), (1024, "int4")]


def outcome_with_output(capfd, *arguments: str) -> tuple[str, str]:
    """Run a command that succeeds; return its output."""
    with pytest.raises(SystemExit) as ended:
        report_errors(lambda: run(list(arguments)))
    assert ended.value.code == 0
    return capfd.readouterr()


@pytest.mark.parametrize("arguments", [["-m", "tiny"], ["tiny"], []])
def test_the_model_of_generate_is_an_argument_or_an_option(arguments, capfd):
    out, _ = outcome_with_output(capfd, "generate", "In", *arguments, "-n3", "--seed=1")
    expected, _ = outcome_with_output(capfd, "generate", "In", "-n3", "--seed=1")

    assert out == expected


def test_verbose_adds_lines_about_the_model_and_quiet_removes_lines(capfd):
    _, verbose = outcome_with_output(capfd, "generate", "In", "-n1", "--verbose")
    _, quiet = outcome_with_output(capfd, "generate", "In", "-n1", "--quiet")

    assert "threads" in verbose and "7,090,688" in verbose
    assert quiet == ""


def test_verbose_adds_timings_of_generated_text_and_of_every_command(capfd):
    out, err = outcome_with_output(capfd, "generate", "In", "-n3", "--seed=7", "--verbose")
    expected, _ = outcome_with_output(capfd, "generate", "In", "-n3", "--seed=7")
    _, other = outcome_with_output(capfd, "list", "--verbose")

    lines = dict(line.split(maxsplit=1) for line in err.splitlines() if line[:1].strip())
    assert out == expected
    assert re.fullmatch(r"[\d,]+ ms; \d+ threads, \w+ kernels", lines["load"])
    assert "temperature " in lines["sampling"] and lines["sampling"].endswith("seed 7")
    timing = r"tokens in [\d,.]+ ms: [\d,.]+ ms each, [\d,.]+/s"
    assert re.fullmatch(rf"\d+ {timing}", lines["prefill"])
    assert re.fullmatch(rf"2 {timing}, after the first token", lines["decode"])
    assert re.fullmatch(r"[\d.]+ MB reserved", lines["caches"])
    total = r"total +[\d.]+ s, [\d.]+ s of CPU time, [\d,]+ MB of memory at most"
    assert re.fullmatch(total, other.strip())


def test_progress_is_a_bar_on_a_terminal_that_disappears(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bar, "_DELAY_S", 0)
    monkeypatch.setattr(bar, "_INTERVAL_S", 0)
    monkeypatch.setattr(output, "_level", output.Level.NORMAL)
    monkeypatch.setenv("TERM", "xterm")

    with output.progress("verifying") as advance:
        advance(1, 4)
        advance(4, 4)

    assert "verifying" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


@pytest.mark.parametrize("is_terminal, is_quiet", [(False, False), (True, True)])
def test_progress_prints_nothing_elsewhere(is_terminal, is_quiet, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bar, "_DELAY_S", 0)
    monkeypatch.setattr(output, "is_quiet", lambda: is_quiet)

    with output.progress("verifying") as advance:
        advance(1, 4)

    assert stream.getvalue() == ""


def test_a_shell_completes_commands_options_and_models(monkeypatch, capfd):
    words = {}
    for line in ("yocobit ins", "yocobit chat --temp", "yocobit inspect t"):
        monkeypatch.setenv("_YOCOBIT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
        with pytest.raises(SystemExit):
            run([])
        words[line] = capfd.readouterr().out.split()

    assert list(words.values()) == [["inspect"], ["--temperature"], ["tiny"]]
