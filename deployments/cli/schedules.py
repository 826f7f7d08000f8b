"""`nova workflows schedule`: when workflows run by themselves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deployments.cli.remote import Api, ApiUrl
from flows.graphs.errors import InvalidInputError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="List, add, pause, resume and remove schedules of a workflow.")

Which = Annotated[str, typer.Argument(metavar="ID|SLUG", help="The workflow's id, slug or name.")]
ScheduleId = Annotated[int, typer.Argument(metavar="SCHEDULE", help="The schedule's id, as `list` shows it.")]
_DEFAULTS: dict[str, Any] = {"timezone": "UTC", "parameters": {}, "active": True}


@app.command("list")
def list_(workflow: Which, api_url: ApiUrl = None) -> None:
    """List the schedules of a workflow, those made in Prefect's UI too (they have no id)."""
    from deployments.cli.tables import show

    with Api(api_url) as api:
        found = api.get(f"/workflows/{find_workflow(api, workflow)['id']}/schedules")["schedules"]
    show(
        ["id", "cron", "time zone", "active", "parameters", "made in"],
        [
            [
                s["id"],
                s["cron"],
                s["timezone"],
                "yes" if s["active"] else "no",
                s["parameters"] or "",
                s["source"],
            ]
            for s in found
        ],
        empty="The workflow has no schedules. Add one with: nova workflows schedule add",
    )


@app.command()
def add(
    workflow: Which,
    cron: Annotated[str, typer.Argument(help='Cron expression in quotes: "0 9 * * *" is daily at nine.')],
    timezone: Annotated[str, typer.Option(help="Time zone that the cron expression is in.")] = "UTC",
    client: Annotated[str | None, typer.Option(help="Slug of the client that it runs for.")] = None,
    parameters: Annotated[
        str | None, typer.Option(help='Further parameters as JSON: {"initial_context": {…}}.')
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Add it without starting it.")] = False,
    api_url: ApiUrl = None,
) -> None:
    """Add a schedule to a workflow."""
    body = {
        "cron": cron,
        "timezone": timezone,
        "active": not paused,
        "parameters": _parameters(parameters, client),
    }
    with Api(api_url) as api:
        added = api.post(f"/workflows/{find_workflow(api, workflow)['id']}/schedules", body)
    print(f"added schedule {added['id']}: {added['cron']} ({added['timezone']})")


@app.command()
def pause(workflow: Which, schedule: ScheduleId, api_url: ApiUrl = None) -> None:
    """Stop a schedule from making runs; it is kept."""
    _set_active(workflow, schedule, False, api_url)
    print(f"paused schedule {schedule}")


@app.command()
def resume(workflow: Which, schedule: ScheduleId, api_url: ApiUrl = None) -> None:
    """Let a paused schedule make runs again."""
    _set_active(workflow, schedule, True, api_url)
    print(f"resumed schedule {schedule}")


@app.command()
def remove(workflow: Which, schedule: ScheduleId, api_url: ApiUrl = None) -> None:
    """Remove a schedule."""
    with Api(api_url) as api:
        api.delete(f"/workflows/{find_workflow(api, workflow)['id']}/schedules/{schedule}")
    print(f"removed schedule {schedule}")


def find_workflow(api: Api, which: str) -> dict[str, Any]:
    """Return a workflow by its id, slug or name, perhaps without its graph; raises NotFoundError."""
    if which.isascii() and which.isdecimal():
        try:
            found: dict[str, Any] = api.get(f"/workflows/{which}")
        except NotFoundError:
            pass  # it may be a name
        else:
            return found
    listed = api.pages("/workflows", "workflows", graphs="none")
    for key in ("slug", "name"):
        for workflow in listed:
            if workflow[key] == which:
                return workflow
    raise NotFoundError(f"There is no workflow {which!r}. See: nova workflows list")


def of_nova(api: Api, workflow_id: int) -> list[dict[str, Any]]:
    """Return NOVA's schedules of a workflow, without those made in Prefect."""
    listed: list[dict[str, Any]] = api.get(f"/workflows/{workflow_id}/schedules")["schedules"]
    return [schedule for schedule in listed if schedule["source"] == "nova"]


def match(api: Api, workflow_id: int, wanted: list[dict[str, Any]]) -> bool:
    """Make NOVA's schedules of a workflow equal to a file's; return whether anything changed.

    Schedules with equal cron line, time zone and parameters are the same; only `active` may change.
    """
    left = of_nova(api, workflow_id)
    changed = False
    for schedule in ({**_DEFAULTS, **given} for given in wanted):
        same = next(
            (s for s in left if all(s[k] == schedule[k] for k in ("cron", "timezone", "parameters"))), None
        )
        if same is None:
            api.post(f"/workflows/{workflow_id}/schedules", schedule)
            changed = True
            continue
        left.remove(same)
        if same["active"] != schedule["active"]:
            api.put(f"/workflows/{workflow_id}/schedules/{same['id']}", {"active": schedule["active"]})
            changed = True
    for schedule in left:
        api.delete(f"/workflows/{workflow_id}/schedules/{schedule['id']}")
        changed = True
    return changed


def _set_active(workflow: str, schedule: int, active: bool, api_url: str | None) -> None:
    with Api(api_url) as api:
        path = f"/workflows/{find_workflow(api, workflow)['id']}/schedules/{schedule}"
        api.put(path, {"active": active})


def _parameters(text: str | None, client: str | None) -> dict[str, Any]:
    import json

    try:
        parameters = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"--parameters is not JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise InvalidInputError("--parameters must be a JSON object.")
    return parameters | ({"client_slug": client} if client else {})
