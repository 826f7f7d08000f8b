"""What may happen next: every rule of the simulation, each told by some whole numbers what exactly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from starlette.responses import Response, StreamingResponse

from api.routers import executions as executions_api
from api.routers import tasks as tasks_api
from api.routers import workflows as workflows_api
from flows.graphs.errors import NovaError
from tests.simulation.gates import Call
from tests.simulation.ledger import Word
from tests.simulation.processes import ApiProcess, NovaProcess, WorkerProcess
from tests.simulation.sandboxes import Node
from tests.simulation.world import World

T = TypeVar("T")

MOST_RUNS = 8
MOST_WORKERS = 3
MOST_APIS = 2
PAUSES = (1.0, 3.0, 11.0, 35.0)
"""Seconds that pass: less and more than a lease lasts."""
NODES_FAIL = 2
"""One node of so many raises."""
RANKS = 2
IDLE = 0.5
"""Seconds that pass where there is no step to make."""
KEYS = ("key-1", "key-2")


def pick(among: Sequence[T], number: int) -> T | None:
    """One of them, by a number however large; None where there are none."""
    return among[number % len(among)] if among else None


class Acts:
    """The rules of one world. Those that do not apply do nothing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: list[asyncio.Task[Any]] = []
        """What people have asked the APIs for."""
        self.refused: list[str] = []

    # -- the normal way of things --------------------------------------------------------------------

    def step(self, which: int, luck: int = 1) -> None:
        """Let the next step of a process happen; where it is the end of a node's code, that may raise."""
        step = pick(self.world.gate.open, which)
        if step is None:
            self.world.loop.pass_time(IDLE)
            return
        if isinstance(step, Node) and luck % NODES_FAIL == 0:
            step.fails = True
            step.label += " and raises"
        self.world.step(step)

    def hurry(self, which: int, rank: int) -> None:
        """A part of a process becomes faster or slower than the others."""
        if (part := pick(self.world.gate.parts, which)) is not None:
            chosen = rank % (2 * RANKS + 1) - RANKS
            self.world.note(f"{part[0] or ''} {part[1]}: rank {chosen}")
            self.world.gate.rank(part, chosen)

    def poll_for_runs(self, which: int) -> None:
        """A worker looks for runs that are due, or all do: an event has told them of one."""
        idle = [one for one in self._awake(self.world.workers) if one.polling is None or one.polling.done()]
        for worker in idle if which % 2 else idle[which // 2 % (len(idle) or 1) :][:1]:
            self.world.note(f"{worker} looks for runs")
            worker.poll()
        self.world.loop.settle()

    def reconcile(self, which: int) -> None:
        """A reconciler makes a round."""
        idle = [one for one in self._awake(self.world.processes) if one.looking is None or one.looking.done()]
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
        if (process := pick(self._awake(self.world.processes), which)) is not None:
            self.world.pause(process, sent)

    def resume(self, which: int) -> None:
        """A paused process goes on."""
        if (process := pick([one for one in self.world.processes if one.is_paused], which)) is not None:
            self.world.resume(process)

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

    # -- a person at the API -------------------------------------------------------------------------

    def execute(self, which: int, keyed: int) -> None:
        """Somebody starts a run, with an idempotency key perhaps."""
        if len(self.world.ledger.rows) >= MOST_RUNS:
            return
        key = pick((None, None, *KEYS), keyed)

        async def ask(api: ApiProcess) -> None:
            answer = await workflows_api.execute_workflow(
                api.services, self.world.site.workflow_id, None, key
            )
            self._know(UUID(_body(answer)["task_id"]))

        self._ask(which, f"execute (key {key})", ask)

    def poll(self, which: int, task: int) -> None:
        """Somebody asks how a run stands."""
        if (task_id := pick(self.world.tasks_known, task)) is None:
            return
        known, asked = task_id, self.world.steps

        async def ask(api: ApiProcess) -> None:
            answer = await tasks_api.get_task(api.services, known)
            text = await _text(answer)
            self.world.ledger.answered(known, json.loads(text)["status"], asked)
            self.world.note(f"{api} answers {json.loads(text)['status']} of {str(known)[:4]}")

        self._ask(which, f"poll {str(known)[:4]}", ask)

    def cancel(self, which: int, task: int) -> None:
        """Somebody cancels a run."""
        if (task_id := pick(self.world.tasks_known, task)) is not None:
            known = task_id
            self._ask(
                which,
                f"cancel {str(known)[:4]}",
                lambda api: tasks_api.cancel_task(api.services, known),
                self.world.ledger.say("cancel", known),
            )

    def retry(self, which: int, task: int) -> None:
        """Somebody retries a run, usually one that did not succeed."""
        if (task_id := pick(self._stopped() or self.world.tasks_known, task)) is not None:
            known = task_id
            self._ask(
                which,
                f"retry {str(known)[:4]}",
                lambda api: tasks_api.retry_task(api.services, known),
                self.world.ledger.say("retry", known),
            )

    def skip(self, which: int, number: int) -> None:
        """Somebody leads a run past the node at which it stopped."""
        rows = {row["task_id"]: row for row in self.world.ledger.rows.values()}
        if (task_id := pick(self._stopped(), number)) is not None:
            found = row = rows[task_id]
            self._ask(
                which,
                f"skip step {row['steps']} of execution {row['id']}",
                lambda api: executions_api.skip_node(
                    api.services, found["id"], _next_step(self.world, found)
                ),
                self.world.ledger.say("retry", found["task_id"]),
            )

    def _ask(
        self, which: int, what: str, ask: Callable[[ApiProcess], Awaitable[Any]], word: Word | None = None
    ) -> None:
        api = pick(self._awake(self.world.apis), which)
        if api is None:
            if word is not None:
                word.ended = self.world.steps
            return
        asked = api
        self.world.note(f"somebody asks {api}: {what}")

        async def wait() -> None:
            try:
                await ask(asked)
            except NovaError as error:
                self.world.note(f"{asked} refuses to {what}: {error}")
            except Exception as error:  # noqa: BLE001 - a fault of NOVA's own
                self.world.ledger.violations.append(f"{asked} fails to {what}: {error!r}")
            else:
                self.world.note(f"{asked} has answered: {what}")
            finally:
                if word is not None:
                    word.ended = self.world.steps

        self.asked.append(asked.spawn(wait(), "api"))
        self.world.loop.settle()

    # -- a person in Prefect -------------------------------------------------------------------------

    def run_in_prefect(self) -> None:
        """Somebody starts a run in Prefect."""
        if len(self.world.ledger.rows) >= MOST_RUNS:
            return
        _, made = self._prefect("POST", f"/deployments/{self.world.site.deployment_id}/create_flow_run", {})
        self._know(UUID(made["id"]))

    def cancel_in_prefect(self, task: int) -> None:
        """Somebody cancels a run in Prefect."""
        self._set_state(task, "cancel", {"type": "CANCELLING", "name": "Cancelling"})

    def retry_in_prefect(self, task: int) -> None:
        """Somebody retries a run in Prefect that is over there."""
        message = "Retry from the UI"
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message}
        self._set_state(task, "retry", state, force=True, only_final=True)

    def force_in_prefect(self, task: int, state: int) -> None:
        """Somebody marks a run as ended in Prefect."""
        kind = pick(("COMPLETED", "FAILED", "CANCELLED", "CRASHED"), state)
        self._set_state(task, "cancel" if kind == "CANCELLED" else "mark", {"type": kind}, force=True)

    def delete_in_prefect(self, task: int) -> None:
        """Somebody deletes a run in Prefect."""
        if (task_id := pick(self.world.tasks_known, task)) is not None:
            self._said("cancel", task_id)
            self._prefect("DELETE", f"/flow_runs/{self._flow_run(task_id)}", None)

    def suspend_in_prefect(self, task: int) -> None:
        """Somebody suspends a run in Prefect."""
        details = {"pause_reschedule": True}
        self._set_state(task, "suspend", {"type": "PAUSED", "name": "Suspended", "state_details": details})

    def resume_in_prefect(self, task: int) -> None:
        """Somebody resumes a run in Prefect."""
        if (task_id := pick(self.world.tasks_known, task)) is not None:
            self._prefect("POST", f"/flow_runs/{self._flow_run(task_id)}/resume", {})

    def _set_state(
        self, task: int, kind: str, state: dict[str, Any], *, force: bool = False, only_final: bool = False
    ) -> None:
        if (task_id := pick(self.world.tasks_known, task)) is None:
            return
        flow_run_id = self._flow_run(task_id)
        run = self.world.stand_in.world.tables.flow_runs.get(str(flow_run_id))
        if run is None or run.state is None or (only_final and not run.state.is_final):
            return
        self._said(kind, task_id)
        self._prefect("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": force})

    def _flow_run(self, task_id: UUID) -> UUID:
        """The run in Prefect: another one than the task where Prefect lost that."""
        rows = self.world.ledger.rows.values()
        return next((row["flow_run_id"] for row in rows if row["task_id"] == task_id), None) or task_id

    def _said(self, kind: str, task_id: UUID) -> None:
        self.world.ledger.say(kind, task_id).ended = self.world.steps

    def _prefect(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        answer = self.world.stand_in.answer(method, path, {}, body)
        self.world.note(f"somebody in Prefect: {method} {path} {body} → {answer[0]}")
        return answer

    # -- what there is -------------------------------------------------------------------------------

    def _know(self, task_id: UUID) -> None:
        if task_id not in self.world.tasks_known:
            self.world.tasks_known.append(task_id)

    def _stopped(self) -> list[UUID]:
        """The runs that failed or were cancelled."""
        rows = self.world.ledger.rows.values()
        return [row["task_id"] for row in rows if row["status"] in ("failed", "cancelled") and row["task_id"]]

    def _awake(self, processes: Sequence[Any]) -> list[Any]:
        return [process for process in processes if not process.is_paused]

    def _calls(self) -> list[Call[Any]]:
        return [step for step in self.world.gate.steps if isinstance(step, Call)]


def _next_step(world: World, row: dict[str, Any]) -> int:
    done = "SELECT count(*) FROM chain_entries WHERE execution_id = %s AND status = 'success'"
    return int(world.site.tables.rows(done, row["id"])[0][0])


def _body(answer: Response) -> Any:
    return json.loads(bytes(answer.body))


async def _text(answer: Response) -> str:
    if isinstance(answer, StreamingResponse):
        pieces = [
            piece if isinstance(piece, str) else bytes(piece).decode() async for piece in answer.body_iterator
        ]
        return "".join(pieces)
    return bytes(answer.body).decode()
