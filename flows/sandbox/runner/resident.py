"""The runner's main loop: read messages, hold the context, run one node at a time, write answers."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import selectors
import shutil
import signal
import tempfile
import time
from collections import deque
from typing import Any

from .child import child
from .node import COUNT_EVERY, Node
from .processes import LINUX, descendants, kill_below, widen
from .values import ENCODER, parse_json

KEPT_ANSWERS = 64 * 1024 * 1024
"""Bytes of earlier answers that are kept, to be sent again; the newest is always kept."""
KILL_TIMEOUT = 5.0
"""Seconds that killed processes may take to end; after that the runner ends with an error."""


class Runner:
    """Reads messages, holds the context, runs one node at a time, writes answers."""

    def __init__(self, stdin: int, stdout: int, options: argparse.Namespace) -> None:
        self.stdin, self.stdout, self.options = stdin, stdout, options
        self.values: dict[str, Any] = {}
        self.texts: dict[str, bytes] = {}
        self.answers: dict[str, bytes | None] = {}
        self.queue: deque[dict[str, Any]] = deque()
        self.node: Node | None = None
        self.raw, self.buffer, self.chunk, self.wanted = bytearray(), bytearray(), 0, 0
        self.head: dict[str, Any] = {}
        self.selector = selectors.DefaultSelector()
        self.account: Any = None
        if options.user and os.geteuid() == 0:
            import pwd

            with contextlib.suppress(KeyError):
                self.account = pwd.getpwnam(options.user)

    def write(self, head: dict[str, Any], body: tuple[bytes, ...] = ()) -> bytes:
        """Write a line of JSON and the bytes that follow it; return what was written."""
        data = b"".join((ENCODER.encode(head).encode("ascii"), b"\n", *body))
        self.write_bytes(data)
        return data

    def write_bytes(self, data: bytes) -> None:
        """Write bytes to the worker; blocks while nobody reads."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.stdout, view[: 1 << 20]) :]

    # messages

    def read(self) -> bool:
        """Read from stdin and act on the complete messages; return False at the end of stdin."""
        data = os.read(self.stdin, 1 << 20)
        self.raw += data
        while True:
            at = self.raw.find(b"\n", 0, 64)
            if at < 0:
                if len(self.raw) >= 64:
                    raise ValueError("stdin has something that is not a chunk")
                break
            number, size = map(int, self.raw[:at].split(b" "))
            if len(self.raw) < at + 1 + size:
                break
            if number > self.chunk + 1:
                raise ValueError(f"chunk {self.chunk + 1} is missing")
            if number == self.chunk + 1:
                self.chunk = number
                with memoryview(self.raw) as view:
                    self.buffer += view[at + 1 : at + 1 + size]
            del self.raw[: at + 1 + size]
        self.take_messages()
        return bool(data)

    def take_messages(self) -> None:
        """Act on every message that is complete."""
        while True:
            if not self.head:
                at = self.buffer.find(b"\n")
                if at < 0:
                    return
                self.head = json.loads(bytes(self.buffer[:at]))
                del self.buffer[: at + 1]
                self.wanted = sum(size for _, size in self.head.get("keys", ()))
            if len(self.buffer) < self.wanted:
                return
            with memoryview(self.buffer) as view:
                body, head = bytes(view[: self.wanted]), self.head
            del self.buffer[: self.wanted]
            self.head = {}
            if head["do"] == "load":
                self.load(head["keys"], body)
            elif head["do"] == "mark":
                self.write_bytes(b"\n")  # ends a line that the reader may have only in part
                self.write({"mark": head["mark"]})
            else:
                self.run(head)

    def load(self, keys: list[tuple[str, int]], body: bytes) -> None:
        """Set values in the context."""
        at = 0
        for name, size in keys:
            self.set_value(name, body[at : at + size])
            at += size
        gc.freeze()  # else a child's garbage collector would touch, and so copy, the context's pages

    def set_value(self, name: str, text: bytes) -> None:
        """Set one value in the context; raises ValueError if it is not JSON."""
        self.values[name] = parse_json(text)
        self.texts[name] = text

    def run(self, job: dict[str, Any]) -> None:
        """Queue a node to run; if its call ran already, send the answer again."""
        call = job["call_id"]
        if call not in self.answers:
            running = [self.node.job["call_id"]] if self.node else []
            if call not in running + [waiting["call_id"] for waiting in self.queue]:
                self.queue.append(job)
            return
        answer = self.answers[call]
        if answer is None:
            self.write({"call_id": call, "forgotten": True})
        else:
            self.write_bytes(answer)

    # nodes

    def begin(self, job: dict[str, Any]) -> None:
        """Start a node: fork its process."""
        node = Node(job, self.options.output_limit)
        ends: list[int] = []
        try:
            node.folder = tempfile.mkdtemp(prefix="node-", dir=self.options.folder)
            if self.account is not None:
                os.chown(node.folder, self.account.pw_uid, self.account.pw_gid)
            for sink in (node.result.append, node.outputs[0].add, node.outputs[1].add):
                reading, writing = os.pipe()
                ends.append(writing)
                node.pipes[reading] = sink
                os.set_blocking(reading, False)
                widen(reading)
            node.pid = os.fork()
        except OSError as error:
            self.clean_up(node, ends)
            why = failure_of_kind(type(error).__name__, f"the node could not be started: {error}")
            self.answer(node, {"failure": why}, [])
            return
        if node.pid == 0:
            child(node, self.values, self.texts, ends, self.account, self.options.processes)
        for end in ends:
            os.close(end)
        for reading in node.pipes:
            self.selector.register(reading, selectors.EVENT_READ)
        self.node = node

    def receive(self, reading: int, drain: bool = False) -> None:
        """Read from one of the node's pipes: once, or with `drain` all that is there."""
        node = self.node
        while node is not None:
            try:
                data = os.read(reading, 1 << 20)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self.selector.unregister(reading)
                return
            node.pipes[reading](data)
            if not drain:
                return

    def watch(self) -> None:
        """Finish the running node if it has ended, is late, or has too many processes."""
        node, now = self.node, time.monotonic()
        if node is None:
            return
        others = self.reap()
        failure = None
        if node.status is None:
            if now >= node.deadline:
                text = f"the node ran longer than its {node.job['timeout']:g} seconds and was killed"
                failure = failure_of_kind("NodeTimeout", text)
            elif now >= node.next_count:
                node.next_count = now + COUNT_EVERY
                if len(descendants(os.getpid())) > self.options.processes:
                    text = f"the node had more than {self.options.processes} processes and was killed"
                    failure = failure_of_kind("TooManyProcesses", text)
            if failure is None:
                return
        if others:
            self.kill_all()
        for reading in list(node.pipes):
            self.receive(reading, drain=True)
        self.node = None
        self.clean_up(node, [])
        self.finish(node, failure)

    def finish(self, node: Node, failure: dict[str, str] | None) -> None:
        """Answer for a node that has ended, and keep its changes unless it failed."""
        status = node.status or 0
        if failure is None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            failure = failure_of_kind("NodeKilled", f"the node's process was killed by {name}{hint}")
        head: dict[str, Any] = {"failure": failure}
        parts: list[tuple[str, bytes]] = []
        if failure is None:
            try:
                head, parts = node.parse()
                values = [parse_json(text) for _, text in parts]
                for (name, text), value in zip(parts, values):  # noqa: B905  (Python 3.8)
                    self.values[name], self.texts[name] = value, text
                gc.freeze()
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                ended = f"it ended with status {status >> 8} and no result"
                what = "its code wrote to the result's pipe" if node.result else ended
                failure = failure_of_kind("NodeExited", f"the node ended without a result: {what}")
                head, parts = {"failure": failure}, []
        self.answer(node, head, parts)

    def answer(self, node: Node, head: dict[str, Any], parts: list[tuple[str, bytes]]) -> None:
        """Send an answer and keep it; forget the oldest answers beyond KEPT_ANSWERS."""
        call = node.job["call_id"]
        head.update(
            call_id=call,
            keys=[[name, len(text)] for name, text in parts],
            stdout=node.outputs[0].text(),
            stderr=node.outputs[1].text(),
            duration=time.monotonic() - node.started,
        )
        self.answers[call] = self.write(head, tuple(text for _, text in parts))
        held = 0
        for earlier in reversed(list(self.answers)):
            held += len(self.answers[earlier] or b"")
            if held > KEPT_ANSWERS and earlier != call:
                self.answers[earlier] = None

    def clean_up(self, node: Node, ends: list[int]) -> None:
        """Close a node's pipes and remove its folder."""
        for number in [*node.pipes, *ends]:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(number)
            with contextlib.suppress(OSError):
                os.close(number)
        if node.folder:
            shutil.rmtree(node.folder, ignore_errors=True)

    def reap(self) -> bool:
        """Reap ended processes; return whether any process is left below the runner, orphans included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if self.node is not None and pid == self.node.pid:
                self.node.status = status

    def kill_all(self) -> None:
        """Kill every process below the runner and wait until all have ended; raises RuntimeError."""
        deadline = time.monotonic() + KILL_TIMEOUT
        while True:
            if not LINUX and self.node is not None:
                with contextlib.suppress(OSError):
                    os.killpg(self.node.pid, signal.SIGKILL)
            if not self.reap():
                return
            kill_below(os.getpid())
            if time.monotonic() > deadline:
                raise RuntimeError("a process of the node could not be killed")
            time.sleep(0.001)

    def serve(self, wakeup: int) -> None:
        """Serve until stdin ends."""
        self.selector.register(self.stdin, selectors.EVENT_READ)
        self.selector.register(wakeup, selectors.EVENT_READ)
        self.write({"ready": os.getpid()})
        while True:
            node = self.node
            wait = None if node is None else max(0.0, min(node.deadline, node.next_count) - time.monotonic())
            for key, _ in self.selector.select(wait):
                if key.fd == self.stdin:
                    if not self.read():
                        return
                elif key.fd == wakeup:
                    os.read(wakeup, 4096)
                else:
                    self.receive(key.fd)
            self.watch()
            while self.node is None and self.queue:
                self.begin(self.queue.popleft())


def failure_of_kind(kind: str, message: str) -> dict[str, str]:
    """Return a failure that is not an exception of the node's code."""
    return {"type": kind, "message": message, "traceback": ""}
