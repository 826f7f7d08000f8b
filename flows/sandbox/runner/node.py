"""A running node as the runner sees it: its process, its pipes, the output so far."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

COUNT_EVERY = 0.25
"""Seconds between two counts of a node's processes."""


class Output:
    """What a node printed: the first and the last bytes, half of the limit each."""

    def __init__(self, limit: int) -> None:
        self.half, self.rest = limit // 2, limit - limit // 2
        self.head, self.tail, self.total = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        """Add output; beyond the limit, drop bytes from the middle."""
        self.total += len(data)
        room = self.half - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > self.rest + (1 << 16):
            del self.tail[: len(self.tail) - self.rest]

    def text(self) -> str:
        """Return the output as text; a line in it says how many bytes were dropped."""
        tail = self.tail[max(0, len(self.tail) - self.rest) :]
        out = self.total - len(self.head) - len(tail)
        if not out:
            return (self.head + tail).decode("utf-8", "replace")
        middle = f"\n… {out} bytes left out …\n"
        return self.head.decode("utf-8", "replace") + middle + tail.decode("utf-8", "replace")


class Node:
    """A running node: its process, its pipes, the output so far."""

    def __init__(self, job: dict[str, Any], limit: int) -> None:
        self.job, self.pid, self.folder, self.token = job, 0, "", os.urandom(16).hex().encode("ascii")
        self.started = time.monotonic()
        self.deadline = self.started + float(job["timeout"])
        self.next_count = self.started + COUNT_EVERY
        self.status: int | None = None
        self.result: list[bytes] = []
        self.outputs = (Output(limit), Output(limit))
        self.pipes: dict[int, Callable[[bytes], None]] = {}

    def parse(self) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
        """Return the answer's head and the changed keys; raises ValueError if the node spoiled the result."""
        data = b"".join(self.result)
        line, _, rest = data.partition(b"\n")
        token, size, total = line.split(b" ")
        if token != self.token or len(rest) != int(size) + int(total):
            raise ValueError("the result is not complete")
        head = json.loads(rest[: int(size)])
        at, parts = int(size), []
        for name, length in head.pop("keys"):
            parts.append((name, rest[at : at + length]))
            at += length
        return head, parts
