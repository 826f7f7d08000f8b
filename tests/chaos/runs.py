"""A scenario's runs, and the clients that request and poll them."""

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
UNREPEATABLE = "n2"
"""The `on_interrupt: fail` node of an unrepeatable run; it must never start twice."""
QUICK = (0.05, 0.3)
"""Least and most seconds that a node takes."""
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


def graph(
    stack: Stack, *, unrepeatable: bool = False, seconds: tuple[float, float] = QUICK
) -> dict[str, Any]:
    """Return a line of six nodes that report to the ledger."""
    extra = {UNREPEATABLE: {"on_interrupt": "fail"}} if unrepeatable else {}
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
    unrepeatable: bool
    key: str | None
    """Its Idempotency-Key, if it has one."""
    wanted: str = "completed"
    """Status with which its execution must end."""
    faulty: bool = False
    """Whether calls to E2B fail while it runs."""
    seen: list[str] = field(default_factory=list)
    """Statuses that a polling client saw, without repetitions; empty if no client polled."""


class Batch:
    """The runs of one scenario."""

    def __init__(self, stack: Stack, *, poll: float = 2.0, watched: int = 5, faulty: bool = False) -> None:
        self.stack = stack
        self.runs: dict[int, Run] = {}
        self.refused: list[int] = []
        """Numbers of runs that a 503 refused."""
        self.unknown: dict[int, int] = {}
        """Requests without a key that got no answer: number of the run → workflow; it may run or not."""
        self.unanswered = 0
        """Requests for a run whose connection broke after it was open."""
        self.bad_answers: list[str] = []
        """Answers that the contract does not have."""
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
        """Numbers of all requested runs."""
        return [*self.runs, *self.refused, *self.unknown]

    def workflow(
        self, seconds: tuple[float, float] = QUICK, *, unrepeatable: bool = False, **fields: Any
    ) -> int:
        """Create a workflow of six nodes and return its id."""
        made = self.stack.workflow(graph(self.stack, unrepeatable=unrepeatable, seconds=seconds), **fields)
        self.workflows.append(made)
        return made

    async def submit(self, workflow: int, count: int, *, unrepeatable: bool = False) -> list[Run]:
        """Request so many runs until each is accepted; every second one has an Idempotency-Key."""
        return [
            await self.ask(workflow, unrepeatable=unrepeatable, keyed=number % 2 == 1)
            for number in range(count)
        ]

    async def ask(self, workflow: int, *, unrepeatable: bool = False, keyed: bool = True) -> Run:
        """Request a run until the API accepts one.

        With a key the client repeats the request. Without one it trusts a 503 and requests another run.
        """
        run_no, key = next(self.stack.run_numbers), uuid4().hex if keyed else None
        deadline = time.monotonic() + 120
        while (task_id := await self._post(workflow, run_no, key)) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"the API accepted no run in two minutes; {self.bad_answers[-3:]}")
            if key is None:
                self.refused.append(run_no)
                run_no = next(self.stack.run_numbers)
            await asyncio.sleep(0.3)
        return self._accepted(Run(run_no, task_id, workflow, unrepeatable, key))

    async def ask_once(self, workflow: int) -> None:
        """Request a run once without a key; without an answer it counts as `unknown`."""
        run_no = next(self.stack.run_numbers)
        try:
            answer = await self._send(workflow, run_no, None)
        except httpx.TransportError:
            self.unknown[run_no] = workflow
            return
        if (task_id := self._task_id(answer)) is None:
            self.refused.append(run_no)
        else:
            self._accepted(Run(run_no, task_id, workflow, unrepeatable=False, key=None))

    def _accepted(self, run: Run) -> Run:
        run.faulty = self._faulty
        self.runs[run.run_no] = run
        self._watch(run)
        return run

    async def ask_again(self, run: Run) -> None:
        """Repeat the request of an accepted run; an answer with another task is a violation."""
        task_id = await self._post(run.workflow, run.run_no, run.key)
        if task_id not in (None, run.task_id):
            self.bad_answers.append(
                f"run {run.run_no} is task {run.task_id}, but {task_id} for a repeated request"
            )

    async def _post(self, workflow: int, run_no: int, key: str | None) -> UUID | None:
        """POST once; return the task id of a 202, or None after a 503 or a broken connection."""
        try:
            answer = await self._send(workflow, run_no, key)
        except httpx.TransportError as error:
            if key is None:
                self.bad_answers.append(f"{error!r}")
            return None
        return self._task_id(answer)

    def _task_id(self, answer: httpx.Response) -> UUID | None:
        """Return the task id of a 202, or None; any other answer but a 503 is a violation."""
        if answer.status_code == 202:
            return UUID(answer.json()["task_id"])
        if answer.status_code != 503:
            self.bad_answers.append(f"{answer.status_code}: {answer.text[:200]}")
        return None

    async def _send(self, workflow: int, run_no: int, key: str | None) -> httpx.Response:
        """POST once; counts broken connections that had been open; raises httpx.TransportError."""
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
        """POST to a path of the API."""
        return await self._http.post(path)

    async def task(self, run: Run) -> dict[str, Any]:
        """Poll a task once; raises httpx.HTTPError if the API does not answer or answers with an error."""
        answer = await self._http.get(f"/tasks/{run.task_id}")
        answer.raise_for_status()
        return dict(answer.json())

    def _watch(self, run: Run) -> None:
        if len(self._watchers) < self._watched:
            self._watchers.append(asyncio.create_task(self._follow(run)))

    async def _follow(self, run: Run) -> None:
        """Poll a task until the batch is closed, also after its final status."""
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
        """Return the status that a client sees in an error; a 503 has none, any other 5xx is a violation."""
        if answer.status_code < 500:
            return str(answer.status_code)
        if answer.status_code != 503:
            self.bad_answers.append(f"run {run.run_no} polled: {answer.status_code}: {answer.text[:200]}")
        return ""

    async def until(self, enough: Callable[[], bool], timeout: float, what: str, pause: float = 0.2) -> None:
        """Wait until a condition holds; after an error it is checked again; raises AssertionError."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if await asyncio.to_thread(enough):
                    return
            except (psycopg2.Error, httpx.TransportError):
                pass
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout:g} s for {what}")
            await asyncio.sleep(pause)

    def all_started(self, runs: list[Run]) -> bool:
        """Return whether each of these runs has started a node."""
        return {run.run_no for run in runs} <= {entry.run_no for entry in self.stack.entries()}

    def open(self) -> int:
        """Return how many runs have not ended or have no execution, including unanswered requests' runs."""
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
        """Wait until all runs have ended, at most `timeout` seconds; return how many have not."""
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
        """Stop the polling clients."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._http.aclose()
