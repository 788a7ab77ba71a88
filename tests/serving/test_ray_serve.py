"""examples/ray_serve.py: two replicas on this machine, and the loss of one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from servers import NO_END, wait_for

pytest.importorskip("ray.serve")

import ray
from ray import serve

pytestmark = pytest.mark.slow  # starting a cluster takes most of a minute

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ray_serve.py"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def client():
    """A client of two replicas with one thread each."""
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            log_to_driver=False,
            logging_level="warning",
        )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--port", str(port)],
        env={**os.environ, "RAY_ADDRESS": cluster.address_info["address"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        url = process.stdout.readline().removeprefix("serving at ").strip()
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client
    finally:
        signal.signal(signal.SIGTERM, handler)
        process.kill()
        process.wait()
        process.stdout.close()
        ray.shutdown()


def chat(client: httpx.Client, messages: list[dict], **changes) -> httpx.Response:
    body = {"messages": messages, "max_tokens": 24, "seed": 5, "temperature": 1.0, **changes}
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def content(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def kill(replica: str) -> None:
    ray.kill(ray.get_actor(f"SERVE_REPLICA::yocobit#Replica#{replica}", namespace="serve"))


def test_conversation_stays_on_its_replica_and_hits_its_prefix_cache(client):
    replicas = set()
    for i in range(12):
        messages = [user(f"What does the sea say on day {i}? " + "It is wide. " * 10)]
        first = chat(client, messages)
        messages += [{"role": "assistant", "content": content(first)}, user("And then?")]
        second = chat(client, messages)

        usage = second.json()["usage"]
        assert second.headers["x-replica"] == first.headers["x-replica"]
        assert (
            usage["prompt_tokens_details"]["cached_tokens"]
            > first.json()["usage"]["prompt_tokens"] // 2
        )
        replicas.add(first.headers["x-replica"])

    assert len(replicas) == 2


def test_prompts_with_a_common_prefix_or_key_go_to_one_replica(client):
    def replica(**body) -> str:
        response = client.post(TEXT, json={"max_tokens": 1, **body})
        assert response.status_code == 200, response.text
        return response.headers["x-replica"]

    start = "In the beginning God created the heaven and the earth. " * 5

    assert len({replica(prompt=start + str(i)) for i in range(8)}) == 1
    assert len({replica(prompt=[3] * 256 + [i]) for i in range(8)}) == 1
    assert len({replica(prompt=str(i), prompt_cache_key="mine") for i in range(8)}) == 1
    assert len({replica(prompt=f"{i}: " + start) for i in range(32)}) == 2


def test_stream_equals_the_complete_answer_and_has_several_parts(client):
    body = {"prompt": "The king", "max_tokens": 40, "seed": 1}
    whole = client.post(TEXT, json=body).json()["choices"][0]["text"]

    with client.stream("POST", TEXT, json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        parts = list(response.iter_raw())
    lines = [line for line in b"".join(parts).decode().split("\n") if line]

    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(choice["text"] for e in events for choice in e["choices"]) == whole
    assert len(parts) > 2  # fast tokens arrive in batches


def test_errors_are_those_of_the_server(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/v1/nothing").status_code == 404
    assert client.post(TEXT, content=b"{", headers={"content-type": "a/b"}).status_code == 415
    wrong = client.post(CHAT, json={"messages": [{"role": 1}]})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    assert client.post(CHAT, json=[1]).status_code == 400
    large = client.post(TEXT, json={"prompt": "x" * (17 << 20)})
    assert large.status_code == 413


@pytest.mark.parametrize("streams", [True, False])
def test_disconnect_cancels_the_request(client, streams):
    body = {"prompt": "The king", "max_tokens": 1, "prompt_cache_key": f"gone {streams}"}
    replica = client.post(TEXT, json=body).headers["x-replica"]
    body |= {"max_tokens": 8000, "logit_bias": NO_END, "stream": streams}
    before = metric(client, replica, "request_cancelled_total")

    with (
        contextlib.suppress(httpx.ReadTimeout),
        client.stream("POST", TEXT, json=body, timeout=1) as response,
    ):
        next(response.iter_raw())
    wait_for(lambda: not metric(client, replica, "num_requests_running"))

    assert metric(client, replica, "request_cancelled_total") == before + 1


def metric(client: httpx.Client, replica: str, name: str) -> float:
    """Return a metric of a replica; requests without a body go to any replica."""
    while True:
        response = client.get("/metrics")
        if response.headers["x-replica"] == replica:
            lines = [line.split() for line in response.text.splitlines()]
            [found] = [line[-1] for line in lines if line[0] == f"yocobit:{name}"]
            return float(found)


def test_conversations_of_a_lost_replica_move_until_it_is_replaced(client):
    messages = [user("Who walks on the shore? " * 8)]
    before = chat(client, messages)
    lost = before.headers["x-replica"]
    known = {get_health(client).headers["x-replica"] for _ in range(32)}
    long = {"max_tokens": 4000, "logit_bias": NO_END}
    in_flight: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: in_flight.append(chat(client, messages, **long)))
    thread.start()
    wait_for(lambda: metric(client, lost, "num_requests_running"))

    body = {"messages": messages, **long, "stream": True}
    with client.stream("POST", CHAT, json=body) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        kill(lost)
        *_, last = lines
    after = chat(client, messages)
    thread.join()

    assert "the replica was lost" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert after.headers["x-replica"] in known - {lost}
    assert content(after) == content(before)
    assert in_flight[0].headers["x-replica"] != lost  # it was restarted
    assert content(in_flight[0]) == content(chat(client, messages, **long))

    deadline = time.monotonic() + 60
    while (new := get_health(client).headers["x-replica"]) in known:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    states = serve.status().applications["yocobit"].deployments["Replica"].replica_states
    assert states == {"RUNNING": 2}
    for i in range(64):
        again = chat(client, messages, prompt_cache_key=str(i))
        if again.headers["x-replica"] == new:
            break
    assert again.headers["x-replica"] == new
    assert content(again) == content(before)


def get_health(client: httpx.Client) -> httpx.Response:
    return client.get("/health")
