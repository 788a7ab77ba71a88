"""The directory of a run: nothing of a user's is replaced, and one training writes to it."""

import os
import shutil
import signal
from pathlib import Path

import forked
import pytest
from training_runs import run

from yocobit.config import ConfigError
from yocobit.packing.checkpoints import LOCK, is_run
from yocobit.training import loop
from yocobit.training.run_lock import locked


def contents(directory: Path) -> dict[str, bytes | None]:
    paths = sorted(directory.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture(params=["data", "readme", "hidden", "manifest", "checkpoints", "lock directory"])
def foreign(request, tmp_path) -> Path:
    """A directory of a user's that a run would write to."""
    directory = tmp_path / "mine"
    files = {
        "data": ["data/tokens.bin", "data/loss.mask", "data/tokenizer.json"],
        "readme": ["README.md"],
        "hidden": [".git/config"],
        "manifest": ["run.json"],
        "checkpoints": ["checkpoints/step-000001/model.pt"],
        "lock directory": [f"{LOCK}/file"],
    }
    for name in files[request.param]:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return directory


@pytest.mark.parametrize("resume", [False, True])
def test_directory_that_is_not_a_run_is_refused_and_unchanged(toml, foreign, resume):
    before = contents(foreign)

    with pytest.raises(ConfigError, match=r"mine: (must be new, empty or a run|has no run to res)"):
        run(toml, foreign, resume=resume)

    assert contents(foreign) == before


def test_working_directory_is_refused_as_out(toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)

    for out in (Path("."), Path("")):
        with pytest.raises(ConfigError, match=r"\.: must be new, empty or a run but has run\.toml"):
            run(toml, out)

    assert contents(tmp_path) == before


def test_dangling_symbolic_link_is_refused_as_out(toml, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent")

    for resume in (False, True):
        with pytest.raises(ConfigError, match="link: is a symbolic link to a missing directory"):
            run(toml, tmp_path / "link", resume=resume)

    assert not (tmp_path / "absent").exists()


def test_refused_run_leaves_no_directory(toml, tmp_path):
    (tmp_path / "train.txt").unlink()

    with pytest.raises(ConfigError, match="no such file"):
        run(toml, tmp_path / "new" / "run")

    assert not (tmp_path / "new").exists()


def test_run_that_was_killed_before_its_manifest_is_a_run(toml, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(toml, out, "run.steps=1")
    for name in ("run.json", "README.md", "metrics.jsonl"):
        (out / name).unlink()
    (out / "checkpoints" / "step-000001").rename(out / "checkpoints" / ".partial-1")

    assert is_run(out)
    assert run(toml, out, "run.steps=1", resume=True).name == "step-000001"


def test_run_of_an_earlier_version_without_a_lock_file_is_a_run(toml, tmp_path):
    run(toml, tmp_path / "run", "run.steps=1")
    (tmp_path / "run" / LOCK).unlink()

    assert run(toml, tmp_path / "run", "run.steps=2", resume=True).name == "step-000002"


def test_files_of_a_user_in_a_run_are_kept(toml, tmp_path):
    out = tmp_path / "run"
    run(toml, out, "run.steps=1")
    (out / "README.md").write_text("mine")
    (out / "data" / "mine.bin").write_text("mine")
    (out / "data" / "index.json").write_text("damaged")  # the corpus is tokenised again

    run(toml, out, "run.steps=2", resume=True)

    assert (out / "README.md").read_text() == (out / "data" / "mine.bin").read_text() == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_second_training_in_a_directory_is_refused_with_the_name_of_the_first(
    toml, tmp_path, resume
):
    out = tmp_path / "run"
    run(toml, out, "run.steps=1")
    before = contents(out)

    message = rf"run: is being trained by process {os.getpid()} on \S+ since 2\d\d\d-.*; stop it"
    with locked(out) as warning, pytest.raises(ConfigError, match=message):
        run(toml, out, "run.steps=2", resume=resume)

    assert warning is None
    before.pop(str(out / LOCK))
    after = contents(out)
    after.pop(str(out / LOCK))
    assert after == before


def test_second_training_is_refused_before_the_first_has_a_checkpoint(toml, tmp_path, monkeypatch):
    out, refused = tmp_path / "run", []
    set_up = loop.set_up

    def second_inside(*args, **kwargs):
        if not refused:
            refused.append(True)
            with pytest.raises(ConfigError, match="is being trained by process"):
                run(toml, out, "run.steps=1")
        return set_up(*args, **kwargs)

    monkeypatch.setattr(loop, "set_up", second_inside)

    assert run(toml, out, "run.steps=1").name == "step-000001" and refused


def test_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from yocobit.training import run_lock\n"
        "with run_lock.locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert forked.run(tmp_path / "run", code=code).returncode == -signal.SIGKILL

    assert (tmp_path / "run" / LOCK).stat().st_size > 0
    with locked(tmp_path / "run") as warning:
        assert warning is None


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)

    with locked(tmp_path / "run") as warning:
        assert "this file system has no locks (Operation not supported)" in warning


@pytest.mark.parametrize("content", [b"\x89PNG a photo", b"notes", b" <svg/>"])
def test_plot_keeps_a_file_of_another_program(straight, tmp_path, content):
    from yocobit.tracking.plot import plot_runs

    out = tmp_path / "photo.png"
    out.write_bytes(content)

    with pytest.raises(ConfigError, match=r"photo\.png: exists and is not a plot drawn by matplot"):
        plot_runs([straight], out)
    assert out.read_bytes() == content


def test_plot_replaces_its_own_file(straight, tmp_path):
    from yocobit.tracking.plot import plot_runs

    for _ in range(2):
        plot_runs([straight], tmp_path / "runs.png")


@pytest.mark.parametrize("name", ["file", "link"])
def test_pack_refuses_a_file_and_a_dangling_link(straight, tmp_path, name):
    from yocobit.packing import pack

    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "absent")

    with pytest.raises(ConfigError, match=rf"{name}: .*choose another name"):
        pack(straight, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "absent").exists()


@pytest.mark.parametrize("name", ["data", "checkpoints", LOCK])
def test_run_with_another_kind_of_file_in_place_of_its_own_is_refused(toml, tmp_path, name):
    run_dir = tmp_path / "run"
    with locked(run_dir):
        (run_dir / "run.json").write_text('{"config": {}, "corpus": {}, "starts": []}')
    (run_dir / name).unlink(missing_ok=True)
    os.mkfifo(run_dir / name)

    with pytest.raises(ConfigError, match=rf"{name}: must be a .*; delete it, or choose another"):
        run(toml, run_dir)


def test_fifos_and_links_in_place_of_readme_and_sample_do_not_block_a_run(toml, straight, tmp_path):
    run_dir = shutil.copytree(straight, tmp_path / "run")
    readme, sample = run_dir / "README.md", run_dir / "samples" / "step-000014.txt"
    readme.unlink()
    os.mkfifo(readme)
    sample.parent.mkdir(exist_ok=True)
    sample.symlink_to(sample.name)  # a loop

    (run_dir / "checkpoints" / "step-000099").symlink_to("step-000099")

    run(toml, run_dir, "run.steps=14", resume=True)

    assert readme.is_fifo()
