"""Take the screenshots of the terminal in docs/assets: the last screen of a command, as SVG.

It needs tmux.

python docs/terminal_screenshots.py docs/assets [NAME ...]
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

Tmux = Callable[..., str]
TIMEOUT_S = 600
# By name: the columns and rows of the terminal, and the lines that are typed, each at a prompt.
# The speeds are meaningful only if nothing else runs.
SESSIONS = {
    "terminal-chat": (100, 24, ["yocobit chat --seed 1", "Tell me about the sea.", "/stats"]),
    "terminal-train": (116, 44, ["yocobit train code --out runs/mine --minutes 3"]),
    "terminal-bench": (132, 30, ["yocobit bench tiny"]),
}
# rich's own format loads its fonts from another server.
FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main(folder: Path, names: list[str]) -> None:
    for name in names or SESSIONS:
        columns, rows, lines = SESSIONS[name]
        shown = screen(columns, rows, lines)
        (folder / f"{name}.svg").write_text(picture(shown, columns, name))


def screen(columns: int, rows: int, lines: list[str]) -> str:
    """Return the last screen, with its escape sequences."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        code = Path(home, "code")  # the larger modules of the standard library
        code.mkdir()
        for module in sorted(Path(os.__file__).parent.glob("*.py")):
            if module.stat().st_size > 20_000:
                shutil.copy(module, code)
        environment = (
            f"HOME={home} PATH={Path(sys.executable).parent}:$PATH PS1='$ ' LINES= COLUMNS="
        )
        shell = f"env {environment} TERM=screen-256color bash --norc --noprofile"

        def tmux(*arguments: str) -> str:
            command = ["tmux", "-S", f"{home}/tmux", "-f", "/dev/null", *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", home, shell)
        try:
            for line in lines:
                wait(lambda: at_prompt(tmux))
                tmux("send-keys", "-l", line)
                wait(lambda: not at_prompt(tmux))
                tmux("send-keys", "Enter")
                time.sleep(1)  # until the program has removed the prompt
            wait(lambda: at_prompt(tmux))
            return tmux("capture-pane", "-e", "-p")
        finally:
            tmux("kill-server")


def at_prompt(tmux: Tmux) -> bool:
    shown = tmux("capture-pane", "-p").rstrip().splitlines()
    return bool(shown) and shown[-1].rstrip() in ("$", ">")


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def picture(text: str, columns: int, name: str) -> str:
    console = Console(width=columns, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text.rstrip()))
    return console.export_svg(title="", code_format=FORMAT, unique_id=name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
