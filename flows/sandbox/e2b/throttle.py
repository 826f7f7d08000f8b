"""Waiting one's turn to make a sandbox: so many a second, so many at once, and patience with refusals."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from flows.graphs.errors import SandboxError

log = logging.getLogger(__name__)

Made = TypeVar("Made")
Bury = Callable[[asyncio.Future[Made]], Awaitable[None]]

NOT_NOW = frozenset({"rate_limit", "busy"})
"""Reasons of a SandboxError that pass by themselves."""
SLACK = 1.02
"""How much slower than its limit a rate is kept: requests do not take the same time on their way."""
PAUSES = (0.2, 5.0)
"""Seconds between two tries of one creation, at least and at most: a tenth of what it has waited so far."""

REFUSAL = 0.15
"""Seconds in which a refusal comes; who has none by then is getting a sandbox, which may take longer."""


class _OutOfPatienceError(SandboxError):
    """The turn did not come in time: of all refusals the one that was waited out."""

    def __init__(self, patience: float, why: str) -> None:
        said = f"A sandbox waited {patience:g} s for its turn, and it did not come: {why}"
        super().__init__(said, reason="no_turn")


class CreationThrottle:
    """The places and the pace of one process's sandboxes.

    0 is no limit of that kind; `patience` is the seconds that one creation waits in all. Other processes
    share the account and know nothing of this one: what they use up shows in a refusal, and is waited out.
    """

    def __init__(self, per_second: float = 0.0, at_once: int = 0, patience: float = 300.0) -> None:
        self._interval = SLACK / per_second if per_second else 0.0
        self._places = asyncio.Semaphore(at_once) if at_once else None
        self._patience = patience
        self._moment = asyncio.Lock()
        self._line = asyncio.Lock()
        self._next = 0.0

    async def make(self, attempt: Callable[[], Awaitable[Made]], dispose_stale: Bury[Made]) -> Made:
        """Make a sandbox when it is its turn, again while E2B says "not now"; `attempt` makes it once.

        Whoever is cancelled gets none: `dispose_stale` ends what comes of an attempt that was under way.

        The sandbox has a place then, which `release` frees. Raises SandboxError when patience ends, and
        what `attempt` raises; no place is taken then. The reason of the former is `no_turn`.
        """
        deadline = asyncio.get_running_loop().time() + self._patience
        await self._take_place(deadline)
        try:
            return await self._try(attempt, dispose_stale, deadline)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Free the place of a sandbox that has ended."""
        if self._places is not None:
            self._places.release()

    async def _take_place(self, deadline: float) -> None:
        if self._places is None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            raise _OutOfPatienceError(self._patience, "every place is taken") from None

    async def _try(
        self, attempt: Callable[[], Awaitable[Made]], dispose_stale: Bury[Made], deadline: float
    ) -> Made:
        if not self._line.locked():
            await self._wait_for_moment(deadline)
            try:
                return await attempt()
            except SandboxError as refusal:
                if refusal.reason not in NOT_NOW:
                    raise
        since = asyncio.get_running_loop().time()
        while True:
            try:
                return await self._ask_in_line(attempt, dispose_stale, deadline, since)
            except _OutOfPatienceError:
                raise
            except SandboxError as refusal:
                if refusal.reason not in NOT_NOW:
                    raise

    async def _ask_in_line(
        self, attempt: Callable[[], Awaitable[Made]], dispose_stale: Bury[Made], deadline: float, since: float
    ) -> Made:
        """Ask when all that were refused before have; keep the line for a pause if the answer is no.

        One asks for all of this process: if each asked by itself, turns would go by between two questions.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._line.acquire()
        except TimeoutError:
            raise _OutOfPatienceError(self._patience, "others wait as well") from None
        asking: asyncio.Future[Made] | None = None
        try:
            try:
                await self._wait_for_moment(deadline)
                asking = asyncio.ensure_future(attempt())
                await asyncio.wait({asking}, timeout=REFUSAL)
                if asking.done() and (refusal := asking.exception()) is not None:
                    await self._pause(refusal, deadline, since)
            finally:
                self._line.release()
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking is not None:
                asking.cancel()  # too late, perhaps, for what it was about to return
                await dispose_stale(asking)
            raise

    async def _pause(self, refusal: BaseException, deadline: float, since: float) -> None:
        if not isinstance(refusal, SandboxError) or refusal.reason not in NOT_NOW:
            return
        now = asyncio.get_running_loop().time()
        pause = min(max((now - since) / 10, PAUSES[0]), PAUSES[1]) * random.uniform(0.75, 1.0)
        if now + pause > deadline:
            raise _OutOfPatienceError(self._patience, str(refusal)) from refusal
        log.info("A sandbox has to wait %.1f s: %s", pause, refusal)
        await asyncio.sleep(pause)

    async def _wait_for_moment(self, deadline: float) -> None:
        """Keep the pace: one after the other, in the order in which they came."""
        if not self._interval:
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline), self._moment:
                await asyncio.sleep(self._next - loop.time())
                self._next = loop.time() + self._interval
        except TimeoutError:
            raise _OutOfPatienceError(self._patience, "too many are before it") from None
