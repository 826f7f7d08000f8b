"""The runs of a scenario, and the clients that ask for them and poll them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg2

from tests.builders import action, line
from tests.chaos.ledger import node_code
from tests.chaos.stack import Stack

NODES = tuple(f"n{i}" for i in range(6))
GUARDED = "n2"
"""The node of a guarded run that must never be started twice."""
QUICK = (0.05, 0.3)
"""Seconds that a node takes."""
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


def graph(stack: Stack, *, guarded: bool = False, seconds: tuple[float, float] = QUICK) -> dict[str, Any]:
    """Build a line of six nodes that keep the ledger."""
    extra = {GUARDED: {"on_interrupt": "fail"}} if guarded else {}
    return line(
        *(
            action(node, node_code(node, stack.ledger_port, seconds), timeout=30, **extra.get(node, {}))
            for node in NODES
        )
    )


@dataclass
class Run:
    """A run that the API has accepted."""

    run_no: int
    task_id: UUID
    workflow: int
    guarded: bool
    key: str | None
    """Its Idempotency-Key, where it came with one."""
    wanted: str = "completed"
    """Status that its execution has to end with."""
    faulty: bool = False
    """Whether calls to E2B fail under it."""
    seen: list[str] = field(default_factory=list)
    """Statuses that a polling client saw, each once in a row; empty where nobody polled."""


class Batch:
    """The runs of one scenario."""

    def __init__(self, stack: Stack, *, poll: float = 2.0, watched: int = 5, faulty: bool = False) -> None:
        self.stack = stack
        self.runs: dict[int, Run] = {}
        self.refused: list[int] = []
        """Numbers of runs that a 503 said will never run."""
        self.unknown: dict[int, int] = {}
        """Runs of which nobody knows whether they are to be, number → workflow: no key and no answer."""
        self.unanswered = 0
        """Requests for a run that broke off under way."""
        self.odd: list[str] = []
        """Answers that the contract does not know."""
        self.workflows: list[int] = []
        self._faulty = faulty
        self._poll = poll
        self._watched = watched
        self._http = httpx.AsyncClient(base_url=stack.api_url, timeout=60)
        self._watchers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Batch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def asked(self) -> list[int]:
        """Numbers of all runs that were asked for."""
        return [*self.runs, *self.refused, *self.unknown]

    def workflow(self, seconds: tuple[float, float] = QUICK, *, guarded: bool = False, **fields: Any) -> int:
        """Create a workflow of six nodes."""
        made = self.stack.workflow(graph(self.stack, guarded=guarded, seconds=seconds), **fields)
        self.workflows.append(made)
        return made

    async def submit(self, workflow: int, count: int, *, guarded: bool = False) -> list[Run]:
        """Have the API accept so many runs, one after the other; every second with an Idempotency-Key."""
        return [await self.ask(workflow, guarded=guarded, keyed=number % 2 == 1) for number in range(count)]

    async def ask(self, workflow: int, *, guarded: bool = False, keyed: bool = True) -> Run:
        """Ask until a run is accepted.

        A client with a key asks again for the same run; one without takes a 503 by its word, and asks for
        another run.
        """
        run_no, key = next(self.stack.run_numbers), uuid4().hex if keyed else None
        deadline = time.monotonic() + 120
        while (task_id := await self._post(workflow, run_no, key)) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"the API accepted no run in two minutes; {self.odd[-3:]}")
            if key is None:
                self.refused.append(run_no)
                run_no = next(self.stack.run_numbers)
            await asyncio.sleep(0.3)
        return self._accepted(Run(run_no, task_id, workflow, guarded, key))

    async def ask_once(self, workflow: int) -> None:
        """Ask for a run without a key, and take the answer by its word; without one nobody knows."""
        run_no = next(self.stack.run_numbers)
        try:
            answer = await self._send(workflow, run_no, None)
        except httpx.TransportError:
            self.unknown[run_no] = workflow
            return
        if (task_id := self._task_id(answer)) is None:
            self.refused.append(run_no)
        else:
            self._accepted(Run(run_no, task_id, workflow, guarded=False, key=None))

    def _accepted(self, run: Run) -> Run:
        run.faulty = self._faulty
        self.runs[run.run_no] = run
        self._watch(run)
        return run

    async def ask_again(self, run: Run) -> None:
        """Ask once more for a run that was accepted; an answer with another task is noted."""
        task_id = await self._post(run.workflow, run.run_no, run.key)
        if task_id not in (None, run.task_id):
            self.odd.append(f"run {run.run_no} is task {run.task_id}, and asked for again {task_id}")

    async def _post(self, workflow: int, run_no: int, key: str | None) -> UUID | None:
        """POST once; the task's id of a 202, None for a 503 or, with a key, a broken connection."""
        try:
            answer = await self._send(workflow, run_no, key)
        except httpx.TransportError as error:
            if key is None:
                self.odd.append(f"{error!r}")
            return None
        return self._task_id(answer)

    def _task_id(self, answer: httpx.Response) -> UUID | None:
        """The task's id of a 202, None for a 503; another answer is noted."""
        if answer.status_code == 202:
            return UUID(answer.json()["task_id"])
        if answer.status_code != 503:
            self.odd.append(f"{answer.status_code}: {answer.text[:200]}")
        return None

    async def _send(self, workflow: int, run_no: int, key: str | None) -> httpx.Response:
        """POST once; raises httpx.TransportError, and counts what had come through to the API."""
        try:
            return await self._http.post(
                f"/workflows/{workflow}/execute",
                json={"initial_context": {"run_no": run_no}},
                headers={"Idempotency-Key": key} if key else {},
            )
        except httpx.TransportError as error:
            self.unanswered += not isinstance(error, httpx.ConnectError)
            raise

    async def call(self, path: str) -> httpx.Response:
        """POST an operation on a run."""
        return await self._http.post(path)

    async def task(self, run: Run) -> dict[str, Any]:
        """Poll a task once; raises httpx.HTTPError when the API does not answer, or with an error."""
        answer = await self._http.get(f"/tasks/{run.task_id}")
        answer.raise_for_status()
        return dict(answer.json())

    def _watch(self, run: Run) -> None:
        if len(self._watchers) < self._watched:
            self._watchers.append(asyncio.create_task(self._follow(run)))

    async def _follow(self, run: Run) -> None:
        """Poll a task until the batch is over, past its final state, too."""
        while True:
            try:
                status = (await self.task(run))["status"]
            except httpx.HTTPStatusError as error:
                status = self._refusal(run, error.response)
            except httpx.TransportError:
                status = ""
            if status and run.seen[-1:] != [status]:
                run.seen.append(status)
            await asyncio.sleep(self._poll)

    def _refusal(self, run: Run, answer: httpx.Response) -> str:
        """What a client sees in an error: nothing in a 503, for it asks again; any other 5xx is noted."""
        if answer.status_code < 500:
            return str(answer.status_code)
        if answer.status_code != 503:
            self.odd.append(f"run {run.run_no} polled: {answer.status_code}: {answer.text[:200]}")
        return ""

    async def until(self, enough: Callable[[], bool], timeout: float, what: str, pause: float = 0.2) -> None:
        """Wait on a condition that asks the database or the ledger; an outage of theirs is waited out."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if await asyncio.to_thread(enough):
                    return
            except (psycopg2.Error, httpx.TransportError):
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:g} s in vain: {what}")
            await asyncio.sleep(pause)

    def all_started(self, runs: list[Run]) -> bool:
        """Whether a node of each of these runs has started."""
        return {run.run_no for run in runs} <= {entry.run_no for entry in self.stack.entries()}

    def open(self) -> int:
        """How many runs are not over, those of clients without an answer included, or have no execution."""
        ids = [str(run.task_id) for run in self.runs.values()]
        [found] = self.stack.rows(
            "SELECT count(*) FILTER (WHERE status IN ('pending', 'running')) AS live,"
            " count(*) FILTER (WHERE flow_run_id = ANY(%s::uuid[])) AS there"
            " FROM executions WHERE workflow_id = ANY(%s)",
            ids,
            self.workflows,
        )
        return int(found["live"]) + len(ids) - int(found["there"])

    async def over(self, timeout: float) -> int:
        """Wait for all runs to be over; returns how many are not when the time is over."""
        deadline = time.monotonic() + timeout
        left = len(self.asked)
        while left and time.monotonic() < deadline:
            try:
                left = await asyncio.to_thread(self.open)
            except psycopg2.Error:
                continue
            await asyncio.sleep(0.3)
        return left

    async def close(self) -> None:
        """Let the watching clients look once more, then end them."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._http.aclose()
