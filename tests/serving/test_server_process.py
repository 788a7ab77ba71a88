"""`yocobit serve` as a process: startup, shutdown, and reproducible responses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import forked
import httpx
import pytest
from servers import NO_END, wait_for

from yocobit import cli
from yocobit.errors import UserError
from yocobit.packing import read_model
from yocobit.pretrained import TINY
from yocobit.serving import create_app
from yocobit.serving.http.server import _listen

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SEA = [{"role": "user", "content": "Tell me about the sea."}]


# `yocobit`, with less time for clients to read the rest of their responses on shutdown.
PROGRAM = """
from yocobit import cli
from yocobit.serving.http import server

server._FLUSH_S = 1
cli.main()
"""


# The same without the time limit after which the process exits, whatever it still does.
UNTIMED = "from yocobit.serving.http import server\nserver._EXIT_S = 3600" + PROGRAM


class Process:
    """A server process that accepts requests at `url`."""

    def __init__(self, *options: str, code: str = PROGRAM) -> None:
        self.process = forked.Process("serve", "--port", "0", *options, code=code)
        self.lines: list[str] = []
        for line in self.process.errors:
            self.lines.append(line)
            if found := re.search(r"http://\S+", line):
                self.url = found[0]
                break
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        self.lines.extend(self.process.errors)

    def end(self, sig=signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        status = self.process.wait(timeout=60)
        self._reader.join()
        return status

    @property
    def has_traceback(self) -> bool:
        return any("Traceback" in line or "Exception" in line for line in self.lines)

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)


@contextlib.contextmanager
def serving(*options: str, code: str = PROGRAM):
    process = Process(*options, code=code)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.end(signal.SIGKILL)
        process.process.errors.close()


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice.get("text", choice.get("message")) for choice in response.json()["choices"]]


def test_responses_equal_alone_in_a_batch_after_a_restart_and_for_any_thread_count():
    body = {"messages": SEA, "max_tokens": 60, "seed": 4, "temperature": 1.0}
    found = []
    for threads in ("1", "2"):
        with serving("--threads", threads) as server:
            found.append(texts(server.post(CHAT, **body)))
            others = [
                threading.Thread(
                    target=server.post,
                    args=[TEXT],
                    kwargs={"prompt": "The king " * (1 + i % 9), "max_tokens": 24, "seed": i},
                )
                for i in range(16)
            ]
            for thread in others:
                thread.start()
            found.append(texts(server.post(CHAT, **body)))
            for thread in others:
                thread.join()
            assert server.end() == 0

    assert all(each == found[0] for each in found)


def test_every_loopback_address_needs_no_key():
    with serving("--threads", "1", "--host", "127.0.0.2") as server:
        statuses = [
            httpx.get(server.url + "/v1/models", headers=headers).status_code
            for headers in ({}, {"host": "localhost"}, {"host": "evil.example"})
        ]

    assert statuses == [200, 200, 403]


def test_sigterm_completes_streams_and_rejects_new_requests():
    with (
        serving("--threads", "1") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        body = {"prompt": "The king", "max_tokens": 1500, "seed": 1, "stream": True}
        with httpx.stream("POST", server.url + TEXT, json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            client.get("/health")  # keeps a connection open

            server.process.send_signal(signal.SIGTERM)
            while (health := client.get("/health")).status_code == 200:
                pass
            rejected = client.post(TEXT, json={"prompt": "x", "max_tokens": 1})
            rest = [line for line in lines if line]

        assert health.json() == {"status": "draining"}
        assert rejected.status_code == 503
        assert rejected.json()["error"]["code"] == "draining"
        assert rejected.headers["retry-after"]
        assert rest[-1] == "data: [DONE]"
        events = [json.loads(line[6:]) for line in rest[:-1]]
        assert events[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        assert server.process.wait(timeout=60) == 0


def test_drain_ends_after_its_time_limit():
    body = {"prompt": "The king", "max_tokens": 500_000, "logit_bias": NO_END, "stream": True}
    with serving("--threads", "1", "--context", "1000000", "--drain", "0.1") as server:
        with httpx.stream("POST", server.url + TEXT, json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        status = server.end(0)

    assert status == 0
    assert events[-1]["error"]["code"] == "shutting_down"


def test_thread_that_does_not_end_does_not_delay_shutdown():
    """The interpreter waits for threads: here, one that loads the model."""
    hang = "import time, yocobit\nyocobit.Engine.load = lambda *_, **__: time.sleep(3600)"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", hang + PROGRAM, "serve", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _health(port) == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


def _health(port: int) -> int | None:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code
    return None


def test_preparation_does_not_delay_shutdown():
    schema = {"type": "integer", "multipleOf": 9999991}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = json.dumps({"messages": SEA, "response_format": form}).encode()
    head = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with serving("--threads", "1", "--drain", "0.1", code=UNTIMED) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head % len(body) + body)
            wait_for(lambda: "preparing 1.0" in httpx.get(server.url + "/metrics").text)
            client.sendall(b"GET /health HTTP/1.1\r\n")  # read after the first request

            assert server.end() == 0
            answer = b""
            # The second request, which was not read, may make the system reset the connection.
            with contextlib.suppress(ConnectionResetError):
                while part := client.recv(4096):
                    answer += part

    assert answer.startswith(b"HTTP/1.1 503")
    assert not server.has_traceback


def test_idle_client_does_not_delay_shutdown():
    with serving("--threads", "1") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            assert client.recv(12) == b"HTTP/1.1 100"  # the server waits for the body

            assert server.end() == 0

            answer = client.makefile("rb").read()

    assert b"HTTP/1.1 503" in answer and b"shutting_down" in answer
    assert not server.has_traceback


def test_second_signal_fails_requests_in_flight():
    whole: list[httpx.Response] = []
    body = {"prompt": "The king", "max_tokens": 500_000, "logit_bias": NO_END}
    with serving("--threads", "1", "--context", "1000000") as server:
        thread = threading.Thread(target=lambda: whole.append(server.post(TEXT, **body)))
        thread.start()
        with httpx.stream(
            "POST", server.url + TEXT, json={**body, "stream": True}, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            wait_for(lambda: "num_requests_running 2.0" in httpx.get(server.url + "/metrics").text)
            server.process.send_signal(signal.SIGINT)
            wait_for(lambda: any("Ctrl-C again exits at once" in line for line in server.lines))
            server.process.send_signal(signal.SIGINT)
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        thread.join()
        status = server.end(0)

    assert status == 0
    assert events[-1]["error"]["code"] == "shutting_down"
    assert whole[0].status_code == 503
    assert whole[0].json()["error"]["code"] == "shutting_down"
    assert not server.has_traceback


def test_stored_prefixes_survive_a_killed_server(tmp_path):
    options = ("--threads", "1", "--prefix-dir", str(tmp_path))
    body = {"prompt": "And God said, Let there be light. " * 40, "max_tokens": 5, "seed": 3}
    with serving(*options) as server:
        first = server.post(TEXT, **body)
        # States of the prompt and of the response: entries are written in order, blocks first.
        wait_for(lambda: len(list(tmp_path.glob("*-*.prefix"))) == 2)
        server.end(signal.SIGKILL)

    with serving(*options) as server:
        again = server.post(TEXT, **body)

    usage = again.json()["usage"]
    assert texts(first) == texts(again)
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


def test_json_logs_have_request_ids_and_no_secrets():
    key = "a-secret-key-of-mine"
    with serving("--threads", "1", "--log-json", "--api-key", key) as server:
        headers = {"authorization": f"Bearer {key}", "x-request-id": "mine-1"}
        body = {"prompt": "a secret prompt", "max_tokens": 1}
        answer = httpx.post(server.url + TEXT, json=body, headers=headers, timeout=60)
        httpx.post(server.url + TEXT, json=body, headers={"authorization": "Bearer wrong-key-1"})
        server.end()

    records = [json.loads(line) for line in server.lines if line.startswith("{")]
    requests = [r for r in records if r.get("path") == TEXT]
    assert answer.headers["x-request-id"] == "mine-1"
    # A request's line is written after its response: the lines may be in another order.
    assert sorted((r["status"], r["request_id"] == "mine-1") for r in requests) == [
        (200, True),
        (401, False),
    ]
    whole = "".join(server.lines)
    assert key not in whole and "wrong-key-1" not in whole and "secret prompt" not in whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["absent"], "absent: no such directory"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reachable by others"),
        (["--host", "no.such.invalid", "--no-api-key"], "cannot listen on no.such.invalid:0"),
        (
            ["--api-key", "long-enough", "--no-api-key"],
            "--no-api-key allows everybody, but keys are given",
        ),
        (["--api-key", "short"], "--api-key must each have at least 8 printable characters"),
        (["--timeout", "1e6"], "--timeout must be between 0.001 and 86400"),
        (["--cors-origin", "foo"], "--cors-origin must have the form https://a.b"),
        (
            ["--prefix-dir", "x", "--prefix-mb", "0"],
            "--prefix-dir has no effect if --prefix-mb is 0",
        ),
        (["--api-key-file", "absent"], "absent: No such file"),
        (["--kernels", "mmx"], "mmx"),
        (
            ["--context", "100000", "--cache-mb", "1"],
            "a sequence of --context 100000 tokens needs",
        ),
        (["--prefix-dir", "/proc/x"], "/proc/x: cannot hold the prefix cache"),
    ],
)
def test_invalid_option_is_a_one_line_error(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["yocobit", "serve", "--port", "0", *options])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert words in error
    assert len(error.splitlines()) == 1


FACTORY = [sys.executable, "-m", "uvicorn", "--factory", "yocobit.serving:create_app"]


def test_factory_reads_log_format_and_trusted_hosts_from_the_environment():
    variables = {"YOCOBIT_LOG_JSON": "1", "YOCOBIT_TRUSTED_HOSTS": "mine", "YOCOBIT_THREADS": "1"}

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(
            [*FACTORY, "--fd", str(listener.fileno())],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
            pass_fds=[listener.fileno()],
        ) as process,
    ):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            wait_for(lambda: httpx.get(url + "/health", timeout=60).is_success)
            statuses = [
                httpx.get(url + "/v1/models", headers={"host": host}).status_code
                for host in ("mine", "other")
            ]
        finally:
            process.terminate()
        out, err = process.communicate(timeout=60)

    records = [json.loads(line) for line in err.splitlines()]
    assert statuses == [200, 403]
    assert sorted(r["status"] for r in records if r["path"] == "/v1/models") == statuses
    assert out == ""


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("YOCOBIT_FOO", "1", "YOCOBIT_FOO is not a setting"),
        ("YOCOBIT_API_KEY_FILE", "absent", "absent: No such file"),
        ("YOCOBIT_CONTEXT", "0", "context must be between"),
    ],
)
def test_invalid_variable_ends_the_factory_with_a_one_line_error(
    variable, value, words, monkeypatch
):
    monkeypatch.setenv(variable, value)

    with pytest.raises(SystemExit) as ended:
        create_app()

    assert words in ended.value.code  # a message, which Python prints before it exits with 1
    assert len(ended.value.code.splitlines()) == 1


def test_factory_exits_with_its_one_line_error():
    result = subprocess.run(
        FACTORY,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"YOCOBIT_CONTEXT": "0"},
    )

    assert result.returncode != 0
    assert "context must be between" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "port", "option"),
    [("127.0.0.1", 1 << 16, "--port"), ("127.0.0.1", -1, "--port"), ("999.0.0.1", 0, "--host")],
)
def test_error_of_an_invalid_address_names_its_option(host, port, option):
    with pytest.raises(
        UserError, match=f"cannot listen on {host}:{port} .*; choose another {option}"
    ):
        _listen(host, port)


def test_port_in_use_is_a_one_line_error():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = forked.run("serve", "--port", port)

    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_server_whose_model_file_is_overwritten_ends_with_one_line(tmp_path):
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    with serving(str(model), "--threads", "1") as server:
        assert httpx.post(server.url + TEXT, json={"prompt": "a", "max_tokens": 1}).is_success
        with (model / "model.safetensors").open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\0")
        os.utime(model / "model.safetensors", ns=(1, 1))

        refused = httpx.post(server.url + TEXT, json={"prompt": "b", "max_tokens": 1}, timeout=60)

        assert refused.status_code == 503
        assert server.process.wait(timeout=60) == 2
        server._reader.join()
    (line,) = [line for line in server.lines if line.startswith("error: ")]
    assert "model.safetensors: was truncated or overwritten while it was in use" in line
    assert not any("Traceback" in line for line in server.lines)


def test_a_server_does_not_start_with_a_weight_that_has_no_value(tmp_path):
    model = Path(shutil.copytree(TINY, tmp_path / "model"))
    tensor = read_model(model).tensors["layers.0.ffn.up_proj.weight"]
    with (model / "model.safetensors").open("r+b") as stream:
        stream.seek(tensor.begin)
        stream.write(b"\xff")

    ended = forked.run("serve", model, "--port", "0")

    assert ended.returncode == 2
    assert "'layers.0.ffn.up_proj.weight' must hold codes 0 to 2 but holds 3" in ended.stderr
