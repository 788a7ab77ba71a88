"""Runs: what stops one changes nothing, and what it reports is what happened.

Letters: B batch   T positions   C model width   V vocabulary
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file

from yocobit.config import ConfigError, preset
from yocobit.model import Decoder
from yocobit.model.bitlinear import BitLinear
from yocobit.training import TrainingError, checkpoint, load_model, loop
from yocobit.training.config import TrainConfig
from yocobit.training.config import load as load_config
from yocobit.training.corpus import prepare
from yocobit.training.loss import head_cross_entropy
from yocobit.training.sample import sample
from yocobit.training.tokenizer import end_token, train_tokenizer
from yocobit.training.validation import bits_per_byte

CONFIGS = Path(__file__).parent.parent / "configs"
TOML = """
[model]
preset = "nano"

[data]
train = ["train.txt"]
valid = ["valid.txt"]
vocab_size = 270
context = 16

[optim]
optimizer = "muon"
batch_size = 2

[schedule]
kind = "linear"
warmup_steps = 2

[run]
steps = 12
checkpoint_every = 4
eval_every = 6
threads = 1
"""


@pytest.fixture
def toml(tmp_path) -> Path:
    """A configuration and its text: words in random order, so that a step has work to do."""
    words = random.Random(0)
    for name, size in (("train.txt", 900), ("valid.txt", 60)):
        text = " ".join(words.choice(["def", "return", "x", "y", "+", "\n"]) for _ in range(size))
        (tmp_path / name).write_text(text)
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    return path


def run(toml: Path, out: Path, *overrides: str, resume: bool = False) -> Path:
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    return loop.train(load_config(toml, overrides), out, resume=resume, console=console)


def records(out: Path) -> list[dict]:
    """Read metrics.jsonl without the times, which no two runs share."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_run(out: Path, expected: Path) -> None:
    """All losses and the final weights and optimizer state are equal, to the last bit."""
    assert records(out) == records(expected)
    for name in ("model.safetensors", "optimizer.safetensors"):
        path, other = (checkpoint.last(run_dir) / name for run_dir in (out, expected))
        tensors, others = load_file(path), load_file(other)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)


# ---- what stops a run ----

# Runs the configuration, and kills itself at the n-th call of a function.
KILLED_RUN = """
import importlib, os, signal, sys
from pathlib import Path
from rich.console import Console
from yocobit.training import load, train

toml, out, module, name, n = sys.argv[1:]
owner, calls = importlib.import_module(module), 0
function = getattr(owner, name)

def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(n):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

setattr(owner, name, killing)
train(load(Path(toml)), Path(out), resume=True, console=Console())
"""


def test_run_killed_again_and_again_equals_one_that_never_stopped(toml, tmp_path):
    run(toml, tmp_path / "straight")
    out = tmp_path / "killed"
    moments = [
        # In the middle of a step, no checkpoint yet.
        ("yocobit.training.loop", "rate_factor", 3),
        # While the first checkpoint is flushed: half of it is there, under no name.
        ("yocobit.training.checkpoint", "flush", 4),
        # Steps after a checkpoint: metrics are ahead of it.
        ("yocobit.training.loop", "rate_factor", 7),
        # While the metrics of the steps that are undone are dropped.
        ("os", "replace", 1),
    ]

    for module, name, n in moments:
        command = [sys.executable, "-c", KILLED_RUN, str(toml), str(out), module, name, str(n)]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    run(toml, out, resume=True)

    assert_same_run(out, tmp_path / "straight")
    assert not list((out / "checkpoints").glob(".partial*"))


class Killed(BaseException):
    """Stands for kill -9 where the process must live on; no handler of ours may run."""


@pytest.mark.parametrize("call", range(1, 9))
def test_run_killed_at_any_moment_of_a_checkpoint_resumes_identically(
    toml, tmp_path, monkeypatch, call
):
    run(toml, tmp_path / "straight")
    out, calls = tmp_path / "killed", count(1)

    def killing(function):
        def call_or_die(*args, **kwargs):
            if next(calls) == call:
                raise Killed
            return function(*args, **kwargs)

        return call_or_die

    with monkeypatch.context() as patch:
        for name in ("save_file", "write_json"):
            patch.setattr(checkpoint, name, killing(getattr(checkpoint, name)))
        patch.setattr(Path, "rename", killing(Path.rename))
        patch.setattr(shutil, "rmtree", killing(shutil.rmtree))
        with pytest.raises(Killed):
            run(toml, out, "run.keep=1")
    run(toml, out, "run.keep=1", resume=True)

    assert_same_run(out, tmp_path / "straight")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_after_its_step_and_resuming_is_identical(
    toml, tmp_path, monkeypatch, number
):
    run(toml, tmp_path / "straight")
    out = tmp_path / "stopped"

    with monkeypatch.context() as patch:
        patch.setattr(loop, "rate_factor", signal_at(7, number))
        saved = run(toml, out)
    handler_after = signal.getsignal(number)
    n_records = len(records(out))
    run(toml, out, resume=True)

    assert saved.name == "step-000007" and n_records == 7
    assert handler_after in (signal.SIG_DFL, signal.default_int_handler)
    assert_same_run(out, tmp_path / "straight")


def signal_at(step: int, number: int):
    """Return rate_factor that raises a signal while the step of that number (from 1) is done."""
    original = loop.rate_factor

    def rate_factor(schedule, done, total):
        if done + 1 == step:
            signal.raise_signal(number)
        return original(schedule, done, total)

    return rate_factor


def test_resume_ignores_a_torn_checkpoint(toml, tmp_path):
    run(toml, tmp_path / "straight")
    out = tmp_path / "torn"
    shutil.copytree(tmp_path / "straight", out)
    newest = checkpoint.last(out)
    (newest / "model.safetensors").write_bytes(b"torn")

    run(toml, out, resume=True)

    assert checkpoint.last(out) == newest
    assert_same_run(out, tmp_path / "straight")


def test_resume_of_a_finished_run_changes_nothing(toml, tmp_path):
    out = tmp_path / "run"
    saved = run(toml, out)
    before = records(out), saved.stat().st_mtime_ns

    again = run(toml, out, resume=True)

    assert (records(out), again.stat().st_mtime_ns) == before
    assert again == saved


def test_run_repeats_itself_and_another_seed_does_not(toml, tmp_path):
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(toml, tmp_path / name, "run.steps=3", f"run.seed={seed}")
        losses.append([record["loss"] for record in records(tmp_path / name)])

    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_budget_of_minutes_is_turned_into_steps_once(toml, tmp_path, monkeypatch):
    minutes = "run.minutes=0.16"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", clock(step_s=0.2))
        run(toml, tmp_path / "straight", minutes)
    out = tmp_path / "stopped"

    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", clock(step_s=0.2))
        patch.setattr(loop, "rate_factor", signal_at(loop._MEASURED_STEPS + 3, signal.SIGTERM))
        run(toml, out, minutes)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", clock(step_s=9.0))  # a slower machine has the same plan
        run(toml, out, minutes, resume=True)

    total = checkpoint.load_state(checkpoint.last(out)).total_steps
    assert total is not None and total > loop._MEASURED_STEPS + 3
    assert_same_run(out, tmp_path / "straight")


def test_plan_of_a_budget_survives_a_kill_right_after_it(toml, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(loop, "time", clock(step_s=0.2))
    monkeypatch.setattr(loop, "rate_factor", raise_at(loop._MEASURED_STEPS + 1))

    with pytest.raises(Killed):
        run(toml, out, "run.minutes=0.16", "run.checkpoint_every=1000")

    state = checkpoint.load_state(checkpoint.last(out))
    assert state.step == loop._MEASURED_STEPS and state.total_steps is not None


def raise_at(step: int):
    original = loop.rate_factor

    def rate_factor(schedule, done, total):
        if done + 1 == step:
            raise Killed
        return original(schedule, done, total)

    return rate_factor


def clock(step_s: float) -> SimpleNamespace:
    """Return a `time` whose clock goes on by a third of a step whenever it is read."""
    ticks = count()
    return SimpleNamespace(monotonic=lambda: next(ticks) * step_s / 3)


# ---- what a step does ----


def test_accumulation_equals_a_bigger_batch_to_rounding(toml, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # float32 products
    run(toml, tmp_path / "big", "run.steps=1", "optim.batch_size=6")
    run(toml, tmp_path / "parts", "run.steps=1", "optim.batch_size=2", "optim.accumulation=3")

    (big,), (parts,) = records(tmp_path / "big"), records(tmp_path / "parts")

    # Sums of 96 tokens in another order: 96 eps = 1.1e-5, relative.
    assert parts["loss"] == pytest.approx(big["loss"], rel=1.2e-5)
    assert parts["grad_norm"] == pytest.approx(big["grad_norm"], rel=1.2e-5)
    assert parts["tokens"] == big["tokens"] == 96


def test_steps_read_the_windows_of_the_text_one_after_the_other(toml, tmp_path, monkeypatch):
    read = []
    batch = loop.Corpus.batch

    def noting(self, seed, first, size, context):
        read.append((first, size))
        return batch(self, seed, first, size, context)

    monkeypatch.setattr(loop.Corpus, "batch", noting)
    run(toml, tmp_path / "run", "run.steps=2", "optim.accumulation=3")

    assert read == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 2), (10, 2)]


def test_gradient_above_the_clip_is_scaled_to_it(toml, tmp_path, monkeypatch):
    norms = []
    step = loop.Optimizers.step

    def noting(self, *factors):
        gradients = [p.grad for part in self.parts for g in part.param_groups for p in g["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).double().norm()))
        step(self, *factors)

    monkeypatch.setattr(loop.Optimizers, "step", noting)
    run(toml, tmp_path / "clipped", "run.steps=1", "optim.grad_clip=0.01")
    run(toml, tmp_path / "free", "run.steps=1", "optim.grad_clip=0")

    # clip_grad_norm_ divides by norm + 1e-6; norms are float32 sums of 2e5 squares.
    assert norms[0] == pytest.approx(0.01, rel=1e-3)
    assert norms[1] == pytest.approx(records(tmp_path / "free")[0]["grad_norm"], rel=1e-3)
    assert norms[1] > 0.01


def test_loss_that_is_not_finite_stops_the_run_and_names_the_remedy(toml, tmp_path):
    with pytest.raises(TrainingError, match=r"step \d+: loss is .*lower optim.learning_rate"):
        run(toml, tmp_path / "run", "optim.learning_rate=1e38", "optim.optimizer=adam")


@pytest.mark.parametrize("n_tokens", [1, 512, 700])
def test_head_cross_entropy_equals_that_of_all_logits(n_tokens):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_tokens, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (n_tokens,), generator=generator)

    loss = head_cross_entropy(x, weight, targets)
    expected = F.cross_entropy(x @ weight.mT, targets, reduction="sum")

    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(2 * loss, (x, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(2 * expected, (x, weight)))


def test_head_cross_entropy_ignores_targets_below_zero():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, -1, 7, -1, -1, 0, 49, 8, -1])

    loss = head_cross_entropy(x, weight, targets)
    expected = F.cross_entropy(x @ weight.mT, targets, reduction="sum", ignore_index=-1)

    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, (x, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, weight)))


@pytest.mark.parametrize("kind", ["ternary", "sign"])
def test_native_products_change_gradients_by_bfloat16_rounding_only(kind):
    generator = torch.Generator().manual_seed(0)
    linear = BitLinear(64, 48, kind)
    torch.nn.init.normal_(linear.weight, generator=generator)
    x = torch.randn(5, 7, 64, generator=generator, requires_grad=True)
    grad = torch.randn(5, 7, 48, generator=generator)

    y, *gradients = products(linear, x, grad, "highest")
    fast_y, *fast_gradients = products(linear, x, grad, "medium")

    assert torch.equal(fast_y, y)  # exact integers either way
    for fast, exact in zip(fast_gradients, gradients, strict=True):
        # Three roundings of at most 2^-9 each (two factors and the result), of random sign.
        assert (fast - exact).norm() < 3 * 2**-9 * exact.norm()


def products(linear, x, grad, precision):
    """Return y, and the gradients of x and of the weight, at a precision of products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        y = linear(x)
        return y.detach(), *torch.autograd.grad(y, (x, linear.weight), grad)
    finally:
        torch.set_float32_matmul_precision(before)


def test_train_restores_the_precision_of_products(toml, tmp_path):
    before = torch.get_float32_matmul_precision()

    run(toml, tmp_path / "run", "run.steps=1")

    assert torch.get_float32_matmul_precision() == before


# ---- what a run reports ----


@pytest.fixture
def corpus(toml, tmp_path):
    config = load_config(toml)
    return prepare(config.data, 270, tmp_path / "data")


@pytest.mark.parametrize("context", [1, 7, 16, 1000])
def test_bits_per_byte_equals_a_sum_over_single_predictions(corpus, context):
    torch.manual_seed(0)
    model = Decoder(preset("nano").replace(vocab_size=270)).double()
    tokens, half = corpus.valid.read(0, len(corpus.valid)).tolist(), (context + 1) // 2
    end = end_token(corpus.tokenizer)
    text = [end, *tokens]  # what is seen before token i: text[:i + 1]

    nats = 0.0
    for i, token in enumerate(tokens):
        last = (i // half + 1) * half  # of the window that scores i, exclusive
        begin = max(0, last - context)
        document = max((j for j in range(i + 1) if text[j] == end), default=0)
        seen = text[max(begin, document) : i + 1]
        log_p = model(torch.tensor([seen]))[0, -1].log_softmax(dim=-1)
        nats -= log_p[token].item()
    n_bytes = len((corpus.tokenizer.decode(tokens)).encode())

    found = bits_per_byte(model, corpus.valid, end, context)
    # float64, but the int8 rounding of activations may fall differently for a last-bit difference.
    assert found == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-4)


def test_bits_per_byte_of_a_uniform_model_is_the_size_of_its_tokens(corpus):
    model = Decoder(preset("nano").replace(vocab_size=270))
    torch.nn.init.zeros_(model.head.weight)

    whole = bits_per_byte(model, corpus.valid, 0, 16)
    part = bits_per_byte(model, corpus.valid, 0, 16, max_tokens=40)

    expected = len(corpus.valid) * math.log2(270) / corpus.valid.n_bytes
    # float32 log-probabilities: eps relative to ln 270, and a few roundings.
    assert whole == pytest.approx(expected, rel=1e-6)
    assert part == pytest.approx(expected, rel=1e-6)


def test_last_record_is_of_the_whole_validation_text_and_the_saved_model(toml, tmp_path):
    out = tmp_path / "run"
    saved = run(toml, out, "run.eval_tokens=20")
    config = load_config(toml)
    corpus = prepare(config.data, 270, out / "data")

    found = bits_per_byte(load_model(saved), corpus.valid, 0, config.data.context)

    # Measured once with bfloat16 in the head's product where the CPU has it: 2^-9 of a logit.
    assert records(out)[-1]["valid_bits_per_byte"] == pytest.approx(found, rel=2e-3)
    assert checkpoint.load_state(saved).valid_bits_per_byte == pytest.approx(found, rel=2e-3)


def test_metrics_have_a_record_per_step_with_rate_and_tokens(toml, tmp_path):
    run(toml, tmp_path / "run", "optim.learning_rate=0.5", "run.steps=6", "run.eval_every=4")

    found = records(tmp_path / "run")

    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6]
    assert [record["tokens"] for record in found] == [32, 64, 96, 128, 160, 192]
    rates = [0.25, 0.5, 0.5, 0.375, 0.25, 0.125]  # two steps of warm-up, then to zero
    assert [record["lr"] for record in found] == pytest.approx(rates)
    with_bits = [record["step"] for record in found if "valid_bits_per_byte" in record]
    assert with_bits == [4, 6]


def test_training_lowers_the_loss(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=40", "optim.learning_rate=0.01")

    losses = [record["loss"] for record in records(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_console_shows_loss_speed_remaining_time_and_sample(toml, tmp_path, capsys):
    console = Console(width=200)
    overrides = ["run.sample_every=12", "run.prompt=def x", "run.steps=12"]

    loop.train(load_config(toml, overrides), tmp_path / "run", resume=False, console=console)

    shown = capsys.readouterr().out
    assert "vocabulary 270" in shown
    assert "step 12/12  loss" in shown and "tokens/s" in shown and "0:00 left" in shown
    assert "step 12: def x" in shown
    assert "bits/byte on the validation text" in shown


def test_sample_is_the_same_for_the_same_seed():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["def x"], 270)
    model = Decoder(preset("nano").replace(vocab_size=tokenizer.get_vocab_size()))

    texts = [sample(model, tokenizer, "def", 20, 1.0, seed) for seed in (0, 0, 1)]

    assert texts[0] == texts[1] != texts[2]


# ---- what is refused ----


def test_second_run_in_the_same_directory_is_refused_without_resume(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=1")

    with pytest.raises(ConfigError, match="already holds a run; pass --resume"):
        run(toml, tmp_path / "run", "run.steps=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=1", "run.seed was 0 and is now 1"),
        ("optim.batch_size=3", "optim.batch_size was 2 and is now 3"),
        ("model.d_ff=64", "model.d_ff was 128 and is now 64"),
        ("data.context=8", "data.context was 16 and is now 8"),
        ("data.vocab_size=260", "data.vocab_size was 270 and is now 260"),
    ],
)
def test_resume_with_another_setting_is_refused_with_both_values(toml, tmp_path, override, message):
    run(toml, tmp_path / "run", "run.steps=1")

    with pytest.raises(ConfigError, match=message):
        run(toml, tmp_path / "run", "run.steps=1", override, resume=True)


def test_resume_on_changed_text_is_refused(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=1")
    with (tmp_path / "train.txt").open("a") as file:
        file.write("more")

    with pytest.raises(ConfigError, match="cannot resume, the text has changed"):
        run(toml, tmp_path / "run", "run.steps=1", resume=True)


def test_resume_with_more_steps_goes_on(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=4")

    saved = run(toml, tmp_path / "run", "run.steps=6", resume=True)

    assert saved.name == "step-000006"


def test_out_that_is_a_file_is_refused(toml, tmp_path):
    with pytest.raises(ConfigError, match="must be a directory but is a file"):
        run(toml, tmp_path / "train.txt")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=[]", r"\[data\]: train must name at least one file or directory"),
        ("data.train=x", r"\[data\]: train must be a list, each item a string or a table but is"),
        ("data.valid=[]", r"\[data\]: give either valid \(files\) or valid_every"),
        ("data.valid_every=1", r"\[data\]: valid_every must be at least 2 but is 1"),
        ("data.vocab_size=256", r"vocab_size must be at least 257.* but is 256"),
        ("data.context=0", r"\[data\]: context must be at least 1 but is 0"),
        ("data.words=1", r"\[data\]: unknown key 'words'; known keys: train, valid"),
        ("optim.optimizer=sgd", r"\[optim\]: optimizer must be one of 'adam', 'adamw', 'muon'"),
        ("optim.learning_rate=0", r"\[optim\]: learning_rate must be above 0 but is 0"),
        ("optim.learning_rate=nan", r"\[optim\]: learning_rate must be above 0 but is nan"),
        ("optim.head_learning_rate=-1", r"head_learning_rate must be above 0 but is -1"),
        ("optim.betas=[0.9]", r"\[optim\]: betas must be two numbers"),
        ("optim.betas=[0.9, 1.0]", r"\[optim\]: betas must be two numbers"),
        ("optim.eps=0", r"\[optim\]: eps must be above 0"),
        ("optim.momentum=1", r"\[optim\]: momentum must be at least 0 and below 1"),
        ("optim.weight_decay=-0.1", r"\[optim\]: weight_decay must be at least 0"),
        ("optim.grad_clip=-1", r"\[optim\]: grad_clip must be at least 0"),
        ("optim.batch_size=0", r"\[optim\]: batch_size must be at least 1"),
        ("optim.batch_size=1.5", r"\[optim\]: batch_size must be an integer but is 1.5"),
        ("optim.accumulation=0", r"\[optim\]: accumulation must be at least 1"),
        ("schedule.kind=poly", r"\[schedule\]: kind must be one of 'step', 'linear'"),
        ("schedule.warmup_steps=-1", r"\[schedule\]: warmup_steps must be at least 0"),
        ("schedule.step_size=0", r"\[schedule\]: step_size must be at least 1"),
        ("schedule.min_ratio=2", r"\[schedule\]: min_ratio must be between 0 and 1"),
        ("schedule.gamma=-1", r"\[schedule\]: gamma must be between 0 and 1"),
        ("schedule.second_ratio=2", r"\[schedule\]: second_ratio must be between 0 and 1"),
        ("schedule.decay_fraction=0", r"decay_fraction must be above 0 and at most 1 but is 0"),
        ("run.steps=0", r"\[run\]: steps must be at least 1 but is 0"),
        ("run.minutes=0", r"\[run\]: minutes must be above 0 but is 0"),
        ("run.eval_every=0", r"\[run\]: eval_every must be at least 1"),
        ("run.eval_tokens=0", r"\[run\]: eval_tokens must be at least 1"),
        ("run.sample_every=-1", r"\[run\]: sample_every must be at least 0"),
        ("run.sample_tokens=0", r"\[run\]: sample_tokens must be at least 1"),
        ("run.checkpoint_every=0", r"\[run\]: checkpoint_every must be at least 1"),
        ("run.keep=0", r"\[run\]: keep must be at least 1"),
        ("run.seed=-1", r"\[run\]: seed must be at least 0"),
        ("run.threads=0", r"\[run\]: threads must be at least 1"),
        ("run.prompt=1", r"\[run\]: prompt must be a string but is 1"),
        ("model.preset=huge", r"preset must be one of nano, tiny, .* but is 'huge'"),
        ("model.width=1", r"\[model\]: unknown key 'width'"),
        ("model.d_model=12", r"\[model\]: d_model must be a multiple of 8 but is 12"),
        ("nothing.x=1", r"unknown section 'nothing'; known: model, data, optim"),
        ("run.steps", r"override must look like section.key=value but is 'run.steps'"),
        ("steps=1", r"override must look like section.key=value but is 'steps=1'"),
    ],
)
def test_setting_that_cannot_work_is_refused_in_one_line(toml, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(toml, [override])

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run.toml: no such file"),
        ("[run", "run.toml: is not valid TOML"),
        ("run = 1", "run.toml: 'run' must be a section but is 1"),
        ("[data]\ntrain = ['x']", r"give either valid \(files\) or valid_every"),
        ("[run]\nsteps = 1", r"\[data\]: key 'train' is missing"),
        (TOML.replace("steps = 12", ""), r"\[run\]: give either steps or minutes"),
        (TOML.replace("steps = 12", "steps = 1\nminutes = 1"), "give either steps or minutes"),
        (TOML.replace("[optim]", "tokenizer = 'x'\n[optim]"), "either vocab_size or tokenizer"),
        (
            TOML.replace('preset = "nano"', "").replace("vocab_size = 270", ""),
            r"\[model\]: give data.vocab_size, data.tokenizer or a preset",
        ),
        (TOML.replace('preset = "nano"', ""), r"\[model\]: key 'd_model' is missing"),
    ],
)
def test_file_that_cannot_work_is_refused_in_one_line(toml, content, message):
    if content is None:
        toml.unlink()
    else:
        toml.write_text(content)

    with pytest.raises(ConfigError, match=message):
        load_config(toml)


def test_directory_as_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a directory; name a TOML file"):
        load_config(tmp_path)


def test_missing_text_is_named(toml, tmp_path):
    (tmp_path / "train.txt").unlink()

    with pytest.raises(ConfigError, match=r"train\.txt: no such file or directory"):
        run(toml, tmp_path / "run")


# ---- configurations ----


def test_paths_are_relative_to_the_file_and_of_overrides_to_the_working_directory(
    toml, tmp_path, monkeypatch
):
    monkeypatch.chdir("/")

    assert load_config(toml).data.train == (str(tmp_path / "train.txt"),)
    assert load_config(toml, ["data.train=['x.txt']"]).data.train == ("/x.txt",)


def test_override_replaces_its_alternative(toml):
    assert load_config(toml, ["run.minutes=2"]).run.steps is None
    assert load_config(toml, ["data.valid_every=9"]).data.valid == ()


def test_config_comes_back_from_its_dictionary(toml):
    config = load_config(toml, ["optim.betas=[0.8, 0.9]"])

    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())), "x") == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_configuration_of_the_repository_is_valid(path):
    assert load_config(path).model.weights == "ternary"
