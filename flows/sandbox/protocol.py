"""The worker's side of the runner's protocol: write messages, read answers (see `flows.sandbox.runner`)."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.graphs.errors import SandboxError
from flows.sandbox.port import Fragments, NodeCall, NodeFailure, NodeResult

RUNNER = Path(__file__).parent / "runner"
UNIX = 3
"""The number for Unix in a zip entry's field `create_system`."""
BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from runner.main import main; sys.path.pop(0); main()"
)
"""Python code that starts the runner; its first argument is the folder or zip that contains the package."""


@lru_cache(maxsize=1)
def runner_zip() -> bytes:
    """Return the runner packed as an importable zip, for machines without this package.

    The same sources give the same bytes on every machine: `installed_runner` contains their hash.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(RUNNER.glob("*.py")):
            entry = zipfile.ZipInfo(f"runner/{path.name}")  # with the fixed date 1980-01-01
            entry.create_system = UNIX
            archive.writestr(entry, path.read_bytes())
    return packed.getvalue()


@lru_cache(maxsize=1)
def installed_runner() -> str:
    """Return the path of this version's runner in a template; each version has another path."""
    return f"/opt/nova/runner-{hashlib.sha256(runner_zip()).hexdigest()[:12]}.zip"


Message = Sequence[bytes]
"""A message in parts: joining them would copy large values."""


def load_message(context: Fragments) -> Message:
    """Return the message that sets values in the context."""
    return _message(
        {"do": "load", "keys": [[name, len(text)] for name, text in context.items()]}, *context.values()
    )


def run_message(call: NodeCall) -> Message:
    """Return the message that runs a node, or asks for its answer again if it ran already."""
    return _message({"do": "run", **vars(call)})


def mark_message(mark: str) -> Message:
    """Return the message that makes the runner write `mark` to its output."""
    return _message({"do": "mark", "mark": mark})


def _message(head: dict[str, Any], *body: bytes) -> Message:
    return (json.dumps(head).encode("ascii") + b"\n", *body)


class Chunks:
    """Cuts messages into numbered chunks, so that the runner ignores a chunk that is sent twice."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._number = 0

    def cut(self, message: Message) -> Iterator[bytes]:
        """Yield a message's numbered chunks: a short header and at most `size` bytes each."""
        pieces: list[memoryview] = []
        free = self._size
        for part in message:
            rest = memoryview(part)
            while rest:
                pieces.append(rest[:free])
                rest = rest[free:]
                free -= len(pieces[-1])
                if not free:
                    yield self._numbered(pieces)
                    pieces, free = [], self._size
        if pieces:
            yield self._numbered(pieces)

    def _numbered(self, pieces: list[memoryview]) -> bytes:
        self._number += 1
        return b"".join((b"%d %d\n" % (self._number, sum(map(len, pieces))), *pieces))


@dataclass(frozen=True)
class Answer:
    """One line from the runner, and the bytes that follow it."""

    head: dict[str, Any]
    body: bytes

    def result(self) -> NodeResult:
        """Return the node's result; raises SandboxError if the runner no longer has it."""
        head = self.head
        if head.get("forgotten"):
            raise SandboxError(f"The sandbox ran {head['call_id']} but no longer has its result.")
        changes = {}
        at = 0
        for name, size in head["keys"]:
            changes[name] = self.body[at : at + size]
            at += size
        failure = head.get("failure")
        return NodeResult(
            changes=changes,
            branch=head.get("branch"),
            branch_truth=head.get("truth"),
            stdout=head["stdout"],
            stderr=head["stderr"],
            duration=head["duration"],
            failure=NodeFailure(**failure) if failure else None,
        )


class Answers:
    """Parses the runner's output, which may be cut into pieces anywhere."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: dict[str, Any] = {}
        self._size = 0
        self._mark = b""

    def skip_to(self, mark: str) -> None:
        """Skip all output up to `mark`, because some output was lost."""
        self._buffer.clear()
        self._head = {}
        self._mark = b'\n{"mark":"%b"}\n' % mark.encode("ascii")

    def feed(self, data: bytes) -> Iterator[Answer]:
        """Add a piece of output and yield each answer that it completes; raises ValueError on garbage."""
        self._buffer += data
        if self._mark:
            at = self._buffer.find(self._mark)
            if at < 0:
                del self._buffer[: -len(self._mark)]
                return
            del self._buffer[: at + len(self._mark)]
            self._mark = b""
        while True:
            if not self._head:
                at = self._buffer.find(b"\n")
                if at < 0:
                    return
                line = bytes(self._buffer[:at])
                del self._buffer[: at + 1]
                if not line:
                    continue
                self._head = _read_head(line)
                self._size = sum(size for _, size in self._head.get("keys", ()))
            if len(self._buffer) < self._size:
                return
            with memoryview(self._buffer) as view:
                answer = Answer(self._head, bytes(view[: self._size]))
            del self._buffer[: self._size]
            self._head = {}
            yield answer


def _read_head(line: bytes) -> dict[str, Any]:
    """Parse a line of the runner's output; raises ValueError if it is not the runner's but a node's."""
    try:
        head = json.loads(line)
    except RecursionError:
        raise ValueError("a line is nested too deeply") from None
    if not isinstance(head, dict):
        raise ValueError("a line is not a JSON object")
    return head
