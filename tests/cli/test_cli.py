"""The command line in a process: its output and exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import typer
from forked import run
from packed_models import nano, packed, text, trained

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.cli import app
from yocobit.cli.help import EXAMPLES

COMMON = {"--help", "--verbose", "--quiet"}  # of every command
# A new option needs a line here, and its reason in the commit.
OPTIONS = {
    "train": {
        "--out",
        "--minutes",
        "--resume",
        "--init",
        "--set",
        "--teacher",
        "--compile",
        "--tensorboard",
        "--json",
    },
    "plot": {"--out", "--x"},
    "pack": {"--weights", "--head", "--json"},
    "import": {"--head", "--weights", "--tokenizer", "--json"},
    "pull": {"--head", "--weights", "--tokenizer"},
    "list": {"--json"},
    "remove": set(),
    "export": {"--to", "--type", "--head", "--context", "--json"},
    "chat": {
        "--system",
        "--max-tokens",
        "--context",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repetition-penalty",
        "--seed",
        "--cache",
        "--attention",
        "--exact",
        "--threads",
        "--kernels",
        "--verify",
    },
    "serve": {
        "--forwarded-allow-ips",
        "--root-path",
        "--max-body-mb",
        "--host",
        "--port",
        "--alias",
        "--api-key",
        "--api-key-file",
        "--no-api-key",
        "--cors-origin",
        "--trusted-host",
        "--context",
        "--cache",
        "--attention",
        "--exact",
        "--cache-mb",
        "--max-sequences",
        "--max-waiting",
        "--timeout",
        "--drain",
        "--prefix-mb",
        "--prefix-dir",
        "--prefix-dir-mb",
        "--threads",
        "--kernels",
        "--verify",
        "--log-json",
    },
    "generate": {
        "--model",
        "--max-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repetition-penalty",
        "--seed",
        "--stop",
        "--cache",
        "--attention",
        "--exact",
        "--threads",
        "--kernels",
        "--verify",
        "--json",
    },
    "eval": {"--backend", "--context", "--cache", "--threads", "--json", "--attention", "--exact"},
    "verify": {"--against", "--json"},
    "inspect": {"--json"},
    "plan": {
        "--shape",
        "--weights",
        "--head",
        "--context",
        "--batch",
        "--cache",
        "--attention",
        "--machine",
        "--threads",
        "--kernels",
        "--picture",
        "--json",
    },
    "bench": {
        "--shape",
        "--weights",
        "--head",
        "--prompt",
        "--gen",
        "--depth",
        "--batch",
        "--threads",
        "--cache",
        "--attention",
        "--exact",
        "--kernels",
        "--repetitions",
        "--no-limits",
        "--json",
    },
}

CONFIG = """
[model]
preset = "nano"
[data]
train = ["text"]
valid_every = 2
vocab_size = 300
context = 32
[optim]
batch_size = 2
[run]
steps = 3
threads = 1
"""


def fails(result: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Assert that a command ended as a user's mistake: one line of error, exit code 2."""
    assert result.returncode == 2, result
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    return True


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return packed(trained(nano("yoco-gret", "ternary")), tmp_path_factory.mktemp("model")).path


@pytest.fixture
def project(tmp_path) -> Path:
    """A directory with a config and a little text."""
    (tmp_path / "text").mkdir()
    for i in range(8):
        (tmp_path / "text" / f"{i}.py").write_text(text()[i * 1400 : (i + 1) * 1400])
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def test_commands_and_options_are_frozen():
    commands = typer.main.get_command(app).commands
    found = {
        name: {option for p in command.params for option in p.opts if option.startswith("--")}
        for name, command in commands.items()
    }
    assert found == {name: options | COMMON - {"--help"} for name, options in OPTIONS.items()}


@pytest.mark.parametrize("command", OPTIONS)
def test_the_help_of_a_command_lists_its_options_and_examples(command):
    result, short = run(command, "--help"), run(command, "-h")

    assert result.returncode == 0
    assert short.stdout == result.stdout
    for option in OPTIONS[command] | COMMON:
        assert option in result.stdout
    for example in EXAMPLES[command]:
        assert f"\n  {example}\n" in result.stdout
    assert not re.search("<path|list\\[", result.stdout)  # types of arguments


def test_the_help_lists_every_command_in_one_line_of_80_columns():
    lines = run("--help", variables={"COLUMNS": "80"}).stdout.splitlines()
    summaries = dict(line.split(maxsplit=1) for line in lines[lines.index("Commands:") + 1 :][:16])

    assert summaries.keys() == OPTIONS.keys()
    assert all(summary.endswith(".") and "..." not in summary for summary in summaries.values())


def test_the_help_wraps_summaries_on_a_narrow_terminal():
    shown = run("--help", variables={"COLUMNS": "50"}).stdout.partition("Commands:")[2]

    summary = "Predict the speed of a model and its place in caches and memory."
    assert "..." not in shown
    assert summary in " ".join(shown.split())


@pytest.mark.parametrize("example", [each for some in EXAMPLES.values() for each in some])
def test_an_example_in_the_help_is_a_valid_command(example):
    program, name, *arguments = shlex.split(example.partition(" < ")[0])
    command = typer.main.get_command(app).commands[name]

    context = command.make_context(name, arguments)  # raises for an unknown option

    assert program == "yocobit"
    assert context.params["quiet"] is False


def test_version_is_printed():
    assert run("--version").stdout == "yocobit 0.1.0\n"


def test_train_pack_verify_and_generate_work_in_sequence(project):
    trained_run, model = project / "run", project / "model"

    train = run("train", project / "config.toml", "--out", trained_run)
    assert train.returncode == 0, train.stderr
    assert "bits/byte" in train.stdout
    assert len((trained_run / "metrics.jsonl").read_text().splitlines()) == 3

    pack = run("pack", trained_run, model)
    assert pack.returncode == 0, pack.stderr
    assert "ternary weights" in pack.stdout
    assert pack.stderr == f'run it with: yocobit generate "In the beginning" {model}\n'

    assert run("verify", model).stdout.endswith("every byte matches its hash\n")
    generated = run("generate", "def ", "--model", model, "--max-tokens", 5)
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.startswith("def ")


@pytest.fixture
def student(project) -> Path:
    """A directory with a config and a teacher that has been trained."""
    assert run("train", "config.toml", "--out", "teacher", cwd=project).returncode == 0
    (project / "config.toml").write_text(CONFIG.replace("vocab_size = 300\n", ""))
    return project


def test_train_distils_from_a_teacher(student):
    result = run("train", "config.toml", "--out", "run", "--teacher", "teacher", cwd=student)

    assert result.returncode == 0, result.stderr
    assert '"divergence"' in (student / "run" / "metrics.jsonl").read_text()


@pytest.mark.slow  # PyTorch's compiler is imported, which takes 5 s
def test_train_distils_from_a_teacher_and_warns_without_a_compiler(student):
    result = subprocess.run(
        [sys.executable, "-m", "yocobit", "train", "config.toml", "--out", "run",
         "--teacher", "teacher", "--compile"],
        cwd=student,
        capture_output=True,
        text=True,
        env={**os.environ, "CXX": "/nowhere/c++"},
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert "warning: run.compile is on but nothing is compiled" in result.stdout
    assert '"divergence"' in (student / "run" / "metrics.jsonl").read_text()


def test_train_resumes_and_does_not_overwrite_a_run(project):
    config, out = project / "config.toml", project / "run"
    first = run("train", config, "--out", out, "--quiet")
    (checkpoint,) = out.glob("checkpoints/step-*")
    assert (first.returncode, first.stdout, first.stderr) == (0, f"{checkpoint}\n", "")

    assert fails(run("train", config, "--out", out), "already holds a run", "--resume")
    resumed = run("train", config, "--out", out, "--resume", "--set", "run.steps=5")

    assert resumed.returncode == 0, resumed.stderr
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 5


def test_plot_draws_over_the_requested_axis_and_needs_a_run(tmp_path):
    record = {"step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "tokens": 8, "seconds": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    picture = tmp_path / "runs.svg"

    plotted = run("plot", tmp_path, "--out", picture, "--x", "tokens")

    assert plotted.returncode == 0, plotted.stderr
    assert plotted.stdout == f"{picture}\n"
    assert "<!-- tokens -->" in picture.read_text()  # the label of the horizontal axis
    assert fails(run("plot", tmp_path / "nowhere", "--out", picture), "nowhere", "no such file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.learning_rat=1", ["unknown key 'learning_rat'", "learning_rate"]),
        ("optim.learning_rate=-1", ["learning_rate must be above 0 but is -1"]),
        ("model.d_model=60", ["d_model must be a multiple of 8 but is 60"]),
        ('data.train=["nowhere"]', ["nowhere", "no such file or directory"]),
        ('data.train=["empty"]', ["empty: no file in this directory ends in .txt"]),
        ("nonsense", ["must look like section.key=value"]),
    ],
)
def test_train_mistakes_are_one_line(project, change, words):
    (project / "empty").mkdir()

    result = run("train", "config.toml", "--out", "run", "--set", change, cwd=project)

    assert fails(result, *words)


def test_missing_files_are_one_line(tmp_path):
    assert fails(run("train", tmp_path / "no.toml", "--out", tmp_path / "run"), "no.toml")
    assert fails(run("pack", tmp_path / "no", tmp_path / "model"), "no such run or checkpoint")
    for command in (["generate", "-m"], ["chat"], ["verify"], ["inspect"]):
        assert fails(run(*command, tmp_path / "no", stdin="x"), str(tmp_path / "no"))


def test_generate_json_is_one_object(model):
    result = run("generate", "import os", "-m", model, "-n", 8, "--seed", 1, "--json")

    report = json.loads(result.stdout)

    assert report["tokens"] == 8
    assert report["finish_reason"] == "length"
    piped = run("generate", "-m", model, "-n", 8, "--seed", 1, "--json", stdin="import os")
    assert json.loads(piped.stdout)["text"] == report["text"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-p", "2"], ["--top-p must be above 0 and at most 1 but is 2.0"]),
        (["--kernels", "neon"], ["--kernels must be one of scalar", "neon"]),
        (["--max-tokens", str(1 << 42)], ["--max-tokens must be between 1 and"]),
        (["--max-tokens", str(1 << 38)], ["not enough memory", "--cache int4"]),
        (["--stop", ""], ["--stop must hold strings of at least one character"]),
    ],
)
def test_generate_mistakes_are_one_line(model, options, words):
    assert fails(run("generate", "x", "-m", model, *options), *words)


def test_generate_stops_at_the_stop_strings_of_the_model():
    turn = "<|user|>\nWho was Moses?\n<|end|>\n<|assistant|>\n"
    engine = Engine.load()

    options = ("-n", 200, "--seed", 1, "--cache", "f32", "--json")  # a text that ends its turn
    own = json.loads(run("generate", turn, *options).stdout)
    stream = engine.stream(
        turn,
        max_tokens=200,
        stop=engine.stop_strings,
        cache="f32",
        sampling=engine.sampling(seed=1),
    )

    assert own["finish_reason"] == "stop"
    assert own["text"] == "".join(stream).strip()
    assert engine.tokenizer.decode(stream.tokens).startswith(own["text"] + "\n<|end|>")


def test_generate_and_chat_use_the_packaged_model_by_default():
    generated = run("generate", "In the beginning", "-n", 8)
    lines = ["Tell me about the sea.", "", "Go on.", "/again", "/exit", "not read"]
    chatted = run("chat", "-n", 8, stdin="\n".join(lines))

    assert generated.returncode == chatted.returncode == 0, generated.stderr + chatted.stderr
    assert generated.stdout.startswith("In the beginning")
    assert len(generated.stdout) > len("In the beginning\n")
    assert chatted.stdout.strip()


def test_chat_mistakes_are_one_line(model, tmp_path):
    question = "Tell me about the sea."

    assert fails(run("chat", model, stdin=question), "chat_template.jinja: is missing", "generate")
    assert fails(run("chat", "--context", 4, stdin=question), "tokens but its context is 4")
    assert fails(run("chat", "--context", 1 << 42, stdin=question), "context must be between 1 and")
    assert fails(
        run("chat", "--context", 1 << 38, stdin=question), "not enough memory", "--context"
    )
    assert fails(run("chat", "--top-p", 2, stdin=question), "--top-p must be")
    assert fails(run("chat", stdin="/again\n"), "there is no message to withdraw yet")
    nested = f"/set temperature={'[' * 5000}\n"
    assert fails(run("chat", stdin=nested), "/set: temperature must be a number but is '[[[")
    assert fails(run("chat", stdin="/save a\0b\n"), "/save needs a file, such as /save chat.json")


@pytest.mark.parametrize(
    "given, spins",
    [
        ({}, "10000"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_pytorch_threads_spin_briefly_unless_the_environment_sets_it(tmp_path, given, spins):
    (tmp_path / "torch.py").write_text(
        "import os\nraise SystemExit(f'spins: {os.environ.get(\"GOMP_SPINCOUNT\")}')"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}

    result = subprocess.run(
        [sys.executable, "-m", "yocobit", "train", "absent.toml", "--out", str(tmp_path / "run")],
        env=environment | given | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    # The value at the import of PyTorch.
    assert result.stderr == f"spins: {spins}\n"


def test_standard_input_that_is_not_utf8_is_rejected(model):
    result = run("generate", "-m", model, stdin=b"ab\xff")

    assert result.returncode == 2
    assert result.stderr == "error: standard input is not UTF-8 (byte 2)\n"


@pytest.mark.parametrize(
    "command", [["generate", "x", "-m"], ["chat"], ["bench"], ["serve", "--port", 0], ["eval"]]
)
def test_attention_is_rejected_for_a_model_without_cross_layers(tmp_path, command):
    model = write_random_model(nano("transformer", "ternary"), tmp_path / "model").path
    texts = [__file__] if command == ["eval"] else []

    result = run(*command, model, *texts, "--attention", "index:2048", stdin="x")

    assert fails(result, "attention must not be given for a model without cross layers", "leave")


@pytest.mark.parametrize("command", [["generate", b"ab\xff"], ["chat"]])
def test_text_that_is_not_utf8_is_rejected_even_if_python_decodes_it(command):
    result = subprocess.run(
        [sys.executable, "-m", "yocobit", *command],
        input=b"ab\xff\n",
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )

    assert result.returncode == 2
    assert result.stderr == b"error: text is not UTF-8 (it has '\\udcff')\n"


def test_verify_reports_a_flipped_bit_and_generate_verify_rejects_it(model, tmp_path):
    import shutil

    broken = shutil.copytree(model, tmp_path / "model")
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "model.safetensors").write_bytes(data)

    result = run("verify", broken)
    as_json = run("verify", broken, "--json")

    assert result.returncode == as_json.returncode == 2
    assert "tensor '" in result.stderr
    assert json.loads(as_json.stdout)["ok"] is False
    assert fails(run("generate", "x", "-m", broken, "--verify"), "tensor '")


def test_inspect_json_equals_the_text(model):
    report = json.loads(run("inspect", model, "--json").stdout)
    shown = run("inspect", model).stdout

    assert f"{report['parameters']:,}" in shown
    assert f"{report['file_bytes']:,}" in shown
    assert f"{report['cache_bytes_per_token']['int8']:,} (int8)" in shown


def test_bench_prints_a_row_for_every_test(model):
    result = run("bench", model, "-p", "8,16", "-n", "4", "-d", "0,32", "-b", "1,2", "-r", "1")

    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines() if " @ d" in line] == [
        "pp8", "pp16", "tg4", "tg4", "pp8", "pp16", "tg4", "tg4",
    ]  # fmt: skip
    assert "DRAM GB/s" in result.stdout
    assert "…" not in result.stdout


def test_bench_json_of_a_shape_without_a_model():
    result = run("bench", "--shape", "nano", "-p", "8", "-n", "0", "-r", "2", "--no-limits",
                 "-t", "1,2", "--json")  # fmt: skip

    report = json.loads(result.stdout)
    assert [(row["test"], row["threads"]) for row in report["tests"]] == [
        ("pp8 @ d0", 1),
        ("pp8 @ d0", 2),
    ]
    assert report["model"]["name"] == "nano with random weights"
    assert report["limits"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["needs either MODEL or --shape; try: yocobit bench tiny"]),
        (["tiny", "--shape", "nano"], ["has both: 'tiny' and --shape 'nano'; leave one out"]),
        (["--shape", "7b"], ["--shape must be one of 2b4t,", "but is '7b'"]),
        (["--shape", "nano", "--cache", "q8"], ["--cache must be one of f32,", "but is 'q8'"]),
        (["--shape", "nano", "-d", "4000000000"], ["GB are available", "smaller --depth"]),
        (["missing"], ["missing: no such directory"]),
        (["https://example.com/x.gguf"], ["https://example.com/x.gguf: is not the URL of a model"]),
        (["missing", "--weights", "sign"], ["--weights and --head require --shape"]),
        (["--shape", "nano", "--weights", "f16", "--head", "int4"], ["--head requires"]),
        (["--shape", "150m", "--attention", "full"], ["attention", "without cross layers"]),
    ],
)
def test_bench_mistakes_are_one_line(arguments, words):
    assert fails(run("bench", *arguments), *words)


def test_plan_prints_placement_and_sources_for_a_data_sheet():
    result = run("plan", "--shape", "3b", "--context", 1048576, "--cache", "int4", "-b", 2,
                 "--machine", "groq")  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert "nothing was run on it" in result.stdout
    assert "https://" in result.stdout
    stacks = result.stdout.split("roofline")[2].splitlines()
    assert [line.split("  ")[0] for line in stacks[1:6]] == [
        "Transformer f16", "YOCO f16", "BitNet Transformer", "YOCO + BitNet", "this model",
    ]  # fmt: skip
    assert "…" not in result.stdout


def test_plan_counts_attended_positions_only():
    command = ("plan", "--shape", "3b", "--context", 1048576, "--machine", "groq", "--json")
    command += ("--cache", "f16")
    own = {}
    for attention in ("full", "index:2048"):
        report = json.loads(run(*command, "--attention", attention).stdout)
        assert report["model"]["attention"] == attention
        own[attention] = report["stacks"][-1]

    assert own["index:2048"]["traffic_bytes_by_level"]["SRAM"] < 2e9
    assert own["full"]["traffic_bytes_by_level"]["SRAM"] > 50e9
    assert own["index:2048"]["decode_tokens_per_s"] > 20 * own["full"]["decode_tokens_per_s"]


def test_plan_json_of_a_packed_model_predicts_for_this_machine(model):
    result = run("plan", model, "--context", 64, "--threads", 1, "--json")

    report = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert report["machine"]["name"] == "here"
    assert report["machine"]["levels"][-1]["name"] == "DRAM"
    assert report["stacks"][-1]["name"] == str(model)
    assert report["prediction"]["threads"] == 1
    assert report["prediction"]["decode_tokens_per_s"] > 0


def test_plan_draws_a_picture_and_requires_matplotlib(tmp_path):
    arguments = ("plan", "--shape", "nano", "--machine", "h100", "--picture")
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('no', name='matplotlib')\n")

    result = run(*arguments, tmp_path / "plan.png")
    lacking = subprocess.run(
        [sys.executable, "-m", "yocobit", *arguments, tmp_path / "other.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert fails(lacking, "a picture needs matplotlib", "[plot]")
    assert fails(run(*arguments, tmp_path / "no" / "plan.png"), "--picture", "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["needs either MODEL or --shape; try: yocobit plan tiny"]),
        (["tiny", "--shape", "nano"], ["has both: 'tiny' and --shape 'nano'; leave one out"]),
        (["--shape", "7b"], ["--shape must be one of 2b4t,", "but is '7b'"]),
        (["--shape", "nano", "--machine", "tpu"], ["--machine must be one of here,", "'tpu'"]),
        (["--shape", "nano", "--machine", "groq", "-t", "2"], ["--threads requires", "leave it"]),
        (["--shape", "nano", "--context", "0"], ["--context must be between 1 and", "is 0"]),
        (["missing"], ["missing: no such directory"]),
        (["missing", "--head", "int4"], ["--weights and --head require --shape"]),
        (["--shape", "nano", "--weights", "f16", "--head", "int4"], ["--head requires"]),
        (["--shape", "nano", "--attention", "index:100"], ["--attention must be full or index"]),
        (["--shape", "150m", "--attention", "full"], ["attention", "without cross layers"]),
        (["--shape", "nano", "--picture", "a.gif"], ["--picture must end in .png", "is a.gif"]),
    ],
)
def test_plan_mistakes_are_one_line(arguments, words):
    assert fails(run("plan", *arguments), *words)


def test_ctrl_c_ends_generation_quietly(model):
    process = subprocess.Popen(
        [sys.executable, "-m", "yocobit", "generate", "x", "-m", str(model), "-n", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.read(20)  # it has started
    process.send_signal(signal.SIGINT)

    _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert errors == ""


def test_ctrl_c_in_training_leaves_a_checkpoint(project):
    arguments = ("train", "config.toml", "--out", "run", "--set", "run.steps=100000")
    metrics = project / "run" / "metrics.jsonl"
    with (project / "output").open("w") as output:
        process = forked.Process(*arguments, stdout=output, cwd=project)
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)

        code = process.wait()

    with process.errors as errors:
        assert code in (0, 130), errors.read()
    command = "yocobit train config.toml --out run --set run.steps=100000 --resume"
    assert f"resume with: {command}\n" in (project / "output").read_text()
    assert list((project / "run" / "checkpoints").glob("step-*"))


def test_a_closed_pipe_is_not_an_error(model):
    command = f"{sys.executable} -m yocobit generate x -m {model} -n 2000 | head -c 10"

    result = subprocess.run(command, shell=True, capture_output=True, text=True)

    assert result.stderr == ""
