"""Standard streams that are closed, full or not UTF-8: a result or one line, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from yocobit.pretrained import TINY


def each(first: tuple[str, ...], others: tuple[str, ...]) -> list:
    """Return parameters; the others are slow: each case is a new interpreter."""
    return [*first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


YOCOBIT = f"{sys.executable} -m yocobit"
GENERATE = f"{YOCOBIT} generate In -n 2 --threads 1 --seed 1"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        input=b"",
        capture_output=True,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        timeout=120,
    )


@pytest.mark.parametrize("encoding", each(("latin-1", "ascii:strict"), ("ascii", "cp1252")))
def test_characters_that_the_output_lacks_are_escaped(encoding):
    result = shell(f"{YOCOBIT} generate 'Tea ☕' -n 2 --threads 1", PYTHONIOENCODING=encoding)

    assert result.returncode == 0
    assert result.stdout.startswith(b"Tea \\u2615")
    assert result.stderr == b""


def test_an_error_that_the_output_cannot_encode_is_one_line():
    result = shell(f"{YOCOBIT} inspect 'no ☕'", PYTHONIOENCODING="ascii")

    assert result.returncode == 2
    assert result.stderr.startswith(b"error: no \\u2615: no such directory")
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "redirection",
    each((">&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 | true"), ("2>&-", "<&-", "<&- >&-")),
)
def test_a_command_works_without_a_standard_stream(redirection):
    result = shell(f"{GENERATE} {redirection}")

    assert result.returncode == 0
    assert result.stderr == b""


def test_generate_and_chat_find_no_text_on_a_closed_input():
    assert shell(f"{YOCOBIT} chat --threads 1 <&-").returncode == 0
    assert shell(f"{YOCOBIT} generate -n 1 --threads 1 <&-").returncode == 0


@pytest.mark.parametrize(
    "command", each((GENERATE, f"{YOCOBIT} --help"), (f"{YOCOBIT} inspect {TINY}",))
)
def test_a_full_output_is_one_line(command):
    result = shell(f"{command} > /dev/full")

    assert result.returncode == 2
    assert result.stderr.startswith(b"error: the output: cannot be written (No space left")
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "redirection", each((">&- 2>&-", "2>/dev/full", "| true"), ("2>&-", "> /dev/full"))
)
def test_the_exit_code_of_an_error_survives_its_streams(redirection):
    assert shell(f"{YOCOBIT} generate In --threads 0 {redirection}").returncode == 2


def test_the_exit_code_of_verify_survives_a_closed_pipe(tmp_path):
    for file in TINY.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)

    assert shell(f"{YOCOBIT} verify --json {tmp_path} | true").returncode == 2


@pytest.mark.parametrize("redirection", each(("<&- >&- 2>&-",), ("2>&-", "2>/dev/full")))
def test_a_server_without_standard_error_serves(redirection):
    script = f"""
        {YOCOBIT} serve --port 0 --threads 1 {redirection} &
        server=$!
        trap "kill -9 $server" EXIT
        until port=$({sys.executable} -c "$PORT" $server) &&
            curl --silent --fail http://127.0.0.1:$port/health
        do
            kill -0 $server || exit 7
            sleep 0.1
        done
        kill $server
        wait $server
    """
    result = shell(script, PORT=LISTENING_PORT)

    assert result.returncode == 0, result
    assert b"ok" in result.stdout


# Prints the port that a process listens on: the inodes of its sockets, looked up in /proc/net/tcp.
LISTENING_PORT = """
import os, sys
folder = f"/proc/{sys.argv[1]}/fd"
links = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
for line in open(f"/proc/{sys.argv[1]}/net/tcp").readlines()[1:]:
    fields = line.split()
    if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
        sys.exit(print(int(fields[1].split(":")[1], 16)))
sys.exit(1)
"""
