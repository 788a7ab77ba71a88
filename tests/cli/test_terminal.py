"""yocobit chat at a terminal: input and output."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sys
import time
from contextlib import suppress

import pytest

from yocobit.cli import terminal as shown


class Terminal:
    """A chat with the packaged model on a pseudo-terminal."""

    def __init__(self) -> None:
        self.seen = ""
        self.has_ended = False
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            arguments = ["-m", "yocobit", "chat", "--max-tokens", "2000", "--temperature", "0"]
            os.execv(sys.executable, [sys.executable, *arguments])

    def until(self, text: str, nudge: str = "") -> str:
        """Return the output up to a text and continue after it.

        Types `nudge` while there is no output: readline loses a Ctrl-C that arrives as it starts.
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
def terminal():
    terminal = Terminal()
    yield terminal
    if not terminal.has_ended:  # the test failed
        os.kill(terminal.pid, signal.SIGKILL)
    os.close(terminal.fd)


def test_a_conversation_at_a_terminal(terminal):
    terminal.until("> ")
    terminal.type("/help\n")
    assert "/again" in terminal.until("Ctrl-C    stop a reply")
    terminal.type("Tell me about the sea.\n")
    assert "tokens at" in terminal.until("8.6 MB of cache (a Transformer: 50.3 MB)]")
    terminal.type("/again\n")
    terminal.until(" MB)]")
    terminal.type("/clear\n")
    terminal.until("[new conversation]")
    terminal.type("/again\n")
    terminal.until("error: there is no message to withdraw yet")
    terminal.until("> ")
    terminal.type("\x04")

    assert terminal.exit_code() == 0


def test_ctrl_c_stops_a_reply_but_not_the_conversation(terminal):
    terminal.until("> ")
    terminal.type("\x03")
    terminal.until("[Ctrl-D exits]", nudge="\x03")
    terminal.type("Tell me about the sea.\n")
    terminal.until("sea.\r\n")
    terminal.type("\x03")
    terminal.until("> ", nudge="\x03")
    terminal.type("/exit\n")

    assert terminal.exit_code(nudge="/exit\n") == 0


def test_second_ctrl_c_while_the_first_is_handled_returns_to_the_prompt(monkeypatch):
    lines = iter(["a question", "/exit"])
    interrupts = iter([KeyboardInterrupt(), KeyboardInterrupt()])

    def interrupted(*args) -> None:
        for error in interrupts:
            raise error

    monkeypatch.setattr(shown, "_read", lambda prompt: next(lines))
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
