"""What Windows and macOS lack: every module is imported, and commands run, without it.

A simulation on Linux: one process imports the package and its dependencies, removes what those
systems lack, and imports the package again.
"""

import subprocess
import sys

import pytest
from training_runs import write_toml

PRELUDE = r"""
import ctypes, importlib, io, os, pkgutil, shutil, signal, socket, sys
import yocobit
from pathlib import Path

def import_all(*but):
    for module in pkgutil.walk_packages(yocobit.__path__, "yocobit."):
        if module.name not in ("yocobit.__main__", "yocobit._native", *but):
            importlib.import_module(module.name)

import_all("yocobit.evaluation.harness")  # lm_eval registers it once
import lm_eval.api.model, lm_eval.api.registry, prompt_toolkit.output.vt100, uvicorn

for name in list(sys.modules):
    if name.startswith("yocobit.") and name != "yocobit._native":
        del sys.modules[name]

for module in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp"):
    sys.modules[module] = None  # an ImportError
LACKING = {
    os: "fork forkpty sched_getaffinity sched_setaffinity process_cpu_count pread pwrite nice "
        "O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC WNOHANG getuid geteuid setsid killpg getpgid "
        "mkfifo statvfs sysconf getloadavg uname mkdirat posix_fadvise sendfile fchown",
    signal: "SIGHUP SIGKILL SIGALRM SIGPROF ITIMER_PROF setitimer SIGUSR1 SIGUSR2 pthread_kill",
    socket: "AF_UNIX send_fds recv_fds",
}
for module, lacking in LACKING.items():
    for name in lacking.split():
        if hasattr(module, name):
            delattr(module, name)

CDLL = ctypes.CDLL
def cdll(name, *arguments, **options):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return CDLL(name, *arguments, **options)
ctypes.CDLL = cdll

def without_proc(call):
    def guarded(path, *arguments, **options):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return call(path, *arguments, **options)
    return guarded
io.open = without_proc(io.open)
os_open = os.open = without_proc(os.open)

def open_file(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os_open(path, *arguments, **options)
os.open = open_file
shutil._use_fd_functions = False  # rmtree() as on Windows
sys.platform = "elsewhere"

import_all()

def command(*arguments):
    from yocobit.cli import main
    sys.argv = ["yocobit", *map(str, arguments)]
    try:
        main()
    except SystemExit as error:
        return error.code or 0
    return 0
"""


def simulated(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.run(command, input="Hello\n", capture_output=True, text=True, timeout=300)


COMMANDS = r"""
from yocobit.cli import app
from yocobit.pretrained import TINY
work = Path(sys.argv[1])
for arguments in (
    ["--help"], ["generate", "--help"], ["chat", "--help"], ["serve", "--help"],
    ["train", "--help"],
    ["inspect", TINY], ["verify", TINY],
    ["generate", "Once", TINY, "-n", "4", "--temperature", "0"],
    ["bench", TINY, "-p", "8", "-n", "2", "-r", "1"],
    ["chat", TINY, "-n", "4"],
    ["train", work / "run.toml", "--out", work / "run"],
    ["pack", work / "run", work / "packed"],
    ["serve", TINY, "--port", "0"],
):
    print("==", *arguments, flush=True)
    print("== code", command(*arguments), flush=True)
"""


@pytest.mark.slow
def test_commands_run_without_features_that_other_systems_lack(tmp_path):
    write_toml(tmp_path)

    done = simulated(COMMANDS, tmp_path)

    print(done.stdout, done.stderr)
    codes = [line for line in done.stdout.splitlines() if line.startswith("== code")]
    assert codes == ["== code 0"] * 12 + ["== code 2"]
    assert "lock: this system has no flock(): do not start a second training" in done.stdout
    assert "error: serving: needs a system that can fork processes" in done.stderr
    assert "other programs" not in done.stdout  # without /proc/stat, nothing is known of them
