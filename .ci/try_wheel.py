"""Install a wheel into a new environment without a compiler, and use it: generate, chat, serve.

    python .ci/try_wheel.py WHEEL [CONSTRAINTS]

`make wheel` and cibuildwheel run it, with the Python that the wheel is for. CONSTRAINTS is a file
of versions for pip; without it, the newest ones are installed.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
import venv
import zipfile
from pathlib import Path

PROMPT = "In the beginning"
KERNELS = f"""
import sys, yocobit, yocobit.engine
from yocobit import Engine, _native
names = _native.supported_kernels()
assert _native.emulated_kernels() == [] and "torch" not in sys.modules
texts = {{"".join(Engine.load(kernels=name).stream("{PROMPT}", max_tokens=40)) for name in names}}
assert len(texts) == 1, texts
print(*names)
"""


class Environment:
    """A virtual environment whose programs find only one another, and so no compiler."""

    def __init__(self, root: Path, constraints: tuple[Path, ...]) -> None:
        venv.create(root, with_pip=True)
        self.root = root
        self.constraints = constraints
        self.path = str(root / "bin")
        self.variables = {**os.environ, "PATH": self.path}
        self.variables.pop("PYTHONPATH", None)
        assert not any(shutil.which(name, path=self.path) for name in ("cc", "c++", "gcc", "clang"))

    def start(self, *command: str) -> subprocess.Popen[str]:
        program = shutil.which(command[0], path=self.path)
        assert program, command
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [program, *command[1:]], cwd=self.root, env=self.variables, text=True, **pipes
        )

    def run(self, *command: str, given: str = "") -> str:
        """Return what a program prints for the given input."""
        with self.start(*command) as process:
            output, errors = process.communicate(given)
        assert process.returncode == 0, f"{command}\n{output}{errors}"
        return output

    def install(self, requirement: str) -> None:
        pins = [f"--constraint={path}" for path in self.constraints]
        install = ("python", "-m", "pip", "install", "-q", "--only-binary", ":all:")
        self.run(*install, *pins, requirement)


def check_symbols(wheel: Path) -> None:
    """Check that the module needs no symbols of glibc newer than the tag manylinux promises."""
    with zipfile.ZipFile(wheel) as files:
        [module] = [name for name in files.namelist() if re.search(r"_native\..*so$", name)]
        needed = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", files.read(module))]
    promised = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)", wheel.name)]
    for minor in promised:
        assert max(needed) <= minor, f"{wheel.name} needs GLIBC_2.{max(needed)}"


def check_server(environment: Environment) -> None:
    """Check that a server answers a chat request and stops at SIGTERM."""
    body = {"messages": [{"role": "user", "content": "Tell me about the sea."}], "max_tokens": 20}
    with environment.start("yocobit", "serve", "--port", "0") as server:
        try:
            ready = next(line for line in server.stderr if line.startswith("serving at http"))
            request = urllib.request.Request(
                ready.split()[-1] + "/v1/chat/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                assert json.load(response)["choices"][0]["message"]["content"].strip()
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, server.stderr.read()


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(wheel: Path, *constraints: Path) -> None:
    check_symbols(wheel)
    with tempfile.TemporaryDirectory() as root:
        environment = Environment(Path(root), constraints)
        before_s = children_cpu_s()
        environment.install(str(wheel))
        assert environment.run("yocobit", "generate", PROMPT, "--max-tokens", "1")
        first_token_s = children_cpu_s() - before_s
        kernels = environment.run("python", "-c", KERNELS).strip()
        assert environment.run("yocobit", "chat", given="Tell me about the sea.\n").strip()
        environment.install(f"yocobit[serve] @ {wheel.as_uri()}")
        check_server(environment)
    print(
        f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, kernels {kernels}; "
        f"install to first token: {first_token_s:.0f} s of CPU time"
    )


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
