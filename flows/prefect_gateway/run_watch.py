"""One look at Prefect for all who ask: what it costs does not grow with the clients that poll."""

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
"""Seconds between two rounds of look-ups; so long Prefect's silence is passed on, too."""
PATIENCE = 2.0
"""Seconds that an asker waits for Prefect: as long as clients pause between two polls."""
_SLOWER = 2
"""How much longer than a round took it is till the next, where Prefect is slow or the runs are many."""
_HOLDS = 1.5
"""Paces that an answer is passed on: longer than one, for nobody to wait while the next is under way."""
_GATHERING = 0.02
"""Seconds that the first asker waits for others to join it."""
_WATCHED = 30.0
"""Seconds that an open run is read along with the others after somebody asked for it."""


@dataclass(frozen=True)
class _Answer:
    state: FlowRunState | None
    asked_at: float
    came_at: float


class RunWatch:
    """Keeps the states of the flow runs that are asked for; Prefect is asked for all of them at once.

    One look-up is under way at a time, and one a second, the round, reads every run that is watched. Only who
    asks for a run that is not watched yet has a look-up before that, for the new ones alone. A run is
    forgotten when nobody asks for it any more. An answer may be nearly two seconds old: good enough to tell a
    client, not to act on. For that there is `fresh`. `clock` counts seconds.
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
        """What Prefect says of a flow run; None when it knows none. Raises PrefectUnavailableError."""
        self._wanted[flow_run_id] = self._clock()
        if not self._is_younger(flow_run_id, self._pace):
            self._join()
        async with _patience():
            while not self._is_younger(flow_run_id, _HOLDS * self._pace):
                await asyncio.shield(self._join())
        return self._answers[flow_run_id].state

    async def fresh(self, flow_run_id: UUID) -> FlowRunState | None:
        """Ask Prefect itself, now: for who is about to act on the answer. Raises PrefectUnavailableError."""
        asked_at = self._clock()
        async with _patience():
            state = await self._runs.find(flow_run_id)
        self._note(flow_run_id, state, asked_at)
        return state

    def expect(self, state: FlowRunState) -> None:
        """Take note of what Prefect has just said of a run that will be asked for."""
        now = self._clock()
        self._forget(now)
        self._wanted[state.flow_run_id] = now
        self._note(state.flow_run_id, state, now)

    async def close(self) -> None:
        """End what is under way."""
        if self._look_up is not None:
            self._look_up.cancel()
            await asyncio.gather(self._look_up, return_exceptions=True)

    def _is_younger(self, flow_run_id: UUID, age: float) -> bool:
        answer = self._answers.get(flow_run_id)
        return answer is not None and self._clock() < answer.came_at + age

    def _note(self, flow_run_id: UUID, state: FlowRunState | None, asked_at: float) -> None:
        known = self._answers.get(flow_run_id)
        if known is None or known.asked_at <= asked_at:
            self._answers[flow_run_id] = _Answer(state, asked_at, self._clock())

    def _join(self) -> asyncio.Task[None]:
        """The look-up that is under way, or the next one; for a moment also one that has failed."""
        if self._look_up is None or (self._look_up.done() and self._clock() >= self._silent_until):
            self._look_up = asyncio.create_task(self._ask())
            # Where nobody waits for it a failure is seen by the next who asks.
            self._look_up.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._look_up

    async def _ask(self) -> None:
        await asyncio.sleep(_GATHERING)
        began = self._clock()
        is_round = began >= self._next_round
        if is_round:
            self._forget(began)
        asked = [one for one in self._wanted if is_round or not self._is_younger(one, _HOLDS * self._pace)]
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
            self._pace = max(PACE, _SLOWER * (now - began))
            self._next_round = now + self._pace

    async def _read(self, page: list[UUID]) -> None:
        asked_at = self._clock()
        async with _patience():
            found = await self._runs.find_all(page)
        for flow_run_id in page:
            self._note(flow_run_id, found.get(flow_run_id), asked_at)

    def _forget(self, now: float) -> None:
        """Drop the runs that nobody asks for any more; those that are over, or unknown, the sooner."""
        for flow_run_id, wanted_at in list(self._wanted.items()):
            answer = self._answers.get(flow_run_id)
            goes_on = answer is not None and answer.state is not None and not answer.state.final
            if wanted_at < now - (_WATCHED if goes_on else PATIENCE):
                del self._wanted[flow_run_id]
                self._answers.pop(flow_run_id, None)


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError:
        raise PrefectUnavailableError(f"Prefect did not answer within {PATIENCE:g} s.") from None
