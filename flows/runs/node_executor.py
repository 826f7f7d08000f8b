"""Runs the nodes of a run: sends each to the sandbox, tries it again where that may help, writes its row."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import uuid5

from sqlalchemy.orm import Session

from flows.config.settings import Settings
from flows.credentials import vault
from flows.credentials.cipher import Cipher
from flows.graphs.errors import (
    ConflictError,
    DatabaseRefusedError,
    InterruptedRunError,
    LimitError,
    NodeError,
    NovaError,
    SandboxError,
)
from flows.graphs.graph import Node
from flows.graphs.json_values import size_of
from flows.graphs.lifecycle import StepStatus
from flows.graphs.traversal import UNKNOWN_BRANCH, Visit, branch_label
from flows.runs import retry_policy
from flows.runs.loading import LoadedRun, check_size
from flows.runs.retry_policy import run_until_committed
from flows.runs.sandbox_session import SandboxSession
from flows.sandbox.port import NodeCall, NodeResult
from flows.store import chain
from flows.store.base import utcnow
from flows.store.database import Database
from flows.store.transitions import attempts

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class NodeExecutor:
    """Runs the nodes of one attempt of an execution and writes their rows.

    Owns neither the sandbox nor the execution's row: the flow opens and closes both. A plain class, since
    Prefect would look for futures inside a dataclass or a model that is handed to a task.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        cipher: Cipher,
        run: LoadedRun,
        place: SandboxSession,
        log: Log,
    ) -> None:
        self._first_pause = settings.node_retry_delay
        self._database = database
        self._cipher = cipher
        self._run = run
        self._place = place
        self._log = log
        self._sizes = {key: size_of(key, text) for key, text in run.context.items()}
        self._tries = {len(run.visits): run.tries}
        self.at: str | None = None
        """The node that is being run, or was when the run broke off."""

    def check_unrepeatable(self, node: Node, step: int) -> None:
        """Raise InterruptedRunError when this node was started, did not end, and must not start again."""
        if step == self._run.unrepeatable_step:
            self.at = node.id
            raise InterruptedRunError(
                f"Node {node.id!r} (step {step}) was started and interrupted, and nobody knows what it did. "
                "It says on_interrupt: fail, so it is not started again by itself: "
                "see what it did, then retry the run or skip the node."
            )

    async def run(self, node_id: str, step: int) -> Visit:
        """Run an action or a decision as step number `step` (from 0).

        Raises NodeError when the node's code failed, SandboxError when the sandbox did, LimitError when the
        context grew too large, InterruptedRunError when the end of a node that must not be started twice is
        unknown, DatabaseRefusedError, and LeaseLostError. Each failed try has its row by then, except after
        the last two.
        """
        node = self._run.graph.node(node_id)
        self.at = node_id
        self.check_unrepeatable(node, step)
        if node.on_interrupt == "fail":
            visit = await self._run_once(node, step)
        else:
            visit = await self._run_with_patience(node, step)
        self.at = None
        return visit

    async def pass_through(self, node: Node, step: int) -> Visit:
        """Write the row of a start or an end, which have no code."""
        ways = self._run.graph.edges_from(node.id)
        target = ways[0].target if ways else None
        visit = Visit(node.id)
        await self._record(_Try(node, step, self._number(step), utcnow()), NodeResult(), visit, target)
        return visit

    async def _run_once(self, node: Node, step: int) -> Visit:
        """Run a node that must never be started a second time; the row says first that it was started."""
        await run_until_committed(
            self._database, lambda session: attempts.mark_unrepeatable(session, self._run.lease, step)
        )
        try:
            return await self._try(node, step)
        except SandboxError as error:
            raise InterruptedRunError(
                f"Node {node.id!r} (step {step}) was started, then its sandbox broke, and nobody knows what "
                "it did. It says on_interrupt: fail, so it is not started again by itself: see what it did, "
                f"then retry the run or skip the node. ({error})"
            ) from error

    async def _run_with_patience(self, node: Node, step: int) -> Visit:
        """Run a node, again where its code failed and it says `retries`, or where the sandbox broke."""
        of_code = retry_policy.pauses(self._first_pause, node.retries)
        of_place = retry_policy.pauses(self._first_pause)
        broken = False
        while True:
            try:
                if broken:
                    await self._place.replace()
                    broken = False
                return await self._try(node, step)
            except NodeError as error:
                failure: NovaError = error
                pause = next(of_code, None)
                # The decision's code succeeded, but no edge has its answer: the sandbox kept its changes.
                broken = error.error_type == UNKNOWN_BRANCH
            except SandboxError as error:
                failure, broken = error, True
                pause = next(of_place, None) if retry_policy.may_pass_soon(error) else None
            if pause is None:
                raise failure
            self._log.warning("Node %r is tried again in %.1f s: %s", node.id, pause, failure)
            await asyncio.sleep(pause)

    async def _try(self, node: Node, step: int) -> Visit:
        """Send a node once and write its row."""
        this = _Try(node, step, self._number(step), utcnow())
        try:
            result = await self._place.run(self._call(this))
        except SandboxError as error:
            await self._record(this, NodeResult(), failure=error)
            raise
        try:
            visit, target = self._follow(node, result)
            self._measure(result)
        except (NodeError, LimitError) as error:
            await self._record(this, result, failure=error)
            raise
        await self._record(this, result, visit, target)
        return visit

    def _number(self, step: int) -> int:
        """The number of a step's next try, from 1: nobody else writes its rows while the lease is ours."""
        self._tries[step] = self._tries.get(step, 0) + 1
        return self._tries[step]

    def _call(self, this: _Try) -> NodeCall:
        run, node = self._run, this.node
        about: dict[str, Any] = {
            "idempotency_key": str(uuid5(run.public_id, str(this.step))),
            "execution_id": run.execution_id,
            "step": this.step,
            "attempt": this.number,
            "workflow": run.workflow_slug,
            "client": run.client_slug,
        }
        call_id = f"{this.step}-{run.attempt}-{this.number}"
        if node.type == "decision":
            kind: Literal["action", "decision", "condition"] = "decision" if node.code else "condition"
        else:
            kind = "action"
        code = (node.condition if kind == "condition" else node.code) or ""
        return NodeCall(call_id, node.id, kind, code, node.timeout, about, run.context_limit)

    def _follow(self, node: Node, result: NodeResult) -> tuple[Visit, str]:
        """Return where the run goes on; raises NodeError for a failure and for an answer that no edge has."""
        redact = self._run.overlay.redact
        if result.failure is not None:
            message = f"{result.failure.type}: {result.failure.message}".rstrip(": ")
            raise NodeError(
                redact(message),
                node_id=node.id,
                error_type=result.failure.type,
                traceback=redact(result.failure.traceback),
            )
        ways = self._run.graph.edges_from(node.id)
        if node.type != "decision":
            return Visit(node.id), ways[0].target
        try:
            label = branch_label(self._run.graph, node.id, result.branch, result.branch_truth)
        except NodeError as error:
            # The message holds the answer, which may be a password.
            raise NodeError(redact(str(error)), node_id=node.id, error_type=error.error_type) from None
        target = next(way.target for way in ways if way.condition == label)
        return Visit(node.id, label), target

    def _measure(self, result: NodeResult) -> None:
        """Raise LimitError when a result makes the context too large."""
        self._sizes |= {key: size_of(key, text) for key, text in result.changes.items()}
        check_size(self._sizes.values(), self._run.context_limit)

    async def _record(
        self,
        this: _Try,
        result: NodeResult,
        visit: Visit | None = None,
        target: str | None = None,
        failure: NovaError | None = None,
    ) -> None:
        """Write the step's row and the node that comes next, as soon as the database is there.

        Raises DatabaseRefusedError that says what the node did, for nothing else will.
        """
        overlay, began = self._run.overlay, 0

        # One transaction in a thread: hashing, encrypting and compressing 10 MB must not block the loop.
        def write(session: Session) -> None:
            nonlocal began
            began += 1
            entry = chain.Step(
                step=this.step,
                attempt=this.number,
                node_id=this.node.id,
                node_type=this.node.type,
                status=StepStatus.FAILED if failure else StepStatus.SUCCESS,
                timestamp=this.started,
                execution_time=result.duration,
                changes={} if failure else vault.store_changes(self._cipher, overlay, result.changes),
                decision_result=visit.branch if visit else None,
                path_taken=target if this.node.type == "decision" else None,
                error_type=_error_type(failure),
                error_message=str(failure) if failure else None,
                traceback=failure.traceback if isinstance(failure, NodeError) else None,
                stdout=overlay.redact(result.stdout),
                stderr=overlay.redact(result.stderr),
            )
            chain.append(session, self._run.lease, entry, current_node=target)

        try:
            await run_until_committed(self._database, write)
        except ConflictError:
            if began == 1:  # else it was committed before, and only the answer was lost with the database
                raise
        except DatabaseRefusedError as error:
            did = f"failed ({failure})" if failure else "has run"
            where = f"Node {this.node.id!r} (step {this.step}) {did}"
            raise DatabaseRefusedError(
                f"{where}, but that could not be written down. {error}", code=error.code
            ) from error


@dataclass(frozen=True)
class _Try:
    """One try of a step, before its node has run."""

    node: Node
    step: int
    number: int
    started: datetime


def _error_type(failure: NovaError | None) -> str | None:
    if failure is None:
        return None
    return failure.error_type if isinstance(failure, NodeError) else type(failure).__name__
