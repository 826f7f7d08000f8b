"""Limit how many sandboxes a process creates: per second and at once; retry when E2B refuses one for now."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from flows.graphs.errors import SandboxError

log = logging.getLogger(__name__)

Made = TypeVar("Made")
Dispose = Callable[[asyncio.Future[Made]], Awaitable[None]]

TEMPORARY = frozenset({"rate_limit", "busy"})
"""Reasons of a SandboxError after which the same creation may succeed later."""
SLACK = 1.02
"""The interval between creations is this many times what the rate allows: requests vary in latency."""
RETRY_PAUSE = (0.2, 5.0)
"""Least and most seconds between two tries of one creation; between them a tenth of its wait so far."""

REFUSAL_TIME = 0.15
"""Seconds in which E2B refuses a creation if it does. After that the creation counts as accepted."""


class _OutOfPatienceError(SandboxError):
    """A creation waited for its turn longer than `patience`; the reason is `no_turn`."""

    def __init__(self, patience: float, why: str) -> None:
        message = f"No sandbox was created: it waited {patience:g} s for its turn (NOVA_E2B_PATIENCE). {why}"
        super().__init__(message, reason="no_turn")


class CreationThrottle:
    """Limits one process's sandboxes: so many creations a second, so many sandboxes at once.

    0 means no such limit; `patience` is the seconds that one creation waits in all. Other processes
    share the account and are not counted here. If they use up E2B's limits, E2B refuses and the creation is
    retried.
    """

    def __init__(self, per_second: float = 0.0, at_once: int = 0, patience: float = 300.0) -> None:
        self._interval = SLACK / per_second if per_second else 0.0
        self._slots = asyncio.Semaphore(at_once) if at_once else None
        self._patience = patience
        self._pace_lock = asyncio.Lock()
        self._line_lock = asyncio.Lock()
        self._next_creation = 0.0

    async def make(self, attempt: Callable[[], Awaitable[Made]], dispose_stale: Dispose[Made]) -> Made:
        """Call `attempt` at this creation's turn, again while E2B refuses for now; return its sandbox.

        The sandbox takes a slot, which `release` frees; after an exception no slot is taken. Raises
        SandboxError of reason `no_turn` when patience ends, and whatever `attempt` raises. If this is
        cancelled during an attempt, `dispose_stale` must end the sandbox that the attempt creates.
        """
        deadline = asyncio.get_running_loop().time() + self._patience
        await self._take_slot(deadline)
        try:
            return await self._try(attempt, dispose_stale, deadline)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Free the slot of a sandbox that has ended."""
        if self._slots is not None:
            self._slots.release()

    async def _take_slot(self, deadline: float) -> None:
        if self._slots is None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise _OutOfPatienceError(
                self._patience, "This process may have no more (NOVA_E2B_SANDBOXES)."
            ) from None

    async def _try(
        self, attempt: Callable[[], Awaitable[Made]], dispose_stale: Dispose[Made], deadline: float
    ) -> Made:
        if not self._line_lock.locked():
            await self._keep_pace(deadline)
            try:
                return await attempt()
            except SandboxError as refusal:
                if refusal.reason not in TEMPORARY:
                    raise
        since = asyncio.get_running_loop().time()
        while True:
            try:
                return await self._try_in_line(attempt, dispose_stale, deadline, since)
            except _OutOfPatienceError:
                raise
            except SandboxError as refusal:
                if refusal.reason not in TEMPORARY:
                    raise

    async def _try_in_line(
        self,
        attempt: Callable[[], Awaitable[Made]],
        dispose_stale: Dispose[Made],
        deadline: float,
        since: float,
    ) -> Made:
        """Try once, after the refused creations that wait already; after a refusal, pause and keep the line.

        Only the first in line asks E2B. If each creation retried by itself, free slots would go unused.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._line_lock.acquire()
        except TimeoutError:
            raise _OutOfPatienceError(self._patience, "Others that E2B refused are before it.") from None
        asking: asyncio.Future[Made] | None = None
        try:
            try:
                await self._keep_pace(deadline)
                asking = asyncio.ensure_future(attempt())
                await asyncio.wait({asking}, timeout=REFUSAL_TIME)
                if asking.done() and (refusal := asking.exception()) is not None:
                    await self._pause(refusal, deadline, since)
            finally:
                self._line_lock.release()
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking is not None:
                asking.cancel()  # it may be too late: the sandbox may exist already
                await dispose_stale(asking)
            raise

    async def _pause(self, refusal: BaseException, deadline: float, since: float) -> None:
        if not isinstance(refusal, SandboxError) or refusal.reason not in TEMPORARY:
            return
        now = asyncio.get_running_loop().time()
        pause = min(max((now - since) / 10, RETRY_PAUSE[0]), RETRY_PAUSE[1]) * random.uniform(0.75, 1.0)
        if now + pause > deadline:
            raise _OutOfPatienceError(self._patience, str(refusal)) from refusal
        log.info("The creation of a sandbox is retried in %.1f s: %s", pause, refusal)
        await asyncio.sleep(pause)

    async def _keep_pace(self, deadline: float) -> None:
        """Wait until the rate allows the next creation; first come, first served."""
        if not self._interval:
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline), self._pace_lock:
                await asyncio.sleep(self._next_creation - loop.time())
                self._next_creation = loop.time() + self._interval
        except TimeoutError:
            raise _OutOfPatienceError(
                self._patience, "Too many are before it at NOVA_E2B_CREATIONS_PER_SECOND."
            ) from None
