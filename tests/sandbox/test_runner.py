"""The runner's protocol, tested directly: pieces of any size, repeated and lost data."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from flows.sandbox.port import NodeCall, NodeResult
from flows.sandbox.processes import is_alive
from flows.sandbox.protocol import (
    BOOT,
    Answer,
    Answers,
    Chunks,
    Message,
    installed_runner,
    load_message,
    mark_message,
    run_message,
    runner_zip,
)
from flows.sandbox.runner.processes import descendants


class Wire:
    """A runner and the pipes to it."""

    def __init__(self, *options: str, boot: str = BOOT, archive: Path) -> None:
        archive.write_bytes(runner_zip())
        command = [sys.executable, "-I", "-u", "-c", boot, str(archive), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.chunks = Chunks(1 << 20)
        self.answers = Answers()
        self.ready: list[Answer] = []

    def pipe(self, stream: IO[bytes] | None) -> int:
        """Return the file descriptor of a pipe."""
        assert stream is not None
        return stream.fileno()

    def say(self, message: Message, piece: int = 1 << 20) -> None:
        """Send a message in pieces of this size."""
        data = b"".join(self.chunks.cut(message))
        for at in range(0, len(data), piece):
            os.write(self.pipe(self.process.stdin), data[at : at + piece])

    def hear(self, piece: int = 1 << 20) -> Answer:
        """Return the next answer, read in pieces of this size."""
        while not self.ready:
            data = os.read(self.pipe(self.process.stdout), piece)
            assert data, "the runner ended"
            self.ready += self.answers.feed(data)
        return self.ready.pop(0)

    def run(self, call: NodeCall) -> NodeResult:
        """Run a node and return its result."""
        self.say(run_message(call))
        return self.hear().result()

    def end(self) -> int:
        """Close the runner's stdin and return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=60)


def call(number: int, code: str = "context['n'] = context.get('n', 0) + 1") -> NodeCall:
    """Return a call of a node."""
    return NodeCall(f"c{number}", "node", "action", code, 10)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    """A runner that was started from its zip, as in E2B."""
    made = Wire(archive=tmp_path / "runner.zip")
    assert "ready" in made.hear().head
    yield made
    with contextlib.suppress(OSError):
        made.end()
    assert made.process.stdout is not None
    made.process.stdout.close()


def test_pieces_may_be_of_any_size(wire: Wire) -> None:
    """Messages and answers that are cut into single bytes arrive as in one piece."""
    wire.say(load_message({"ü\ud800": b'"v"', "n": b"1"}), piece=1)
    wire.say(run_message(call(1, "context['n'] += 1; print('ü', *context)")), piece=1)
    result = wire.hear(piece=1).result()
    assert result.failure is None
    assert result.changes == {"n": b"2"}
    assert result.stdout == "ü ü\\ud800 n\n"
    assert wire.end() == 0


def test_a_repeated_chunk_is_ignored(wire: Wire) -> None:
    """A chunk that is sent again has no effect."""
    chunk = b"".join(wire.chunks.cut(run_message(call(1))))
    for _ in range(3):
        os.write(wire.pipe(wire.process.stdin), chunk)
    assert wire.hear().result().changes == {"n": b"1"}
    assert wire.run(call(2)).changes == {"n": b"2"}


@pytest.mark.parametrize("said", [b"3 5\nhello", b"x" * 100, b"1 3\n{}\n"])
def test_garbage_on_stdin_ends_the_runner(wire: Wire, said: bytes) -> None:
    """A missing or malformed chunk ends the runner with an error: later data cannot be trusted."""
    os.write(wire.pipe(wire.process.stdin), said)
    assert wire.hear().head["error"]
    wire.process.wait(timeout=60)


def test_a_value_that_is_no_json_ends_the_runner(wire: Wire) -> None:
    """A context value that is not JSON ends the runner with an error that names it."""
    wire.say(load_message({"a": b"NaN"}))
    assert "NaN is not JSON" in wire.hear().head["error"]


def test_a_reader_that_lost_output_goes_on_at_the_mark(wire: Wire) -> None:
    """After a loss the reader skips to the mark, also in the middle of an answer, and asks again."""
    wire.say(load_message({"big": b'"' + b"x" * 100_000 + b'"'}))
    wire.say(run_message(call(1, "context['big'] += 'y'")))
    assert len(os.read(wire.pipe(wire.process.stdout), 1000)) == 1000  # and lost
    wire.answers.skip_to("abc123")
    wire.say(mark_message("abc123"))
    wire.say(run_message(call(1)))
    result = wire.hear(piece=777).result()
    assert result.changes == {"big": b'"' + b"x" * 100_000 + b'y"'}


def test_old_answers_are_forgotten_but_never_run_again(tmp_path: Path) -> None:
    """Answers are kept up to a limit; a call whose answer was dropped is refused, not run again."""
    boot = BOOT.replace("main()", "import runner.resident; runner.resident.KEPT_ANSWERS = 1; main()")
    wire = Wire(boot=boot, archive=tmp_path / "runner.zip")
    wire.hear()
    assert wire.run(call(1)).changes == {"n": b"1"}
    assert wire.run(call(1)).changes == {"n": b"1"}
    assert wire.run(call(2)).changes == {"n": b"2"}
    wire.say(run_message(call(1)))
    assert wire.hear().head == {"call_id": "c1", "forgotten": True}
    assert wire.run(call(3)).changes == {"n": b"3"}
    wire.end()


def test_the_end_of_input_ends_what_runs(wire: Wire) -> None:
    """When stdin ends, the running node is killed and the runner ends."""
    code = (
        "import subprocess, time; subprocess.Popen(['sleep', '300'], start_new_session=True); time.sleep(300)"
    )
    wire.say(run_message(call(1, code)))
    while len(below := descendants(wire.process.pid)) < 2:
        assert wire.process.poll() is None
    assert wire.end() == 0
    assert not any(is_alive(pid) for pid in below)


def test_nodes_run_under_their_own_account(tmp_path: Path) -> None:
    """Started as root with `--user`, the runner stays root and runs nodes under that account."""
    wire = Wire("--user", "nobody", archive=tmp_path / "runner.zip")
    wire.hear()
    code = """
import os
context["account"] = [os.getuid(), os.geteuid(), os.getgid(), os.environ["HOME"]]
open("file", "w").close()
try: os.kill(os.getppid(), 9)
except PermissionError: context["safe"] = True
"""
    if os.geteuid() == 0:
        import pwd

        entry = pwd.getpwnam("nobody")
        result = wire.run(call(1, code))
        assert result.failure is None
        account = f'[{entry.pw_uid},{entry.pw_uid},{entry.pw_gid},"{entry.pw_dir}"]'.encode("ascii")
        assert result.changes == {"account": account, "safe": b"true"}
    else:
        result = wire.run(call(1, "import os; context['uid'] = os.getuid()"))
        assert result.changes == {"uid": str(os.getuid()).encode("ascii")}
    wire.end()


def test_the_packed_runner_is_the_same_everywhere() -> None:
    """The runner's path in a template is the same on every machine, whatever its clock and time zone."""
    code = "from flows.sandbox.protocol import installed_runner; print(installed_runner())"
    elsewhere = {**os.environ, "TZ": "Pacific/Kiritimati", "PYTHONPATH": str(Path(__file__).parents[2])}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=elsewhere, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == installed_runner()


@pytest.mark.parametrize("line", [b"}", b"[" * 100_000, b"[1]", b"7", b"\xff", b"9" * 5000])
def test_a_line_that_is_no_answer_is_refused(line: bytes) -> None:
    """Garbage in the runner's output raises ValueError: a node can break only its own sandbox."""
    with pytest.raises(ValueError):  # noqa: PT011  (each decoder has its own message)
        list(Answers().feed(line + b"\n"))
