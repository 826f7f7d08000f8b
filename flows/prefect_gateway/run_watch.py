"""Reads run states from Prefect once for all clients that poll, so more clients cost no more requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from flows.config.log_once import FaultLog
from flows.graphs.errors import NovaError, PrefectUnavailableError
from flows.graphs.flow_run_state import FlowRunState
from flows.prefect_gateway.flow_runs import PAGE, FlowRuns

log = logging.getLogger(__name__)

PACE = 1.0
"""Seconds between two rounds of look-ups. A failed look-up is also repeated to callers for so long."""
PATIENCE = 2.0
"""Seconds that a caller waits for Prefect: as long as clients pause between two polls."""
_REST_FACTOR = 2
"""The next round starts after this many times the last round's duration, if that is more than PACE."""
_VALID_PACES = 1.5
"""Paces for which an answer is used: more than one, so that nobody waits while the next is read."""
_GATHERING = 0.02
"""Seconds that the first caller waits for others to join it."""
_WATCHED = 30.0
"""Seconds for which an open run is read in each round after somebody asked for it."""


@dataclass(frozen=True)
class _Answer:
    state: FlowRunState | None
    asked_at: float
    came_at: float


class RunWatch:
    """Keeps the states of the flow runs that clients ask for, and reads all of them from Prefect at once.

    One look-up runs at a time. Once a second a look-up, the round, reads every watched run. A run that is not
    watched yet is read at once, together with other new ones. A run is forgotten when nobody asks for it any
    more. An answer may be nearly two seconds old: good enough to tell a client, but not to act on; for that
    there is `fresh`. `clock` returns seconds.
    """

    def __init__(self, runs: FlowRuns, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._clock = clock
        self._wanted: dict[UUID, float] = {}
        self._answers: dict[UUID, _Answer] = {}
        self._look_up: asyncio.Task[None] | None = None
        self._faults = FaultLog(log)
        self._pace = PACE
        self._next_round = self._silent_until = 0.0

    async def state(self, flow_run_id: UUID) -> FlowRunState | None:
        """Return a flow run's state, None if Prefect has no such run; raises PrefectUnavailableError."""
        self._wanted[flow_run_id] = self._clock()
        if not self._is_younger(flow_run_id, self._pace):
            self._join()
        async with _bounded():
            while not self._is_valid(flow_run_id):
                await asyncio.shield(self._join())
        return self._answers[flow_run_id].state

    async def fresh(self, flow_run_id: UUID) -> FlowRunState | None:
        """Read the state from Prefect now, to act on it; returns and raises as `state` does."""
        asked_at = self._clock()
        async with _bounded():
            state = await self._runs.find(flow_run_id)
        self._note(flow_run_id, state, asked_at)
        return state

    def expect(self, state: FlowRunState) -> None:
        """Note a state that Prefect has just returned, of a run that clients will ask for."""
        now = self._clock()
        self._forget(now)
        self._wanted[state.flow_run_id] = now
        self._note(state.flow_run_id, state, now)

    async def close(self) -> None:
        """Cancel the look-up that is under way."""
        if self._look_up is not None:
            self._look_up.cancel()
            await asyncio.gather(self._look_up, return_exceptions=True)

    def _is_valid(self, flow_run_id: UUID) -> bool:
        return self._is_younger(flow_run_id, _VALID_PACES * self._pace)

    def _is_younger(self, flow_run_id: UUID, age: float) -> bool:
        answer = self._answers.get(flow_run_id)
        return answer is not None and self._clock() < answer.came_at + age

    def _note(self, flow_run_id: UUID, state: FlowRunState | None, asked_at: float) -> None:
        known = self._answers.get(flow_run_id)
        if known is None or known.asked_at <= asked_at:
            self._answers[flow_run_id] = _Answer(state, asked_at, self._clock())

    def _join(self) -> asyncio.Task[None]:
        """Return the look-up that is under way, or start one; return a failed one for PACE seconds."""
        if self._look_up is None or (self._look_up.done() and self._clock() >= self._silent_until):
            self._look_up = asyncio.create_task(self._ask())
            # Marks a failure as seen, if nobody waits: the next caller gets it.
            self._look_up.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._look_up

    async def _ask(self) -> None:
        await asyncio.sleep(_GATHERING)
        began = self._clock()
        is_round = began >= self._next_round
        if is_round:
            self._forget(began)
        asked = [one for one in self._wanted if is_round or not self._is_valid(one)]
        try:
            for start in range(0, len(asked), PAGE):
                await self._read(asked[start : start + PAGE])
        except Exception as error:
            self._silent_until = self._clock() + PACE
            if not isinstance(error, NovaError):  # perhaps nobody waits for the answer
                self._faults.note(error, "The states of %d run(s) were not looked up.", len(asked))
            raise
        if is_round:
            now = self._clock()
            self._pace = max(PACE, _REST_FACTOR * (now - began))
            self._next_round = now + self._pace

    async def _read(self, page: list[UUID]) -> None:
        asked_at = self._clock()
        async with _bounded():
            found = await self._runs.find_all(page)
        for flow_run_id in page:
            self._note(flow_run_id, found.get(flow_run_id), asked_at)

    def _forget(self, now: float) -> None:
        """Forget runs that nobody asks for any more; those that are over or unknown sooner than open ones."""
        for flow_run_id, wanted_at in list(self._wanted.items()):
            answer = self._answers.get(flow_run_id)
            goes_on = answer is not None and answer.state is not None and not answer.state.final
            if wanted_at < now - (_WATCHED if goes_on else PATIENCE):
                del self._wanted[flow_run_id]
                self._answers.pop(flow_run_id, None)


@asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError:
        raise PrefectUnavailableError(f"Prefect did not answer within {PATIENCE:g} s.") from None
