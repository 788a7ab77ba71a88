"""Workers that prepare requests: limits, cancellation, and the end of all processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from preparation_jobs import (
    MB,
    allocate,
    describe,
    divide,
    end,
    grow,
    make_context,
    measure,
    no_context,
    refuse,
    sleep,
    spin,
)
from servers import fork_preparation, wait_for

from yocobit.errors import UserError
from yocobit.serving import limits
from yocobit.serving.errors import APIError, too_costly
from yocobit.serving.runtime import preparation
from yocobit.serving.runtime.metrics import Metrics
from yocobit.serving.runtime.preparation import WorkerPool
from yocobit.serving.runtime.runtime import Runtime
from yocobit.serving.settings import ServerSettings


@pytest.fixture(autouse=True)
def forked_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_preparation(monkeypatch)


def run(work: Callable[[WorkerPool], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        pool = WorkerPool(make_context, **options)
        await pool.start()
        try:
            return await work(pool)
        finally:
            pool.stop()

    return asyncio.run(main())


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_jobs_get_the_context_and_share_a_worker():
    async def work(pool):
        return [await pool.run(describe, i) for i in range(2)]

    first, second = run(work)

    assert first[:2] == ("context", 0) and second[:2] == ("context", 1)
    assert first[2] == second[2] != os.getpid()


@pytest.mark.parametrize("is_heavy", [False, True])
@pytest.mark.parametrize(
    ("job", "arguments", "limit"),
    [
        (spin, (), {"cpu_s": 0.05}),
        (sleep, (os.devnull,), {"wall_s": 0.05}),
        (allocate, (), {"memory_bytes": 128 * MB}),
        (end, (), {}),
    ],
    ids=["cpu", "wall clock", "memory", "crash"],
)
def test_job_beyond_a_limit_is_a_bad_request_and_the_next_one_runs(job, arguments, limit, is_heavy):
    async def work(pool):
        with pytest.raises(APIError) as rejected:
            await pool.run(job, *arguments, is_heavy=is_heavy)
        return rejected.value, await pool.run(describe, 1, is_heavy=is_heavy)

    error, answer = run(work, **limit)

    assert (error.status, error.code) == (400, "too_costly")
    assert answer[:2] == ("context", 1)


def test_worker_that_grew_is_replaced():
    async def work(pool):
        first = await pool.run(describe, 0)
        await pool.run(grow)
        return first, await pool.run(describe, 0)

    first, second = run(work)

    assert first[2] != second[2]


def test_large_job_is_sent_without_a_copy_in_the_buffer(monkeypatch):
    buffered = []
    write = asyncio.StreamWriter.write

    def write_and_measure(writer, data):
        write(writer, data)
        buffered.append(writer.transport.get_write_buffer_size())

    monkeypatch.setattr(asyncio.StreamWriter, "write", write_and_measure)

    assert run(lambda pool: pool.run(measure, b"a" * (8 * MB))) == 8 * MB
    assert max(buffered) < MB


def test_error_of_a_job_is_raised_here():
    async def work(pool):
        with pytest.raises(APIError) as refused:
            await pool.run(refuse)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            await pool.run(divide)
        return refused.value

    error = run(work)

    assert (error.status, str(error), error.param) == (404, "no such model", "model")
    assert (error.code, error.retry_after) == ("model_not_found", 7)


def test_heavy_job_delays_no_light_one_and_has_a_low_priority(tmp_path):
    async def work(pool):
        sleeping = asyncio.create_task(pool.run(sleep, str(tmp_path / "pid"), is_heavy=True))
        await asyncio.sleep(0)
        light = await pool.run(describe, 0)
        sleeping.cancel()
        return light[3], (await pool.run(describe, 0, is_heavy=True))[3]

    light, heavy = run(work)

    assert heavy > light == os.nice(0)


def test_too_many_heavy_jobs_of_a_client_are_rejected(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "HEAVY_WAITING", 1)

    async def work(pool):
        tasks = [
            asyncio.create_task(pool.run(sleep, str(tmp_path / str(i)), is_heavy=True))
            for i in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(APIError) as rejected:
            await pool.run(describe, 0, is_heavy=True)
        other = asyncio.create_task(pool.run(describe, 0, client="other", is_heavy=True))
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rejected.value, await other

    error, answer = run(work)

    assert error.status == 429 and error.retry_after
    assert answer[0] == "context"


@pytest.mark.parametrize("is_heavy", [False, True])
def test_clients_take_turns(is_heavy):
    async def work(pool):
        order = []

        async def ask(client):
            await pool.run(describe, 0, client=client, is_heavy=is_heavy)
            order.append(client)

        tasks = [asyncio.create_task(ask(client)) for client in "aaaaabcb"]
        await asyncio.sleep(0)
        tasks[2].cancel()  # while it waits
        await asyncio.gather(*tasks, return_exceptions=True)
        return "".join(order)

    assert run(work) == "aabcaba"


async def started(pool: WorkerPool, path: Path) -> tuple[asyncio.Task[None], int]:
    """Return a job that sleeps, and the pid of its worker."""
    task = asyncio.create_task(pool.run(sleep, str(path)))
    while not (path.exists() and path.read_text()):
        await asyncio.sleep(0.001)
    return task, int(path.read_text())


def test_cancelled_job_is_killed(tmp_path):
    async def work(pool):
        task, pid = await started(pool, tmp_path / "pid")
        task.cancel()
        answer = await pool.run(describe, 0)
        wait_for(lambda: not is_alive(pid))
        return pid, answer[2]

    killed, other = run(work)

    assert killed != other


def test_killed_forking_process_is_replaced():
    async def work(pool):
        await pool.run(describe, 0)
        pool._forks.kill()
        pool._forks.wait()
        while sys.platform == "linux" and not pool._lanes[0].idle.is_gone:
            await asyncio.sleep(0)
        return [await pool.run(describe, i, is_heavy=i > 0) for i in range(2)]

    assert [answer[1] for answer in run(work)] == [0, 1]


def test_stop_ends_all_processes_and_jobs(tmp_path):
    async def main():
        pool = WorkerPool(make_context)
        await pool.start()
        task, pid = await started(pool, tmp_path / "pid")
        forks = pool._forks.pid
        pool.stop()
        with pytest.raises(APIError) as failed:
            await task
        return failed.value, (pid, forks)

    error, pids = asyncio.run(main())

    assert error.status == 503
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped")
@pytest.mark.parametrize("is_forked", [True, False])
def test_stop_fails_jobs_without_waiting_for_other_processes(tmp_path, is_forked):
    async def main():
        pool = WorkerPool(make_context)
        await pool.start()
        forks = pool._forks
        if is_forked:
            task, _ = await started(pool, tmp_path / "pid")
        os.kill(forks.pid, signal.SIGSTOP)  # it forks no worker and kills none
        if not is_forked:
            task = asyncio.create_task(pool.run(describe, 0))
            while not pool._writers:
                await asyncio.sleep(0)
        pool.begin_stop()
        try:
            with pytest.raises(APIError) as failed:
                await asyncio.wait_for(task, 60)
            return failed.value.status, pool._forks is forks
        finally:
            pool.stop()

    assert asyncio.run(main()) == (503, True)


def test_stop_fails_a_start_that_waits(monkeypatch):
    async def main():
        pool = WorkerPool(make_context)
        silent = []
        monkeypatch.setattr(
            preparation, "_spawn", lambda connection: silent.append(connection.dup())
        )
        task = asyncio.create_task(pool.start())
        while not silent:
            await asyncio.sleep(0)
        pool.begin_stop()
        try:
            await asyncio.wait_for(task, 60)
        finally:
            pool.stop()

    with pytest.raises(APIError) as failed:
        asyncio.run(main())
    assert failed.value.status == 503


def test_error_of_a_cancelled_preparation_is_not_logged(engine):
    logged = []

    async def fail_when_cancelled(started):
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise too_costly() from None

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: logged.append(context))
        settings = ServerSettings(prefix_mb=0, context=64)
        runtime = Runtime(engine, settings, Metrics(), "", WorkerPool(make_context))
        started = asyncio.Event()
        try:
            work = fail_when_cancelled(started)
            task = asyncio.create_task(runtime.prepare(time.monotonic(), work))
            await started.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, APIError):
                await task
        finally:
            runtime.stop()
        del task
        gc.collect()

    asyncio.run(main())

    assert logged == []


def test_invalid_context_is_a_one_line_error():
    async def main():
        pool = WorkerPool(no_context)
        try:
            await pool.start()
        finally:
            pool.stop()

    with pytest.raises(UserError, match=r"^model: has no tokenizer$"):
        asyncio.run(main())


def test_processes_end_with_a_killed_server(tmp_path):
    program = f"""
import asyncio, sys
sys.path[:] = {sys.path!r}
import preparation_jobs as jobs
from yocobit.serving.runtime.preparation import WorkerPool
async def main():
    pool = WorkerPool(jobs.make_context)
    await pool.start()
    await pool.run(jobs.sleep, {str(tmp_path / "pid")!r})
asyncio.run(main())
"""
    server = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    pid = int((tmp_path / "pid").read_text())

    try:
        wait_for(lambda: not is_alive(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_error_names_the_limits():
    assert "3 s of CPU time or 512 MB of memory" in str(too_costly())
