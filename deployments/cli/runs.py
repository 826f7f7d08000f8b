"""`nova runs`: list and show runs; cancel, retry and skip."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from deployments.cli.remote import Api, ApiUrl
from deployments.cli.schedules import find_workflow
from flows.graphs.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True, help="List and show runs; cancel, retry and lead them past a node.")

Run = Annotated[str, typer.Argument(metavar="RUN", help="Number of the run, as `list` shows it.")]


@app.command("list")
def list_(
    workflow: Annotated[
        str | None, typer.Option(help="Only runs of this workflow: its id, slug or name.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="Only runs that are pending, running, completed, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most, newest first.")] = 20,
    api_url: ApiUrl = None,
) -> None:
    """List runs, newest first."""
    from deployments.cli.tables import show as show_table

    with Api(api_url) as api:
        number = find_workflow(api, workflow)["id"] if workflow else None
        found = api.get("/executions", workflow_id=number, status=status, limit=limit)["executions"]
    columns = ["id", "workflow_id", "client_slug", "status", "created_at", "failed_at_node", "error"]
    titles = ["run", "workflow", "client", "status", "made at (UTC)", "failed at", "error"]
    rows = [[_short(one[column]) for column in columns] for one in found]
    for row in rows:
        row[4] = _moment(str(row[4]))
    show_table(titles, rows, empty="There are no such runs.")


@app.command()
def show(run: Run, api_url: ApiUrl = None) -> None:
    """Show what a run did, step by step, and how it stands."""
    from deployments.cli.tables import show as show_table

    with Api(api_url) as api:
        execution = _find(api, run)
        entries = api.get(f"/executions/{execution['id']}/chain", contexts="none")["entries"]
        task = api.get(f"/tasks/{execution['task_id']}") if execution["task_id"] else None
    titles = ["step", "attempt", "node", "status", "seconds", "went to", "error"]
    rows = [
        [
            *(entry["step"], entry["attempt"], entry["node_id"], entry["status"]),
            *(f"{entry['execution_time']:.3f}", entry["path_taken"], _short(entry["error_message"])),
        ]
        for entry in entries
    ]
    show_table(titles, rows, empty="It has not begun.")
    print(f"run {execution['id']}: {task['message'] if task else execution['status']}")
    if execution["task_id"]:
        print(f"task {execution['task_id']}")
    if error := (task or execution).get("error"):
        print(error)
    if due := (task or {}).get("next_attempt_at"):
        print(f"next attempt: {_moment(due)} UTC")


@app.command()
def cancel(run: Run, api_url: ApiUrl = None) -> None:
    """Cancel a run: one that waits is over at once, one that is running stops."""
    _post(run, "cancel", api_url)


@app.command()
def retry(run: Run, api_url: ApiUrl = None) -> None:
    """Try a run that failed or was cancelled again; it goes on behind its last node that succeeded."""
    _post(run, "retry", api_url)


@app.command()
def skip(
    run: Run,
    step: Annotated[int, typer.Argument(min=0, help="The step at which it stopped, as `show` numbers them.")],
    context: Annotated[
        str, typer.Option(help='What the run goes on with, as JSON: {"mail_sent": true}.')
    ] = "{}",
    branch: Annotated[str | None, typer.Option(help="The answer, where the node is a decision.")] = None,
    api_url: ApiUrl = None,
) -> None:
    """Let a run that failed or was cancelled at a node go on behind it."""
    try:
        body = {"context": json.loads(context), "branch": branch}
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"--context is not JSON: {error}") from None
    with Api(api_url) as api:
        done = api.post(f"/executions/{_find(api, run)['id']}/nodes/{step}/skip", body)
    print(done["message"])


def _post(run: str, operation: str, api_url: str | None) -> None:
    with Api(api_url) as api:
        execution = _find(api, run)
        if execution["task_id"] is None:
            raise InvalidInputError(
                f"Run {run} was never handed to Prefect: there is nothing to {operation}."
            )
        print(api.post(f"/tasks/{execution['task_id']}/{operation}", {})["message"])


def _find(api: Api, run: str) -> dict[str, Any]:
    if not (run.isascii() and run.isdecimal()):
        raise InvalidInputError(f"A run has a number: {run!r} is none. See: nova runs list")
    found: dict[str, Any] = api.get(f"/executions/{run}")
    return found


def _moment(time: str) -> str:
    """Return a time of the API to the second, with a space at which a narrow table may break it."""
    return time[:19].replace("T", " ")


def _short(value: object) -> object:
    """Return a table cell: text becomes one line of at most 80 characters."""
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return line if len(line) <= 80 else line[:79] + "…"
