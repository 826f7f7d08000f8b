"""One simulation: processes, their seams and the clock; what happens in it is said by `acts`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection
from typing import Any, TypeVar
from uuid import UUID

from tests.simulation.gates import Call, Gate, Process, Step
from tests.simulation.ledger import LIVE, Ledger
from tests.simulation.processes import ApiProcess, NovaProcess, Surroundings, WorkerProcess
from tests.simulation.sandboxes import Cloud
from tests.simulation.site import UNREPEATABLE, Site, faults
from tests.stand_in.records import JSON, FlowRun
from tests.stand_in.transport import Transport

P = TypeVar("P", bound=NovaProcess)

TICK = 0.02
"""Seconds that a step takes."""
STOPS = ("prefect.flow-run.Cancelling", "prefect.flow-run.Suspended")


class World:
    """What one simulation has, and the small things that happen in it one at a time."""

    def __init__(self, site: Site, seed: int = 0) -> None:
        random.seed(seed)  # what the production code does by chance: pauses
        self.site = site
        self.loop = site.loop
        self.loop.set_exception_handler(lambda loop, context: None)
        self.gate = Gate()
        self.stand_in = site.fresh(seed)
        self.began = self.loop.time()
        self.cloud = Cloud(self.gate)
        self.steps = 0
        self.trace: list[str] = []
        self.tasks_known: list[UUID] = []
        """Ids of the runs that people know of."""
        self.ledger = Ledger(site.tables, lambda: self.steps, UNREPEATABLE)
        site.tables.watched = self.ledger.look
        self.cloud.started = self.ledger.started
        self.stand_in.world.listeners.append(self._event)
        transport = Transport(self.stand_in)
        self.around = Surroundings(self.loop, self.gate, site.tables, transport, self.cloud, site.settings)
        self.around.note, self.around.fault = self.note, self.ledger.violations.append
        self.workers: list[WorkerProcess] = []
        self.apis: list[ApiProcess] = []
        self._numbers = itertools.count(1)

    @property
    def processes(self) -> list[NovaProcess]:
        """Those that live."""
        return [*self.workers, *self.apis]

    def note(self, what: str) -> None:
        """Write down what happens."""
        self.trace.append(f"{self.steps:5d} {self.loop.time() - self.began:8.2f}  {what}")

    def check(self) -> None:
        """Note faults of NOVA's own, and which runs are over everywhere: people are done with them."""
        self.ledger.violations += faults
        faults.clear()
        runs = self.stand_in.world.tables.flow_runs
        for row in self.ledger.rows.values():
            if row["status"] not in LIVE and row["flow_run_id"] is not None:
                run = runs.get(str(row["flow_run_id"]))
                if run is not None and run.state is not None and run.state.is_final:
                    self.ledger.over(row)

    @property
    def is_any_due(self) -> bool:
        """Whether a run waits in its queue."""
        return any(run.state and run.state.type == "SCHEDULED" for run in self._flow_runs())

    @property
    def is_any_left_alone(self) -> bool:
        """Whether there is a run that nobody has and that does not just wait in its queue."""
        rows = {str(row["flow_run_id"]): row for row in self.ledger.rows.values()}
        left = [row for row in rows.values() if self.ledger.is_free(row)]
        at_rest = {run.id for run in self._flow_runs() if run.state and run.state.is_final}
        waiting = {
            run.id for run in self._flow_runs() if run.state and run.state.type in ("SCHEDULED", "PAUSED")
        }
        unknown = {run.id for run in self._flow_runs()} - at_rest - waiting - set(rows)
        return bool(unknown) or any(
            str(row["flow_run_id"]) not in (waiting if row["status"] in LIVE else at_rest)
            or row["lease_owner"] is not None
            for row in left
        )

    def _flow_runs(self) -> Collection[FlowRun]:
        return self.stand_in.world.tables.flow_runs.values()

    # -- steps ---------------------------------------------------------------------------------------

    def step(self, step: Step) -> None:
        """Let a step happen."""
        self.steps += 1
        self.note(f"{_name(step.process)} {step.label}")
        step.go()
        self.loop.settle()
        self.loop.pass_time(TICK)

    def lose(self, call: Call[Any]) -> None:
        """Lose a request or its answer."""
        self.note(f"{_name(call.process)} LOST: {call.label}")
        call.lose()
        self.loop.settle()

    def double(self, call: Call[Any]) -> None:
        """Have a request arrive twice."""
        self.note(f"{_name(call.process)} DOUBLED: {call.label}")
        call.double()

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.note(f"{seconds:g} s pass")
        self.loop.pass_time(seconds)

    # -- processes -----------------------------------------------------------------------------------

    def start_worker(self) -> WorkerProcess:
        """Start a worker."""
        process = WorkerProcess(f"worker{next(self._numbers)}", self.around)
        self.workers.append(process)
        self.note(f"{process} starts")
        return process

    def start_api(self) -> ApiProcess:
        """Start an API."""
        process = ApiProcess(f"api{next(self._numbers)}", self.around)
        self.apis.append(process)
        self.note(f"{process} starts")
        return process

    def kill(self, process: NovaProcess, arriving: int = 0) -> None:
        """Kill a process; of its requests that are under way those arrive whose bit is set in `arriving`."""
        calls = self.gate.of(process)
        sent = [call.label for n, call in enumerate(calls) if arriving >> n & 1 and not call.has_arrived]
        self.note(f"{process} is KILLED" + (f"; still under way: {', '.join(sent)}" if sent else ""))
        for number, call in enumerate(calls):
            call.kill(bool(arriving >> number & 1))
        process.is_alive = False
        self.gate.forget(process)
        for step in [
            step for step in self.gate.steps if step.process is process and not isinstance(step, Call)
        ]:
            self.gate.remove(step)
        for living in (self.workers, self.apis):
            if process in living:
                living.remove(process)  # type: ignore[arg-type]
        for _ in range(20):
            if not process.tasks:
                break
            for task in list(process.tasks):
                task.cancel()
            self.loop.settle()

    def pause(self, process: Process, sent: int = 0) -> None:
        """Pause a process; its requests whose bit is set in `sent` are under way and may arrive."""
        self.note(f"{process} is PAUSED")
        process.is_paused = True
        for number, call in enumerate(self.gate.of(process)):
            call.is_sent = bool(sent >> number & 1) and not call.is_instant

    def stall(self, process: Process, part: str) -> None:
        """Have a part of a process stand still, in the midst of what it does."""
        self.note(f"{process} {part} STANDS STILL")
        process.stalled.add(part)

    def resume(self, process: Process) -> None:
        """Let a process go on, all of it."""
        self.note(f"{process} goes on")
        process.is_paused = False
        process.stalled.clear()
        self.loop.pass_time(0)

    def end(self) -> None:
        """End all processes."""
        for process in self.processes:
            self.kill(process)
        self.site.tables.watched = lambda process, part: None

    def _event(self, event: JSON) -> None:
        """Have a worker hear of an event, later."""
        if event["event"] not in STOPS:
            return
        flow_run_id = UUID(event["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run."))
        for process in self.workers:
            self.gate.add(self._hearing(process, event["event"], flow_run_id))

    def _hearing(self, process: WorkerProcess, event: str, flow_run_id: UUID) -> Step:
        def go() -> None:
            self.gate.remove(step)
            process.hear(event, flow_run_id)

        step = Step(f"hears of {event} {str(flow_run_id)[:4]}", process, go)
        return step


def _name(process: Process | None) -> str:
    return f"{process.name if process else '':8}"
