"""`nova workflows`: graphs as files, over the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.cli import schedules
from deployments.cli.remote import Api, ApiUrl
from deployments.cli.terminal import fail
from flows.graphs.errors import InvalidInputError, NovaError

app = typer.Typer(no_args_is_help=True, help="Apply, check, list, export and delete workflows.")
app.add_typer(schedules.app, name="schedule")

Files = Annotated[list[Path], typer.Argument(help="Workflow files, JSON or YAML.", show_default=False)]
Which = Annotated[str, typer.Argument(metavar="ID|SLUG", help="The workflow's id, slug or name.")]


@app.command()
def apply(files: Files, api_url: ApiUrl = None) -> None:
    """Create or update workflows from files, by their names.

    A file is `{name, description?, priority?, max_concurrent_runs?, overlap?, schedules?, graph_definition}`.
    What it leaves out stays as it is. If it has `schedules`, NOVA's schedules are made equal to the list;
    those made in Prefect's UI are left alone. All files are checked before the first is applied, and
    applying a file twice changes nothing.
    """
    from deployments.cli import files as workflow_files

    loaded = [(path, workflow_files.load(path)) for path in files]
    warnings = [(path, workflow_files.check_graph(path, data)) for path, data in loaded]
    for path, lines in warnings:
        for line in lines:
            typer.echo(f"{path}: warning: {line}", err=True)
    with Api(api_url) as api:
        ids = {known["name"]: known["id"] for known in api.pages("/workflows", "workflows", graphs="none")}
        for path, data in loaded:
            number = ids.get(data["name"])
            existing = api.get(f"/workflows/{number}") if number is not None else None
            try:
                word, workflow = apply_one(api, data, existing)
            except InvalidInputError as error:
                raise InvalidInputError(f"{path}: {error}") from None
            ids[data["name"]] = workflow["id"]
            print(f"{word} {workflow['name']} (id {workflow['id']}, slug {workflow['slug']})")


def apply_one(api: Api, data: dict[str, Any], existing: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Make one workflow equal to its file; return "created", "updated" or "unchanged", and the workflow."""
    wanted = {key: value for key, value in data.items() if key != "schedules"}
    if existing is None:
        word, workflow = "created", api.post("/workflows", wanted)
    else:
        changed = {key: value for key, value in wanted.items() if not _same(existing.get(key), value)}
        word, workflow = "unchanged", existing
        if changed:
            word, workflow = "updated", api.put(f"/workflows/{existing['id']}", changed)
    if (
        "schedules" in data
        and schedules.match(api, workflow["id"], data["schedules"])
        and word == "unchanged"
    ):
        word = "updated"
    return word, workflow


@app.command()
def validate(files: Files) -> None:
    """Check workflow files; needs no API. Every fault is named by node, edge and line of code."""
    from deployments.cli import files as workflow_files

    faulty = 0
    for path in files:
        try:
            data = workflow_files.load(path)
            warnings = workflow_files.check_graph(path, data)
        except InvalidInputError as error:
            faulty += 1
            typer.echo(str(error), err=True)
            continue
        for line in warnings:
            typer.echo(f"{path}: warning: {line}", err=True)
        print(f"{path}: good, {len(data['graph_definition']['nodes'])} nodes")
    if faulty:
        fail(f"{faulty} of {len(files)} file(s) have faults.", 2)


@app.command("list")
def list_(api_url: ApiUrl = None) -> None:
    """List all workflows."""
    from deployments.cli.tables import show

    with Api(api_url) as api:
        found = api.pages("/workflows", "workflows")
    show(
        ["id", "slug", "name", "version", "priority", "nodes", "updated"],
        [
            [
                w["id"],
                w["slug"],
                w["name"],
                w["version"],
                w["priority"],
                len(w["graph_definition"].get("nodes", [])),
                w["updated_at"][:19],
            ]
            for w in found
        ],
        empty="There are no workflows. Make one with: nova workflows apply FILE",
    )


@app.command()
def export(
    workflow: Which,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; .json makes it JSON, else YAML.")
    ] = None,
    api_url: ApiUrl = None,
) -> None:
    """Write a workflow as a file that `nova workflows apply` takes; to the terminal when no file is given."""
    from deployments.cli import files as workflow_files

    with Api(api_url) as api:
        number = find(api, workflow)["id"]
        found = api.get(f"/workflows/{number}")
        listed = schedules.of_nova(api, number)
    data: dict[str, Any] = {key: found[key] for key in workflow_files.FIELDS if found.get(key) is not None}
    if listed:
        data["schedules"] = [{key: s[key] for key in workflow_files.SCHEDULE_FIELDS} for s in listed]
    data["graph_definition"] = found["graph_definition"]
    text = workflow_files.dump(data, as_json=output is not None and output.suffix.lower() == ".json")
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NovaError(f"{output} cannot be written: {error.strerror}") from None
    print(f"wrote {output}")


@app.command()
def delete(
    workflow: Which,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    api_url: ApiUrl = None,
) -> None:
    """Delete a workflow with its schedules and all its executions; live runs are cancelled first."""
    with Api(api_url) as api:
        found = find(api, workflow)
        if not yes:
            typer.confirm(f"Delete {found['name']!r} and all its executions?", abort=True)
        print(api.delete(f"/workflows/{found['id']}")["message"])


def find(api: Api, which: str) -> dict[str, Any]:
    """Return a workflow by its id, slug or name, perhaps without its graph; raises NotFoundError."""
    return schedules.find_workflow(api, which)


def _same(left: object, right: object) -> bool:
    """Return whether two values are the same JSON: in Python, 1, 1.0 and true are equal."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
