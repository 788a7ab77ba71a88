"""Runs: losses, records, console output, samples and best checkpoints."""

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from training_runs import records, run, write_toml

from yocobit.config import ConfigError, preset
from yocobit.data.tokenizer import train_tokenizer
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.tracking.progress import Progress
from yocobit.training import checkpoint, loop
from yocobit.training.config import load as load_config
from yocobit.training.sample import printable_sample, sample


def test_losses_are_equal_for_equal_seeds_and_differ_for_others(toml, tmp_path):
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(toml, tmp_path / name, "run.steps=3", f"run.seed={seed}")
        losses.append([record["loss"] for record in records(tmp_path / name)])

    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_metrics_have_a_record_per_step_with_rate_and_tokens(toml, tmp_path):
    run(toml, tmp_path / "run", "optim.learning_rate=0.5", "run.steps=6", "run.eval_every=4")

    found = records(tmp_path / "run")

    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6]
    assert [record["tokens"] for record in found] == [32, 64, 96, 128, 160, 192]
    rates = [0.25, 0.5, 0.5, 0.375, 0.25, 0.125]  # two steps of warm-up, then linear decay to zero
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


@pytest.mark.parametrize(
    ("prompt", "text", "printed"),
    [
        ("To", " the sea", "To the sea"),
        ("", "the sea\ufffd\ufffd", "the sea\ufffd\ufffd"),  # cut within a character
        ("", "the sea " * 10 + "\ufffd ", "the sea " * 10 + "\ufffd "),
        ("To", "\ufffd sea" * 5, "To [sample not printed: 5 of 25 characters are invalid UTF-8]"),
        ("", "\ufffd sea", "[sample not printed: 1 of 5 characters are invalid UTF-8]"),
    ],
)
def test_a_sample_with_much_invalid_utf8_is_not_printed(prompt, text, printed):
    assert printable_sample(prompt, text) == printed


def test_average_loss_of_the_progress_line_is_corrected_for_its_start(capsys):
    progress = Progress(Console(width=200), tokens_per_step=10)

    for step, loss in enumerate([10.0, 2.0, 2.0, 2.0], start=1):
        progress.update(step, 4, loss, loss, None)

    # Weights 0.95^3, 0.95^2, 0.95 and 1 over their sum.
    assert capsys.readouterr().out == "step 4/4  loss 3.849  3 tokens/s  0:00 left\n"


WARM_UP = "steps of warm-up: the learning rate reaches"


@pytest.mark.parametrize("budget", ["run.steps=3", "run.minutes=0.0005"])
def test_run_shorter_than_its_warm_up_warns(toml, tmp_path, capsys, budget):
    toml.write_text(toml.read_text().replace("warmup_steps = 2", "").replace('kind = "linear"', ""))
    config = load_config(toml, ["optim.recipe=bitnet", budget])

    saved = loop.train(config, tmp_path / "run", resume=False, console=Console(width=200))

    n = checkpoint.load_state(saved).total_steps
    message = f"warning: the run ends after {n} of its 375 {WARM_UP} {n / 375:.0%} and never decays"
    (line,) = (s for s in capsys.readouterr().out.splitlines() if WARM_UP in s)
    assert line.startswith(message)


@pytest.mark.parametrize(("steps", "n_lines"), [(2, 1), (3, 0)])
def test_run_longer_than_its_warm_up_does_not_warn(toml, tmp_path, capsys, steps, n_lines):
    config = load_config(toml, [f"run.steps={steps}"])

    loop.train(config, tmp_path / "run", resume=False, console=Console(width=200))

    assert capsys.readouterr().out.count(WARM_UP) == n_lines


def test_sample_is_the_same_for_the_same_seed():
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["def x"], 270)
    model = Decoder(preset("nano").replace(vocab_size=tokenizer.get_vocab_size()))

    texts = [sample(model, tokenizer, "def", 20, 1.0, seed) for seed in (0, 0, 1)]

    assert texts[0] == texts[1] != texts[2]


def test_missing_text_is_refused_with_its_path(toml, tmp_path):
    (tmp_path / "train.txt").unlink()

    with pytest.raises(ConfigError, match=r"train\.txt: no such file or directory"):
        run(toml, tmp_path / "run")


def test_best_checkpoint_is_that_of_the_lowest_evaluation(toml, tmp_path):
    """The learning rate rises until the model diverges: the best step is not the last."""
    settings = ["run.steps=12", "run.eval_every=2", "run.checkpoint_every=5", "run.keep=1"]
    diverging = [
        "schedule.warmup_steps=12",
        "optim.learning_rate=3.0",
        "optim.matrix_learning_rate=3.0",
    ]
    run(toml, tmp_path / "run", *settings, *diverging)

    bits = {r["step"]: b for r in records(tmp_path / "run") if (b := r.get("valid_bits_per_byte"))}
    lowest = min(bits, key=bits.get)
    best, last = checkpoints.best(tmp_path / "run"), checkpoints.last(tmp_path / "run")

    assert lowest < 12
    assert best.name == f"step-{lowest:06d}" and last.name == "step-000012"
    assert checkpoint.load_state(best).valid_bits_per_byte == bits[lowest]
    assert sorted(path.name for path in best.parent.iterdir()) == sorted({best.name, last.name})


def test_best_checkpoint_is_chosen_on_the_same_text_each_time(toml, tmp_path, monkeypatch):
    """The last evaluation is of the whole text: it is not comparable with the others."""
    sizes = []

    def fake(objective, text, end, context, max_tokens, processes, report):
        sizes.append(max_tokens)
        return 2.0 if max_tokens else 1.0

    monkeypatch.setattr(loop, "bits_per_byte", fake)
    saved = run(toml, tmp_path / "run", "run.eval_tokens=32")

    state = checkpoint.load_state(saved)
    assert sizes == [32, 32, None]
    assert (state.best_step, state.best_bits_per_byte, state.valid_bits_per_byte) == (6, 2.0, 1.0)


def test_evaluations_of_a_short_time_budget_are_limited_and_reported(tmp_path, monkeypatch, capsys):
    sizes = []

    def slow(objective, text, end, context, max_tokens, processes, report):
        now[0] += 0.1 * (max_tokens or len(text))
        sizes.append(max_tokens)
        return 1.0

    now = [0.0]
    monkeypatch.setattr(loop, "bits_per_byte", slow)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    update = loop.Loop._update

    def update_in_a_second(self, factor):
        now[0] += 1.0
        return update(self, factor)

    monkeypatch.setattr(loop.Loop, "_update", update_in_a_second)
    path = write_toml(tmp_path, n_valid=3000)
    console = Console(width=200)

    loop.train(
        load_config(path, ["run.minutes=1"]), tmp_path / "run", resume=False, console=console
    )

    assert sizes[2:] == [30] * (len(sizes) - 3) + [60]  # 3 and 6 of 60 seconds
    assert 40 < now[0] < 61
    assert "to fit in run.minutes, evaluations read 30 of" in capsys.readouterr().out
