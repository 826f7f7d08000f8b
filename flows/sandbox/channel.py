"""A sandbox with a runner in it, whatever carries the bytes: the part that both transports share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, NoReturn

from flows.graphs.errors import SandboxError
from flows.sandbox.port import Fragments, NodeCall, NodeResult
from flows.sandbox.protocol import Answers, Message, load_message, run_message

GRACE = 15.0
"""Seconds beyond a node's timeout in which the runner must have answered; it ends late nodes itself."""
LOADING = 120.0
"""Seconds in which a sandbox must have taken a context."""


class Channel(ABC):
    """Speaks with one runner. A transport feeds `received`, calls `broke` when the way is gone for good."""

    def __init__(self, grace: float = GRACE) -> None:
        self._answers = Answers()
        self._grace = grace
        self._waiting: dict[str, asyncio.Future[NodeResult]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(seen)
        self._fault: str | None = None
        self._reason = "broken"
        self._turn = asyncio.Lock()

    @property
    @abstractmethod
    def id(self) -> str:
        """The provider's name for this sandbox."""

    @abstractmethod
    async def _send(self, message: Message) -> None:
        """Carry a message to the runner; raises SandboxError."""

    @abstractmethod
    async def kill(self) -> None:
        """End the sandbox and everything in it. Never raises; may be called twice."""

    async def load(self, context: Fragments) -> None:
        """Lay these keys over the context; raises SandboxError."""
        if not context:
            return
        try:
            async with asyncio.timeout(LOADING):
                await self._say(load_message(context))
        except TimeoutError:
            await self._give_up(f"it did not take the context in {LOADING:g} seconds")

    async def run(self, call: NodeCall) -> NodeResult:
        """Run one node and wait for its result; raises SandboxError, after which the sandbox is of no use."""
        future = self._waiting.get(call.call_id)
        if future is None:
            future = self._waiting[call.call_id] = asyncio.get_running_loop().create_future()
            future.add_done_callback(seen)
        try:
            async with asyncio.timeout(call.timeout + self._grace):
                await self._say(run_message(call))
                return await asyncio.shield(future)
        except TimeoutError:
            limit = call.timeout + self._grace
            await self._give_up(f"it did not answer for node {call.node_id} in {limit:g} seconds")
        finally:
            self._waiting.pop(call.call_id, None)

    async def _give_up(self, cause: str) -> NoReturn:
        self._fault, self._reason = cause, "timeout"
        self.broke(cause)
        await self.kill()
        raise self._error() from None

    def received(self, data: bytes) -> None:
        """Take a piece of the runner's output."""
        try:
            for answer in self._answers.feed(data):
                head = answer.head
                if "ready" in head:
                    if not self._ready.done():
                        self._ready.set_result(None)
                elif "error" in head:
                    self.broke(f"its runner gave up: {head['error']}", "runner")
                elif "call_id" in head:
                    self._settle(head["call_id"], answer.result())
        except SandboxError as error:
            self.broke(str(error))
        except (ValueError, KeyError, TypeError) as error:
            self.broke(f"its runner said what nobody understands: {error}")

    def broke(self, cause: str, reason: str = "broken") -> None:
        """Take note that the sandbox is of no use any more and tell who waits. The first cause counts."""
        if self._fault is None:
            self._fault, self._reason = cause, reason
        if not self._ready.done():
            self._ready.set_exception(self._error())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._error())

    async def _say(self, message: Message) -> None:
        """Send one message whole, not mixed with another."""
        async with self._turn:
            if self._fault is not None:
                raise self._error()
            try:
                await self._send(message)
            except asyncio.CancelledError:
                self.broke("a message to it was cut short")
                raise

    def _settle(self, call_id: str, result: NodeResult) -> None:
        future = self._waiting.get(call_id)
        if future is not None and not future.done():
            future.set_result(result)

    def _error(self) -> SandboxError:
        return SandboxError(f"Sandbox {self.id} broke: {self._fault}.", reason=self._reason)


def seen(future: asyncio.Future[Any]) -> None:
    """Mark a future's exception as seen, for when nobody waits for it any more."""
    if not future.cancelled():
        future.exception()
