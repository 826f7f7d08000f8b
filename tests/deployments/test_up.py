"""`nova up` and the commands that speak to it: everything as its users have it, started once."""

from __future__ import annotations

import json
import signal
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.cli.remote import Api
from tests.builders import action, fresh_name, line
from tests.deployments.conftest import Nova
from tests.nova_up import NovaUp
from tests.servers import living, wait_until


def graph(code: str = "context['x'] = 1", **extra: Any) -> dict[str, Any]:
    """A graph with one node."""
    return line(action("work", code, label="Work", **extra))


@pytest.fixture
def workflow_file(tmp_path: Path) -> Path:
    """A workflow of this test's own, as a file."""
    file = tmp_path / "workflow.yaml"
    data = {
        "name": fresh_name("Written"),
        "description": "From a file.",
        "graph_definition": graph("context['x'] = 1\ncontext['y'] = 'ü'\n", colour="red"),
    }
    file.write_text(yaml.safe_dump(data, allow_unicode=True))
    return file


def change(file: Path, **fields: Any) -> dict[str, Any]:
    """Change fields of a workflow file; returns what it holds then."""
    data: dict[str, Any] = yaml.safe_load(file.read_text()) | fields
    file.write_text(yaml.safe_dump(data, allow_unicode=True))
    return data


@pytest.fixture
def api(up: NovaUp) -> list[str]:
    """The option that points a command at the running NOVA."""
    return ["--api-url", up.api_url]


def test_it_tells_its_addresses_and_then_that_it_is_ready(up: NovaUp) -> None:
    """The addresses answer, and a worker is there when it says so."""
    health = httpx.get(f"{up.api_url}/health").json()
    assert health["status"] == "healthy"
    assert health["workers"] == 1
    assert httpx.get(f"{up.api_url}/docs").status_code == 200
    assert "<html" in httpx.get(up.address("Prefect UI")).text
    assert stat.S_IMODE((up.data.path / "encryption.key").stat().st_mode) == 0o600


def test_prefects_server_is_tuned(up: NovaUp) -> None:
    """The running server itself says that it batches, keeps and waits as our file has it."""
    server = httpx.get(f"{up.address('Prefect UI')}/api/admin/settings").json()["server"]
    services = server["services"]
    assert services["task_run_recorder"]["batch_size"] == 50
    assert services["event_persister"]["batch_size"] == 200
    assert server["database"]["sqlalchemy"]["pool_size"] == 20
    assert server["concurrency"]["lease_storage"].endswith(".filesystem")
    assert server["analytics_enabled"] is False


def test_a_second_nova_on_the_same_folder_is_refused(up: NovaUp, nova: Nova) -> None:
    """It says who holds the folder, and the first goes on."""
    done = nova("up", "--data-dir", str(up.data.path), "--api-port", "0", "--prefect-port", "0")
    assert done.returncode == 1
    assert f"in use by another NOVA (process {up.process.pid})" in done.stderr
    assert httpx.get(f"{up.api_url}/health").status_code == 200


def test_apply_creates_then_changes_nothing_then_updates(
    nova: Nova, workflow_file: Path, api: list[str]
) -> None:
    """Idempotent by name; a changed file makes a new version. Unknown fields are warned of and kept."""
    name = yaml.safe_load(workflow_file.read_text())["name"]
    first = nova("workflows", "apply", str(workflow_file), *api)
    assert first.stdout.startswith(f"created {name} (id "), first.stderr
    assert "warning" in first.stderr
    assert nova("workflows", "apply", str(workflow_file), *api).stdout.startswith("unchanged")
    change(workflow_file, graph_definition=graph("context['x'] = 2"), priority="high")
    assert nova("workflows", "apply", str(workflow_file), *api).stdout.startswith("updated")
    listed = nova("workflows", "list", *api).stdout
    row = next(row for row in listed.splitlines() if name in row).split()
    assert row[-4:-1] == ["2", "high", "3"]


def test_an_export_is_a_file_that_changes_nothing(
    nova: Nova, workflow_file: Path, api: list[str], tmp_path: Path
) -> None:
    """Both formats, to a file and to the terminal."""
    data = change(
        workflow_file, schedules=[{"cron": "0 9 * * *", "timezone": "Europe/Madrid", "active": False}]
    )
    slug = nova("workflows", "apply", str(workflow_file), *api).stdout.split()[-1].rstrip(")")
    for name in ("out.yaml", "out.json"):
        done = nova("workflows", "export", slug, "-o", name, *api)
        assert done.returncode == 0, done.stderr
        assert nova("workflows", "apply", name, *api).stdout.startswith("unchanged")
    exported = json.loads((tmp_path / "out.json").read_text())
    assert exported["graph_definition"] == data["graph_definition"]
    assert exported["schedules"][0]["timezone"] == "Europe/Madrid"
    assert yaml.safe_load(nova("workflows", "export", slug, *api).stdout) == exported


def test_schedules_are_made_equal_to_the_file(nova: Nova, workflow_file: Path, api: list[str]) -> None:
    """A file's list is all that there is; a file without one leaves them alone."""
    change(workflow_file, schedules=[{"cron": "0 9 * * *"}, {"cron": "0 18 * * *", "active": False}])
    applied = nova("workflows", "apply", str(workflow_file), *api)
    slug = applied.stdout.split()[-1].rstrip(")")
    assert "0 18 * * *" in nova("workflows", "schedule", "list", slug, *api).stdout
    change(workflow_file, schedules=[{"cron": "0 9 * * *"}])
    assert nova("workflows", "apply", str(workflow_file), *api).stdout.startswith("updated")
    listed = nova("workflows", "schedule", "list", slug, *api).stdout
    assert "0 9 * * *" in listed
    assert "0 18 * * *" not in listed


def test_schedules_are_added_paused_resumed_and_removed(
    nova: Nova, workflow_file: Path, api: list[str]
) -> None:
    """One after the other, by the schedule's id."""
    slug = nova("workflows", "apply", str(workflow_file), *api).stdout.split()[-1].rstrip(")")
    assert nova("clients", "add", "bakery", *api).stdout == "added bakery\n"
    schedule = ["workflows", "schedule"]
    options = ["--timezone", "Europe/Madrid", "--client", "bakery"]
    added = nova(*schedule, "add", slug, "30 7 * * 1", *options, *api)
    assert added.returncode == 0, added.stderr
    number = added.stdout.split()[2].rstrip(":")

    def row() -> list[str]:
        table = nova(*schedule, "list", slug, *api).stdout
        return next((line.split() for line in table.splitlines() if "30 7 * * 1" in line), [])

    assert row()[-1] == "nova"
    assert "yes" in row()
    assert nova(*schedule, "pause", slug, number, *api).returncode == 0
    assert "no" in row()
    assert nova(*schedule, "resume", slug, number, *api).returncode == 0
    assert "yes" in row()
    assert nova(*schedule, "remove", slug, number, *api).returncode == 0
    assert row() == []
    wrong = nova(*schedule, "add", slug, "at nine", *api)
    assert wrong.returncode == 2
    assert "cron" in wrong.stderr


def test_delete_asks_and_then_the_workflow_is_gone(nova: Nova, workflow_file: Path, api: list[str]) -> None:
    """No is no; an unknown workflow is a sentence."""
    slug = nova("workflows", "apply", str(workflow_file), *api).stdout.split()[-1].rstrip(")")
    assert nova("workflows", "delete", slug, *api, stdin="n\n").returncode == 1
    assert nova("workflows", "export", slug, *api).returncode == 0
    assert "is deleted" in nova("workflows", "delete", slug, "--yes", *api).stdout
    gone = nova("workflows", "delete", slug, "--yes", *api)
    assert gone.returncode == 1
    assert gone.stderr.startswith(f"nova: There is no workflow '{slug}'.")


def test_clients_come_with_credentials_and_no_password_is_shown(
    nova: Nova, api: list[str], tmp_path: Path
) -> None:
    """From a file, standard input or the environment; never from an argument, never on the terminal."""
    (tmp_path / "password").write_text("from-a-file\n")
    email = ["--email-user", "a@b.example", "--imap-host", "imap.b.example", "--sender", "x@y.example"]
    database = ["--db-user", "u", "--db-host", "db.example", "--db-name", "d"]
    sources = ["--email-password-file", "password", "--db-password-file", "-"]
    done = nova(
        "clients", "add", "acme", "--name", "ACME", *email, *database, *sources, *api, stdin="from-stdin\n"
    )
    assert done.stdout == "added acme with credentials: email, database\n", done.stderr
    again = nova("clients", "add", "acme", *email, *api, NOVA_EMAIL_PASSWORD="from-env")
    assert again.stdout == "updated acme with credentials: email\n", again.stderr
    listed = nova("clients", "list", *api).stdout
    assert "ACME" in listed
    assert "email/default (primary), database/default (primary)" in listed
    assert "from-" not in done.stdout + done.stderr + again.stdout + listed
    no_password = nova("clients", "add", "acme", *email, *api)
    assert no_password.returncode == 2
    assert "NOVA_EMAIL_PASSWORD" in no_password.stderr
    assert nova("clients", "remove", "acme", "--credential", "database/default", "-y", *api).returncode == 0
    (acme,) = [line for line in nova("clients", "list", *api).stdout.splitlines() if "ACME" in line]
    assert "database" not in acme
    assert nova("clients", "remove", "acme", "--yes", *api).returncode == 0
    assert nova("clients", "remove", "acme", "--yes", *api).returncode == 1


def test_a_part_that_is_killed_comes_back(up: NovaUp) -> None:
    """The API is killed; it is said, and it answers again."""
    killed = up.part("deployments.cli api")
    assert killed is not None
    killed.kill()

    def answers() -> bool:
        try:
            return httpx.get(f"{up.api_url}/health").status_code == 200
        except httpx.TransportError:
            return False

    says = "API ended (SIGKILL); it is started again in 1 s"
    wait_until(lambda: says in up.said, 60, "its death to be said")
    wait_until(answers, 60, "the API to be back")


def test_ctrl_c_in_the_middle_of_a_run_leaves_no_process_and_loses_no_run(up: NovaUp, tmp_path: Path) -> None:
    """A node sleeps in a session of its own: it goes with the rest, and its run goes on at the next start.

    It comes last of the tests that share this NOVA.
    """
    tmp_path.chmod(0o777)
    mark = tmp_path / "began"
    sleeps_once = (
        f"import time; from pathlib import Path; mark = Path({str(mark)!r}); again = mark.exists(); "
        "mark.touch(); time.sleep(0 if again else 50)"
    )
    body = {"name": fresh_name("Sleeper"), "graph_definition": graph(sleeps_once, timeout=60)}
    with Api(up.api_url) as api:
        workflow = api.post("/workflows", body)
        task = api.post(f"/workflows/{workflow['id']}/execute", {})["task_id"]

        def sleeps() -> bool:
            meta = api.get(f"/tasks/{task}").get("meta") or {}
            return bool(meta.get("progress", {}).get("current_node") == "work")

        wait_until(sleeps, 60, "the node to run")
    family = up.family()
    assert len(family) > 5
    since = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 130
    assert time.monotonic() - since < 45  # the node would sleep on
    assert living(family) == []
    assert up.said.endswith("Stopped.\n")

    with NovaUp(up.data.path) as next_up, Api(next_up.api_url) as api:
        wait_until(lambda: api.get(f"/tasks/{task}")["status"] == "SUCCESS", 60, "the run to go on")
