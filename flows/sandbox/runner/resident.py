"""The resident part: holds the context, takes messages in, runs one node at a time, gives answers out."""

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
from .values import ENCODER, parsed

KEPT_ANSWERS = 64 * 1024 * 1024
"""Bytes of earlier answers that are held to be given again; the newest is always held."""
KILL_PATIENCE = 5.0
"""Seconds after which a process that survives SIGKILL makes the sandbox broken."""


class Runner:
    """Holds the context, takes messages in, runs one node at a time, gives answers out."""

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
        """Give out a line and the bytes that belong to it."""
        data = b"".join((ENCODER.encode(head).encode("ascii"), b"\n", *body))
        self.put(data)
        return data

    def put(self, data: bytes) -> None:
        """Give out bytes; blocks while nobody reads."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.stdout, view[: 1 << 20]) :]

    # messages

    def read(self) -> bool:
        """Take what stdin has; False at its end."""
        data = os.read(self.stdin, 1 << 20)
        self.raw += data
        while True:
            at = self.raw.find(b"\n", 0, 64)
            if at < 0:
                if len(self.raw) >= 64:
                    raise ValueError("what came is not a chunk")
                break
            number, size = map(int, self.raw[:at].split(b" "))
            if len(self.raw) < at + 1 + size:
                break
            if number > self.chunk + 1:
                raise ValueError(f"chunk {self.chunk + 1} was lost")
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
                self.put(b"\n")  # ends a line that a reader may have come into the middle of
                self.write({"mark": head["mark"]})
            else:
                self.ask(head)

    def load(self, keys: list[tuple[str, int]], body: bytes) -> None:
        """Lay values over the context."""
        at = 0
        for name, size in keys:
            self.hold(name, body[at : at + size])
            at += size
        gc.freeze()  # so that a child's collector does not touch, and so copy, the context's pages

    def hold(self, name: str, text: bytes) -> None:
        """Keep one value; raises ValueError when it is not JSON."""
        self.values[name] = parsed(text)
        self.texts[name] = text

    def ask(self, job: dict[str, Any]) -> None:
        """Run a node, unless this call was made before: then give its answer again."""
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
            self.put(answer)

    # nodes

    def begin(self, job: dict[str, Any]) -> None:
        """Fork a node's process."""
        node = Node(job, self.options.output_limit)
        ends: list[int] = []
        try:
            node.folder = tempfile.mkdtemp(prefix="node-", dir=self.options.folder)
            if self.account is not None:
                os.chown(node.folder, self.account.pw_uid, self.account.pw_gid)
            for take in (node.result.append, node.outputs[0].add, node.outputs[1].add):
                reading, writing = os.pipe()
                ends.append(writing)
                node.pipes[reading] = take
                os.set_blocking(reading, False)
                widen(reading)
            node.pid = os.fork()
        except OSError as error:
            self.tidy(node, ends)
            why = failed(type(error).__name__, f"the node could not be started: {error}")
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
        """Take what came through one of the node's pipes: one read, or all that is there."""
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
        """End the running node when it is over, late, or too many."""
        node, now = self.node, time.monotonic()
        if node is None:
            return
        others = self.reap()
        failure = None
        if node.status is None:
            if now >= node.deadline:
                text = f"the node ran longer than its {node.job['timeout']:g} seconds and was killed"
                failure = failed("NodeTimeout", text)
            elif now >= node.next_count:
                node.next_count = now + COUNT_EVERY
                if len(descendants(os.getpid())) > self.options.processes:
                    text = f"the node had more than {self.options.processes} processes and was killed"
                    failure = failed("TooManyProcesses", text)
            if failure is None:
                return
        if others:
            self.kill_all()
        for reading in list(node.pipes):
            self.receive(reading, drain=True)
        self.node = None
        self.tidy(node, [])
        self.conclude(node, failure)

    def conclude(self, node: Node, failure: dict[str, str] | None) -> None:
        """Answer for a node that has ended; what it changed is held, unless it failed."""
        status = node.status or 0
        if failure is None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            failure = failed("NodeKilled", f"the node's process was killed by {name}{hint}")
        head: dict[str, Any] = {"failure": failure}
        parts: list[tuple[str, bytes]] = []
        if failure is None:
            try:
                head, parts = node.parse()
                values = [parsed(text) for _, text in parts]
                for (name, text), value in zip(parts, values):  # noqa: B905  (Python 3.8)
                    self.values[name], self.texts[name] = value, text
                gc.freeze()
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                ended = f"it ended with status {status >> 8} and no result"
                what = "its result was written over" if node.result else ended
                failure = failed("NodeExited", f"the node did not end as it should: {what}")
                head, parts = {"failure": failure}, []
        self.answer(node, head, parts)

    def answer(self, node: Node, head: dict[str, Any], parts: list[tuple[str, bytes]]) -> None:
        """Write an answer down and give it out."""
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

    def tidy(self, node: Node, ends: list[int]) -> None:
        """Close a node's pipes and remove its folder."""
        for number in [*node.pipes, *ends]:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(number)
            with contextlib.suppress(OSError):
                os.close(number)
        if node.folder:
            shutil.rmtree(node.folder, ignore_errors=True)

    def reap(self) -> bool:
        """Collect ended processes; whether any are left below the runner (orphans come back to it)."""
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
        """Kill every process below the runner and wait for their end."""
        deadline = time.monotonic() + KILL_PATIENCE
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


def failed(kind: str, message: str) -> dict[str, str]:
    """Describe a failure that is no exception of the node's code."""
    return {"type": kind, "message": message, "traceback": ""}
