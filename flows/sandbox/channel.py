"""The part of a sandbox that both transports share: it speaks the runner's protocol."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, NoReturn

from flows.graphs.errors import SandboxError
from flows.sandbox.port import Fragments, NodeCall, NodeResult
from flows.sandbox.protocol import Answers, Message, load_message, run_message

GRACE = 15.0
"""Seconds that the runner may take to answer after a node's timeout. It ends late nodes itself."""
LOAD_TIMEOUT = 120.0
"""Seconds that sending a context to a sandbox may take."""


class Channel(ABC):
    """Speaks with one runner.

    A transport passes the runner's output to `receive`. It calls `mark_broken` when the connection is lost
    for good.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._answers = Answers()
        self._grace = grace
        self._waiting: dict[str, asyncio.Future[NodeResult]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(retrieve_exception)
        self._fault: str | None = None
        self._reason = "broken"
        self._send_lock = asyncio.Lock()

    @property
    @abstractmethod
    def id(self) -> str:
        """The provider's name for this sandbox."""

    @abstractmethod
    async def _send(self, message: Message) -> None:
        """Send a message to the runner; raises SandboxError."""

    @abstractmethod
    async def kill(self) -> None:
        """End the sandbox and everything in it. Never raises; may be called twice."""

    async def load(self, context: Fragments) -> None:
        """Set these keys in the sandbox's context; raises SandboxError."""
        if not context:
            return
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                await self._send_whole(load_message(context))
        except TimeoutError:
            await self._end_late(f"it did not take the context in {LOAD_TIMEOUT:g} seconds")

    async def run(self, call: NodeCall) -> NodeResult:
        """Run one node and return its result; raises SandboxError, and then the sandbox is unusable."""
        future = self._waiting.get(call.call_id)
        if future is None:
            future = self._waiting[call.call_id] = asyncio.get_running_loop().create_future()
            future.add_done_callback(retrieve_exception)
        try:
            async with asyncio.timeout(call.timeout + self._grace):
                await self._send_whole(run_message(call))
                return await asyncio.shield(future)
        except TimeoutError:
            limit = call.timeout + self._grace
            await self._end_late(f"it did not answer for node {call.node_id} in {limit:g} seconds")
        finally:
            self._waiting.pop(call.call_id, None)

    async def _end_late(self, cause: str) -> NoReturn:
        """End the sandbox because of a timeout; raises SandboxError."""
        self._fault, self._reason = cause, "timeout"
        self.mark_broken(cause)
        await self.kill()
        raise self._error() from None

    def receive(self, data: bytes) -> None:
        """Read a piece of the runner's output, cut anywhere."""
        try:
            for answer in self._answers.feed(data):
                head = answer.head
                if "ready" in head:
                    if not self._ready.done():
                        self._ready.set_result(None)
                elif "error" in head:
                    self.mark_broken(f"its runner stopped with an error: {head['error']}", "runner")
                elif "call_id" in head:
                    self._settle(head["call_id"], answer.result())
        except SandboxError as error:
            self.mark_broken(str(error))
        except (ValueError, KeyError, TypeError) as error:
            self.mark_broken(f"its runner sent an unreadable answer: {error}")

    def mark_broken(self, cause: str, reason: str = "broken") -> None:
        """Mark the sandbox as unusable and fail every waiting call. Only the first cause is kept."""
        if self._fault is None:
            self._fault, self._reason = cause, reason
        if not self._ready.done():
            self._ready.set_exception(self._error())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._error())

    async def _send_whole(self, message: Message) -> None:
        """Send one message; other messages wait, so that their bytes do not mix."""
        async with self._send_lock:
            if self._fault is not None:
                raise self._error()
            try:
                await self._send(message)
            except asyncio.CancelledError:
                self.mark_broken("a message to it was only partly sent")
                raise

    def _settle(self, call_id: str, result: NodeResult) -> None:
        future = self._waiting.get(call_id)
        if future is not None and not future.done():
            future.set_result(result)

    def _error(self) -> SandboxError:
        return SandboxError(f"Sandbox {self.id} broke: {self._fault}.", reason=self._reason)


def retrieve_exception(future: asyncio.Future[Any]) -> None:
    """Retrieve a future's exception, so that asyncio does not log it when nobody awaits the future."""
    if not future.cancelled():
        future.exception()
