"""yocobit chat at a terminal: input and output."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import select
import signal
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from yocobit.cli import terminal as shown
from yocobit.cli.markdown import MarkdownWriter

PROMPT = "\x1b[?2004h"  # pasted text is marked from here on
CHAT = ("chat", "--max-tokens", "2000", "--temperature", "0")


class Terminal:
    """A command, by default a chat with the packaged model, on a pseudo-terminal."""

    def __init__(self, state: Path, *arguments: str, **environment: str) -> None:
        self.seen = ""
        self.has_ended = False
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            own = {"TERM": "xterm", "NO_COLOR": "1", "XDG_STATE_HOME": str(state), "COLUMNS": "200"}
            command = [sys.executable, "-m", "yocobit", *(arguments or CHAT)]
            os.execve(sys.executable, command, {**os.environ, **own, **environment})

    def until(self, text: str, nudge: str = "") -> str:
        """Return the output up to a text and continue after it.

        Types `nudge` while there is no output: a Ctrl-C that arrives as the prompt starts is lost.
        """
        deadline = time.monotonic() + 60
        while text not in self.seen:
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            else:
                self.type(nudge)
            assert time.monotonic() < deadline, f"no {text!r} in the output {self.seen!r}"
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def exit_code(self, nudge: str = "") -> int:
        """Return the exit code; type `nudge` once a second: a Ctrl-C flushes what was typed."""
        deadline = time.monotonic() + 60
        while (status := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < deadline, f"the program still runs: {self.seen!r}"
            if select.select([self.fd], [], [], 1)[0]:
                with suppress(OSError):  # the terminal closes with the program
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
            else:
                self.type(nudge)
        self.has_ended = True
        return os.waitstatus_to_exitcode(status[1])


@pytest.fixture
def open_terminal(tmp_path):
    opened = []

    def open_(*arguments: str, **environment: str) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments, **environment))
        return opened[-1]

    yield open_
    for terminal in opened:
        if not terminal.has_ended:  # the test failed
            os.kill(terminal.pid, signal.SIGKILL)
        os.close(terminal.fd)


@pytest.fixture
def terminal(open_terminal):
    return open_terminal()


def test_a_conversation_at_a_terminal(terminal):
    greeting = terminal.until(PROMPT)
    assert "tiny: 7.1M parameters, ternary weights, 3.5 MB" in greeting
    assert "Try: Tell me about the sea." in greeting
    assert "yocobit chat microsoft/bitnet-b1.58-2B-4T" in greeting
    terminal.type("/help\n")
    assert "/again" in terminal.until("stop a reply")
    terminal.type("Tell me about the sea.\n")
    assert "tokens at" in terminal.until(", cache ")
    used, transformer = terminal.until(" MB)]").split(" MB (a Transformer: ")
    assert 0 < float(used) < 1  # not what the session reserves for the whole context
    assert 0 < float(transformer) < 1
    terminal.type("/again\n")
    terminal.until(" MB)]")
    terminal.type("/stats\n")
    assert " MB reserved (a Transformer: " in terminal.until(" kernels")
    terminal.type("/clear\n")
    terminal.until("[new conversation]")
    terminal.type("/again\n")
    terminal.until("error: there is no message to withdraw yet")
    terminal.until(PROMPT)
    terminal.type("\x04")

    assert terminal.exit_code() == 0


def test_ctrl_c_stops_a_reply_but_not_the_conversation(terminal):
    terminal.until(PROMPT)
    terminal.type("\x03")
    terminal.until("[Ctrl-D exits]", nudge="\x03")
    terminal.type("Tell me about the sea.\n")
    terminal.until("sea.")
    terminal.type("\x03")
    terminal.until(PROMPT, nudge="\x03")
    terminal.type("/exit\n")

    assert terminal.exit_code(nudge="/exit\n") == 0


def test_pasted_lines_and_alt_enter_make_one_message_and_history_is_private(terminal, tmp_path):
    terminal.until(PROMPT)
    terminal.type("\x1b[200~Tell me about\nthe sea.\x1b[201~")
    terminal.until("the sea.")
    terminal.type("\x1b\rGo on.\\\nSlowly.\n")
    terminal.until(" MB)]")
    terminal.type("/stats\n")
    assert "messages        2" in terminal.until(" kernels")
    terminal.until(PROMPT)
    terminal.type("\x04")

    assert terminal.exit_code() == 0
    history = tmp_path / "yocobit" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    assert "+Tell me about\n+the sea.\n+Go on.\n+Slowly.\n" in history.read_text()


def test_a_conversation_is_saved_and_loaded(terminal, tmp_path):
    file = tmp_path / "chat.json"
    terminal.until(PROMPT)
    terminal.type("/system Be brief.\n")
    terminal.until("system message: Be brief.")
    terminal.type("/set max_tokens=5 seed=7\n")
    terminal.until("max_tokens           5")
    terminal.type("Tell me about the sea.\n")
    terminal.until("(the limit of a reply)")
    terminal.type(f"/save {file}\n")
    terminal.until("[3 messages saved]")
    terminal.type("/clear\n")
    terminal.until("[new conversation]")
    terminal.type(f"/load {file}\n")
    terminal.until("[3 messages loaded; ")
    terminal.type("/again\n")
    terminal.until("(the limit of a reply)")
    terminal.type("/set tempreature=1\n")
    terminal.until("did you mean temperature?")
    terminal.type("/sytem\n")
    terminal.until("did you mean /system?")
    terminal.until(PROMPT)
    terminal.type("/exit\n")

    assert terminal.exit_code() == 0
    messages = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."


def test_files_that_cannot_be_used_do_not_end_the_conversation(terminal, tmp_path):
    (tmp_path / "notes.json").write_text("mine")
    terminal.until(PROMPT)
    terminal.type("/set max_tokens=5\nTell me about the sea.\n")
    terminal.until("(the limit of a reply)")
    for line, message in (
        (f"/save {tmp_path}/absent/chat.json", "absent/chat.json: No such file or directory"),
        (f"/load {tmp_path}/absent.json", "absent.json: No such file or directory"),
        (f"/save {tmp_path}/notes.json", "notes.json: exists and is not a saved conversation"),
        ("/load ~absent-user/chat.json", "~absent-user/chat.json: No such file or directory"),
    ):
        terminal.type(f"{line}\n")
        terminal.until(f"{message}")
    terminal.type("/stats\n")
    assert "messages        2" in terminal.until(" kernels")
    terminal.until(PROMPT)
    terminal.type("/exit\n")

    assert terminal.exit_code() == 0
    assert (tmp_path / "notes.json").read_text() == "mine"


@pytest.mark.parametrize("kind", ["device", "fifo", "directory", "not writable"])
def test_history_that_is_no_file_is_kept_in_memory(open_terminal, tmp_path, kind):
    path = tmp_path / "state" / "yocobit" / "chat_history"
    path.parent.mkdir(parents=True)
    controller, device = os.openpty()  # for example /dev/null, whose mode must stay
    {
        "device": lambda: path.symlink_to(os.ttyname(device)),
        "fifo": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "not writable": lambda: None,
    }[kind]()
    mode = os.fstat(device).st_mode
    state = "/proc/absent" if kind == "not writable" else str(tmp_path / "state")
    terminal = open_terminal(XDG_STATE_HOME=state)
    terminal.until(PROMPT)
    terminal.type("/stats\n")
    terminal.until(" kernels")
    terminal.until(PROMPT)
    terminal.type("/exit\n")

    assert terminal.exit_code() == 0
    assert os.fstat(device).st_mode == mode
    os.close(device)
    os.close(controller)


def test_quiet_prints_no_greeting_and_no_status(open_terminal):
    terminal = open_terminal(*CHAT, "--quiet")
    assert "parameters" not in terminal.until(PROMPT)
    terminal.type("Tell me about the sea.\n")
    terminal.until("sea.")
    assert "tokens at" not in terminal.until(PROMPT)
    terminal.type("/exit\n")

    assert terminal.exit_code(nudge="/exit\n") == 0


def test_help_has_colours_on_a_terminal_unless_no_color_is_set(open_terminal):
    coloured = open_terminal("list", "--help", NO_COLOR="")
    coloured.until("\x1b[1mOptions:\x1b[0m")
    plain = open_terminal("list", "--help")

    assert "\x1b[36m--json\x1b[0m" in coloured.until("Examples:")
    assert "\x1b" not in plain.until("Examples:")
    assert coloured.exit_code() == plain.exit_code() == 0


def test_second_ctrl_c_while_the_first_is_handled_returns_to_the_prompt(monkeypatch):
    lines = iter(["a question", "/exit"])
    interrupts = iter([KeyboardInterrupt(), KeyboardInterrupt()])

    def interrupted(*args) -> None:
        for error in interrupts:
            raise error

    prompt = SimpleNamespace(prompt=lambda: next(lines))
    monkeypatch.setattr(shown, "new_prompt", lambda commands, history: prompt)
    monkeypatch.setattr(shown, "_handle", interrupted)
    monkeypatch.setattr(shown, "print", interrupted, raising=False)

    shown._converse_at_keyboard(chat=None)

    assert next(lines, None) is None
    assert next(interrupts, None) is None


@pytest.mark.parametrize(
    ("is_terminal", "expected"),
    [(True, "a\n\t\u241b[2J\u241b]52;c;eA==\u2407 \ufffd31m\u00e9\n"), (False, None)],
)
def test_model_output_cannot_send_control_sequences(is_terminal, expected, monkeypatch):
    said = ["a\n\t\x1b[2J", "\x1b]52;c;eA==\x07 \x9b31m\u00e9"]
    output = io.StringIO()
    output.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stdout", output)

    shown.write(said)

    assert output.getvalue() == (expected or "".join(said) + "\n")


MARKDOWN = """# A **heading** of the text

A paragraph with **bold words**, `code with spaces`, 2 ** 3, don`t, and a_b_c that is long.
* an item whose text continues on the next line
  1. a numbered item whose text continues
```python
x = "**not bold** and never wrapped, however long the line of code is"
```
漢字は空白なしで折り返される。
"""


def rendered(pieces: list[str], width: int, has_colours: bool) -> str:
    output = io.StringIO()
    writer = MarkdownWriter(output, width, has_colours)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    return output.getvalue()


def test_markdown_is_wrapped_at_words_and_indented_in_lists():
    lines = rendered([MARKDOWN], 30, has_colours=False).splitlines()

    assert lines[2:4] == ["A paragraph with **bold", "words**, `code with spaces`, 2"]
    assert "* an item whose text continues" in lines
    assert "  on the next line" in lines
    assert lines[lines.index("  1. a numbered item whose") + 1] == "     text continues"
    assert 'x = "**not bold** and never wrapped, however long the line of code is"' in lines
    assert rendered([MARKDOWN], 26, has_colours=False).endswith("折り返され\nる。\n\n")


def test_markdown_has_styles_for_headings_bold_and_code():
    output = rendered([MARKDOWN], 200, has_colours=True)

    assert "\x1b[1m#\x1b[0m \x1b[1mA\x1b[0m" in output
    assert "\x1b[1mbold\x1b[0m \x1b[1mwords\x1b[0m, \x1b[36mcode\x1b[0m" in output
    assert "2 ** 3, don`t, and a_b_c" in output
    assert '\x1b[36m"**not\x1b[0m' in output


@pytest.mark.parametrize("has_colours", [False, True])
def test_markdown_in_pieces_gives_the_same_output(has_colours):
    expected = rendered([MARKDOWN], 40, has_colours)
    random_ = random.Random(1)
    for _ in range(50):
        cuts = sorted(random_.sample(range(len(MARKDOWN)), 12))
        pieces = [MARKDOWN[i:j] for i, j in zip([0, *cuts], [*cuts, None], strict=True)]

        assert rendered(pieces, 40, has_colours) == expected


def test_markdown_without_colours_keeps_every_character():
    output = rendered([MARKDOWN], 25, has_colours=False)

    assert output.split() != []
    assert "".join(output.split()) == "".join(MARKDOWN.split())
