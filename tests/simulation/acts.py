"""What may happen next: every rule of the simulation, each told by some whole numbers what exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.simulation.gates import Call
from tests.simulation.lateness import KINDS, Lateness
from tests.simulation.people import People, awake, pick
from tests.simulation.processes import NovaProcess, WorkerProcess
from tests.simulation.sandboxes import Node
from tests.simulation.world import World

PAUSES = (1.0, 3.0, 11.0, 35.0)
"""Seconds that pass: less and more than a lease lasts."""
OF_NODES = 8
"""Of so many nodes some raise: see `Acts.failing`."""
LOOKED_AT = 1
"""The number of the run that people look at: see `_run`."""
RANKS = 2
SELDOM = 8
"""One in so many looks of workers and reconcilers is made where it finds nothing."""
IDLE = 0.5
"""Seconds that pass where there is no step to make."""


class Acts(People):
    """The rules of one world. Those that do not apply do nothing."""

    def __init__(
        self, world: World, most_live: int = 3, failing: int = OF_NODES // 2, late: Sequence[str] = KINDS
    ) -> None:
        super().__init__(world, most_live)
        self.failing = failing
        """Of `OF_NODES` nodes, how many raise."""
        self.late = late
        """The kinds of transactions that come late."""
        self.lateness = Lateness(world)

    # -- the normal way of things --------------------------------------------------------------------

    def step(self, which: int, luck: int = 1) -> None:
        """Let the next step of a process happen; where it is the end of a node's code, that may raise."""
        step = pick(self.world.gate.open, which)
        if step is None:
            self.world.loop.pass_time(IDLE)
            return
        luck, fate = divmod(luck, OF_NODES)
        if isinstance(step, Node) and fate < self.failing:
            step.fails = True
            step.label += " and raises"
        self.world.step(step)
        self.looked_at = self.lateness.begin() or self.looked_at
        self.lateness.go_on(luck)

    def hurry(self, which: int, rank: int) -> None:
        """A part of a process becomes faster or slower than the others."""
        if (part := pick(self.world.gate.parts, which)) is not None:
            chosen = rank % (2 * RANKS + 1) - RANKS
            self.world.note(f"{part[0] or ''} {part[1]}: rank {chosen}")
            self.world.gate.rank(part, chosen)

    def poll_for_runs(self, which: int) -> None:
        """A worker looks for runs that are due, or all do: an event has told them of one."""
        which, seldom = divmod(which, SELDOM)
        if self.world.is_any_due or not seldom:
            idle = self._idle_workers()
            self._look_for_runs(idle if which % 2 else idle[which // 2 % (len(idle) or 1) :][:1])

    def _idle_workers(self) -> list[WorkerProcess]:
        return [one for one in awake(self.world.workers) if one.polling is None or one.polling.done()]

    def _look_for_runs(self, workers: Sequence[WorkerProcess]) -> None:
        for worker in workers:
            self.world.note(f"{worker} looks for runs")
            worker.poll()
        self.world.loop.settle()

    def reconcile(self, which: int) -> None:
        """A reconciler makes a round; seldom where there is nothing for it to do."""
        which, seldom = divmod(which, SELDOM)
        if self.world.is_any_left_alone or not seldom:
            self.look_after_runs(which)

    def look_after_runs(self, which: int) -> None:
        """A reconciler makes a round."""
        idle = [one for one in awake(self.world.processes) if one.looking is None or one.looking.done()]
        if (process := pick(idle, which)) is not None:
            self.world.note(f"{process} looks after runs")
            process.look()
            self.world.loop.settle()

    def pass_time(self, which: int) -> None:
        """Time passes."""
        self.world.pass_time(PAUSES[which % len(PAUSES)])

    # -- faults --------------------------------------------------------------------------------------

    def kill(self, which: int, arriving: int) -> None:
        """A process is killed, and another takes its place."""
        if (process := pick(self.world.processes, which)) is not None:
            self.world.kill(process, arriving)
            self.replace(process)

    def replace(self, process: NovaProcess) -> None:
        """Start a process of the same kind."""
        if isinstance(process, WorkerProcess):
            self.world.start_worker()
        else:
            self.world.start_api()

    def start(self, ranks: int) -> None:
        """Begin with two workers and an API, some faster than others."""
        for process in (self.world.start_worker(), self.world.start_worker(), self.world.start_api()):
            for part in ("run", "reconciler", "api"):
                ranks, rank = divmod(ranks, 2 * RANKS + 1)
                self.world.gate.rank((process, part), rank - RANKS)

    def pause(self, which: int, sent: int) -> None:
        """A process is paused."""
        if (process := pick(awake(self.world.processes), which)) is not None:
            self.world.pause(process, sent)

    def resume(self, which: int) -> None:
        """A process goes on that stands still."""
        halted = [one for one in self.world.processes if one.is_halted]
        if (process := pick(halted, which)) is not None:
            self.world.resume(process)

    def stall(self, which: int) -> None:
        """A transaction, one of the next, will come late: when leases have run out and others went on."""
        self.lateness.wish(self.late[which % len(self.late)])

    def get_on(self, which: int, how: int) -> None:
        """While a transaction is late, the others get on with its run, or with any."""
        late = self.lateness.late
        if late is None:
            return
        if not late.runs or how % 4 == 0:
            self._look_for_runs(self._idle_workers() if self.world.is_any_due else [])
        elif how % 4 < 3:
            self.reconcile(which)
        elif self.looked_at in self._stopped():
            self.retry(which, LOOKED_AT)
        else:
            self.retry_in_prefect(LOOKED_AT)

    def lose(self, which: int) -> None:
        """A message is lost."""
        if (call := pick(self._calls(), which)) is not None:
            self.world.lose(call)

    def double(self, which: int) -> None:
        """A request will arrive twice."""
        calls = [call for call in self._calls() if not call.is_instant and not call.has_arrived]
        if (call := pick(calls, which)) is not None:
            self.world.double(call)

    def break_sandbox(self, which: int) -> None:
        """A sandbox breaks, and with it the node in it."""
        living = [place for place in self.world.cloud.places.values() if place.is_alive]
        if (place := pick(living, which)) is not None:
            self.world.note(f"{place.id} breaks")
            self.world.cloud.kill(place.id)

    def cut_renewals(self, which: int) -> None:
        """The renewals of a worker find no database, or find it again."""
        if (worker := pick(self.world.workers, which)) is not None:
            worker.database.is_cut = not worker.database.is_cut
            self.world.note(f"{worker} cannot renew" if worker.database.is_cut else f"{worker} renews again")

    def _calls(self) -> list[Call[Any]]:
        return [step for step in self.world.gate.steps if isinstance(step, Call)]
