"""What people may do: ask the APIs for something, or do it in Prefect."""

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
from api.services import Services
from flows.graphs.errors import ConflictError, NovaError
from tests.simulation.ledger import LIVE, Word
from tests.simulation.processes import ApiProcess
from tests.simulation.world import World

T = TypeVar("T")

KEYS = ("key-1", "key-2")


def pick(among: Sequence[T], number: int) -> T | None:
    """One of them, by a number however large; None where there are none."""
    return among[number % len(among)] if among else None


def awake(processes: Sequence[Any]) -> list[Any]:
    """Those that are not paused."""
    return [process for process in processes if not process.is_paused]


class People:
    """The rules of people in one world. Those that do not apply do nothing."""

    def __init__(self, world: World, most_live: int) -> None:
        self.world = world
        self.most_live = most_live
        """Runs that go on at the same time at most: where there are few, more happens to each."""
        self.asked: list[asyncio.Task[Any]] = []
        """What people have asked the APIs for."""
        self.looked_at: UUID | None = None
        """The run at which people look at the moment."""

    # -- a person at the API -------------------------------------------------------------------------

    def execute(self, which: int, keyed: int) -> None:
        """Somebody starts a run, with an idempotency key perhaps."""
        if self._is_full():
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
        if (task_id := self._run(task)) is None:
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
        self._ask_about(which, "cancel", self._run(task), tasks_api.cancel_task)

    def retry(self, which: int, task: int) -> None:
        """Somebody retries a run, usually one that did not succeed."""
        self._ask_about(which, "retry", self._run(task, self._stopped() or None), tasks_api.retry_task)

    def skip(self, which: int, number: int) -> None:
        """Somebody leads a run past the node at which it stopped."""
        rows = {row["task_id"]: row for row in self.world.ledger.rows.values()}
        if (task_id := self._run(number, self._stopped())) is not None:
            found = row = rows[task_id]
            self._ask(
                which,
                f"skip step {row['steps']} of execution {row['id']}",
                lambda api: executions_api.skip_node(
                    api.services, found["id"], _next_step(self.world, found)
                ),
                self.world.ledger.say("retry", found["task_id"]),
            )

    def _ask_about(
        self,
        which: int,
        kind: str,
        task_id: UUID | None,
        ask: Callable[[Services, UUID], Awaitable[Any]],
    ) -> None:
        """Ask an API to do something to a run, which is a person's word of that kind."""
        if task_id is not None:
            what = f"{kind} {str(task_id)[:4]}"
            word = self.world.ledger.say(kind, task_id)
            self._ask(which, what, lambda api: ask(api.services, task_id), word)

    def _ask(
        self, which: int, what: str, ask: Callable[[ApiProcess], Awaitable[Any]], word: Word | None = None
    ) -> None:
        api = pick(awake(self.world.apis), which)
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
                if word is not None and isinstance(error, ConflictError):
                    word.is_void = True
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
        if self._is_full():
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
        if (task_id := self._run(task)) is not None:
            self._said("cancel", task_id)
            self._prefect("DELETE", f"/flow_runs/{self._flow_run(task_id)}", None)

    def suspend_in_prefect(self, task: int) -> None:
        """Somebody suspends a run in Prefect."""
        details = {"pause_reschedule": True}
        self._set_state(task, "suspend", {"type": "PAUSED", "name": "Suspended", "state_details": details})

    def resume_in_prefect(self, task: int) -> None:
        """Somebody resumes a run in Prefect."""
        if (task_id := self._run(task)) is not None:
            self._prefect("POST", f"/flow_runs/{self._flow_run(task_id)}/resume", {})

    def _set_state(
        self, task: int, kind: str, state: dict[str, Any], *, force: bool = False, only_final: bool = False
    ) -> None:
        if (task_id := self._run(task)) is None:
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

    def _run(self, number: int, among: Sequence[UUID] | None = None) -> UUID | None:
        """A run that somebody does something to: every second time the one that people look at."""
        half, rest = divmod(number, 2)
        among = self.world.tasks_known if among is None else among
        return self.looked_at if rest and self.looked_at in among else pick(among, half)

    def _is_full(self) -> bool:
        live = sum(row["status"] in LIVE for row in self.world.ledger.rows.values())
        return live >= self.most_live

    def _know(self, task_id: UUID) -> None:
        if task_id not in self.world.tasks_known:
            self.world.tasks_known.append(task_id)

    def _stopped(self) -> list[UUID]:
        """The runs that failed or were cancelled."""
        rows = self.world.ledger.rows.values()
        return [row["task_id"] for row in rows if row["status"] in ("failed", "cancelled") and row["task_id"]]


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
