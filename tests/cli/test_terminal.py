"""yocobit chat at a terminal: what somebody types and sees."""

from __future__ import annotations

import io
import os
import pty
import select
import sys
import time

import pytest

from yocobit.cli import terminal as shown


class Terminal:
    """A chat with the packaged model on a terminal of its own."""

    def __init__(self) -> None:
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            arguments = ["-m", "yocobit", "chat", "--max-tokens", "2000", "--temperature", "0"]
            os.execv(sys.executable, [sys.executable, *arguments])

    def until(self, text: str, nudge: str = "") -> str:
        """Return what is shown up to a text, and go on behind it.

        While nothing comes, `nudge` is typed: readline loses a Ctrl-C that comes as it begins.
        """
        deadline = time.monotonic() + 60
        while text not in self.seen:
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            else:
                self.type(nudge)
            assert time.monotonic() < deadline, f"{text!r} did not come; there is {self.seen!r}"
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
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


def test_ctrl_c_stops_an_answer_but_not_the_conversation(terminal):
    terminal.until("> ")
    terminal.type("\x03")
    terminal.until("[Ctrl-D leaves]", nudge="\x03")
    terminal.type("Tell me about the sea.\n")
    terminal.until("sea.\r\n")
    terminal.type("\x03")
    terminal.until("> ", nudge="\x03")
    terminal.type("/exit\n")

    assert terminal.exit_code() == 0


@pytest.mark.parametrize(
    ("is_terminal", "expected"),
    [(True, "a\n\t\u241b[2J\u241b]52;c;eA==\u2407 \ufffd31m\u00e9\n"), (False, None)],
)
def test_what_a_model_says_does_not_command_the_terminal(is_terminal, expected, monkeypatch):
    said = ["a\n\t\x1b[2J", "\x1b]52;c;eA==\x07 \x9b31m\u00e9"]
    output = io.StringIO()
    output.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stdout", output)

    shown.write(said)

    assert output.getvalue() == (expected or "".join(said) + "\n")
