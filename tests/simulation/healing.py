"""The end of a simulation: nothing breaks any more, all that waits goes on, and everything comes to rest."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from tests.simulation.acts import Acts
from tests.simulation.ledger import LIVE
from tests.simulation.world import World
from tests.stand_in.records import FlowRun

ROUNDS = 150
"""Rounds of the reconcilers in which everything must have come to rest."""
PATIENCE = 25
"""Rounds after which what has not changed will not."""
BETWEEN = 12.0
"""Seconds between two of them."""
STEPS_A_ROUND = 5000

HEALS = "nothing breaks any more"

_OF_ROW = {"completed": {"COMPLETED"}, "failed": {"FAILED", "CRASHED"}, "cancelled": {"CANCELLED"}}


class Healing:
    """Brings a world to rest, and says what is wrong in the end."""

    def __init__(self, world: World, acts: Acts) -> None:
        self._world = world
        self._acts = acts

    def heal(self) -> list[str]:
        """Let everything come to rest; return what is wrong then."""
        world = self._world
        world.note(HEALS)
        world.gate.forget()
        for process in world.processes:
            process.database.is_cut = False
            if process.is_halted:
                world.resume(process)
        if not world.workers:
            world.start_worker()
        if not world.apis:
            world.start_api()
        left: list[str] = []
        since = 0
        for number in range(ROUNDS):
            self._resume_suspended()
            self._flow()
            before, left = left, self._left()
            since = since + 1 if left == before else 0
            if not left or world.ledger.violations:
                return []
            if since == PATIENCE:
                break
            world.pass_time(BETWEEN)
            for worker in world.workers:
                if worker.polling is None or worker.polling.done():
                    worker.poll()
            self._acts.look_after_runs(number)
            world.loop.settle()
        return [f"At the end: {each}" for each in left]

    def _flow(self) -> None:
        """Let all steps happen, one after the other."""
        for _ in range(STEPS_A_ROUND):
            steps = self._world.gate.open
            if not steps or self._world.ledger.violations:
                return
            self._world.step(steps[0])
        self._world.ledger.violations.append("There is no end of steps.")

    def _resume_suspended(self) -> None:
        for run in list(self._world.stand_in.world.tables.flow_runs.values()):
            if run.state is not None and run.state.type == "PAUSED":
                self._world.stand_in.answer("POST", f"/flow_runs/{run.id}/resume", {}, {})

    def _left(self) -> list[str]:
        """What has not come to rest."""
        world = self._world
        left: list[str] = []
        runs = {UUID(run.id): run for run in world.stand_in.world.tables.flow_runs.values()}
        for row in world.site.tables.executions().values():
            left += self._left_of_row(row, runs.get(row["flow_run_id"]))
        for run in runs.values():
            if run.state is None or not run.state.is_final:
                left.append(f"flow run {run.id[:4]} is {run.state and run.state.name}")
        left += [f"{process} has runs" for process in world.workers if not process.worker.is_idle]
        left += ["a request is not answered" for task in self._acts.asked if not task.done()]
        return left

    def _left_of_row(self, row: dict[str, Any], run: FlowRun | None) -> list[str]:
        name = f"execution {row['id']}"
        if row["status"] in LIVE:
            return [f"{name} is {row['status']}"]
        if row["lease_owner"] is not None:
            return [f"{name} is {row['status']} and leased"]
        if run is None or run.state is None or self._was_marked(row["task_id"]):
            return []
        if row["error_kind"] != "not_started" and run.state.type not in _OF_ROW[row["status"]]:
            return [f"{name} is {row['status']}, and {run.state.name} in Prefect"]
        return []

    def _was_marked(self, task_id: UUID | None) -> bool:
        """Whether a person has set how it ends in Prefect."""
        return any(
            word.task_id == task_id and word.kind in ("mark", "cancel") for word in self._world.ledger.words
        )
