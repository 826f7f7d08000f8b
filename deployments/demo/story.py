"""The flow of `nova demo`: an invoice arrives, a workflow handles it, the result is printed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from deployments.cli.remote import Api
from deployments.demo.mail import MailServers
from deployments.demo.sample import CLIENT, DATABASE, MAILBOX, Sample
from flows.graphs.errors import InfrastructureError
from flows.graphs.lifecycle import StepStatus

if TYPE_CHECKING:
    from rich.console import Console

    from deployments.cli.stack import Stack

AMOUNT = 845.50
"""Amount of the sample invoice in euros: below the limit, so it is stored."""
_FINAL = {"SUCCESS", "FAILURE", "REVOKED"}
_PATIENCE = 600.0
"""Seconds that the run may take."""


class Demo:
    """The demo on a running stack."""

    def __init__(self, stack: Stack, mail: MailServers, console: Console) -> None:
        if stack.postgres is None:
            raise InfrastructureError("The demo needs the embedded PostgreSQL for the client's own database.")
        self._stack = stack
        self._mail = mail
        self._console = console
        self._sample = Sample(mail, stack.postgres)

    async def run(self) -> bool:
        """Set up the sample, run the workflow once and print the result; return whether it succeeded."""
        with Api(self._stack.api_url) as api:
            workflow = await asyncio.to_thread(self._set_up, api)
            number = await asyncio.to_thread(self._sample.deliver_invoice, AMOUNT)
            self._print(f"\nA mail with invoice {number} of {AMOUNT:,.2f} EUR is in the mailbox {MAILBOX}.")
            queued = await asyncio.to_thread(
                api.post, f"/workflows/{workflow['id']}/execute", {"client_slug": CLIENT}
            )
            self._print(f"POST /workflows/{workflow['id']}/execute: task {queued['task_id']} is queued.")
            task = await self._follow(api, queued["task_id"])
            await self._show(api, task, number)
        self._print(f"\nThis run        {self._stack.prefect_url}/runs/flow-run/{queued['task_id']}")
        return bool(task["status"] == "SUCCESS")

    def _set_up(self, api: Api) -> dict[str, Any]:
        self._sample.set_up()
        workflow = self._sample.register(api)
        self._print(
            f"\nSample client   {CLIENT}, with a mailbox (IMAP, SMTP) and a PostgreSQL database of its own"
        )
        self._print(f"Workflow        {workflow['name']}, deployed as execute-workflow/{workflow['slug']}")
        return workflow

    async def _follow(self, api: Api, task_id: str) -> dict[str, Any]:
        """Poll the task until its final status, print each node when it has ended, and return the task."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        shown = 0
        with self._console.status("Waiting for the worker …") as status:
            while loop.time() < deadline:
                task: dict[str, Any] = await asyncio.to_thread(api.get, f"/tasks/{task_id}")
                meta = task.get("meta") or {}
                if current := (meta.get("progress") or {}).get("current_node"):
                    status.update(f"Running {current} …")
                if execution_id := task.get("execution_id") or meta.get("execution_id"):
                    shown += await self._show_steps(api, execution_id, shown)
                if task["status"] in _FINAL:
                    return task
                await asyncio.sleep(0.3)
        raise InfrastructureError(
            f"The run has not ended after {_PATIENCE:g} s. Logs: {self._stack.data.logs}"
        )

    async def _show_steps(self, api: Api, execution_id: int, skip: int) -> int:
        chain = await asyncio.to_thread(
            api.get, f"/executions/{execution_id}/chain", skip=skip, limit=100, contexts="none"
        )
        for entry in chain["entries"]:
            mark = "✓" if entry["status"] == StepStatus.SUCCESS else "✗"
            branch = f" → {entry['decision_result']}" if entry["decision_result"] is not None else ""
            self._print(f"  {mark} {entry['label'] or entry['node_id']}{branch}")
        return len(chain["entries"])

    async def _show(self, api: Api, task: dict[str, Any], number: str) -> None:
        execution_id = task.get("execution_id")
        if execution_id is not None:
            chain = await asyncio.to_thread(
                api.get, f"/executions/{execution_id}/chain", limit=1000, contexts="changes"
            )
            self._print(f"\nChain of Work of execution {execution_id}, task {task['status']}:")
            self._table(chain["entries"])
        if task.get("error"):
            self._print(f"Error: {task['error']}")
        if row := await asyncio.to_thread(self._sample.stored, number):
            self._print(f"In the client's database {DATABASE!r}: " + " · ".join(map(str, row)))
        for reply in self._mail.sent:
            self._print(f"Mail sent to {reply['To']}: {reply['Subject']}")

    def _table(self, entries: list[dict[str, Any]]) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        heads = ("step", "node", "type", "status", "seconds", "branch")
        rows = [_row(entry) for entry in entries]
        taken = sum(max(len(row[i]) for row in [heads, *rows]) + 2 for i in range(len(heads)))
        width = max(16, self._console.width - taken - 4)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for head in heads:
            table.add_column(head, justify="right" if head == "seconds" else "left")
        table.add_column("result", min_width=15)
        for entry, row in zip(entries, rows, strict=True):
            colour = "green" if entry["status"] == StepStatus.SUCCESS else "red"
            cells = [Text(cell, style=colour if cell is row[3] else "") for cell in row]
            table.add_row(*cells, Text(_result(entry, width)))
        self._console.print(table)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


async def tell(stack: Stack, *, stays: bool) -> bool:
    """Run the demo on a running stack and return whether the run succeeded.

    With `stays` it goes on until it is cancelled. Raises the exceptions of the API and the databases.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    with MailServers() as mail:
        demo = Demo(stack, mail, console)
        succeeded = await demo.run()
        console.print(f"API docs        {stack.api_url}/docs", highlight=False)
        console.print(f"Prefect UI      {stack.prefect_url}", highlight=False)
        if stays:
            console.print("Ctrl-C stops everything.\nNOVA is ready", highlight=False)
            await asyncio.Event().wait()
    return succeeded


def _row(entry: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Return a chain entry's step, node, type, status, seconds and branch."""
    decision = entry["decision_result"]
    branch = "" if decision is None else f"{decision} → {entry['path_taken']}"
    node = entry["label"] or entry["node_id"]
    return (
        str(entry["step"]),
        node,
        entry["node_type"],
        entry["status"],
        f"{entry['execution_time']:.3f}",
        branch,
    )


def _result(entry: dict[str, Any], width: int) -> str:
    """Return why a node failed, or its changes: one line of at most `width` characters per key."""
    if entry["error_message"]:
        return str(entry["error_message"])
    changes = entry["output_result"] or {}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)
