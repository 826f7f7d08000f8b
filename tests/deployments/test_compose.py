"""`compose.yaml` and the Dockerfile: what can be held against the code without starting a container."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prefect.settings import Settings as PrefectSettings
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

import deployments
from deployments.cli.main import app
from deployments.worker.worker_settings import WorkerSettings
from flows.config import times
from flows.config.settings import Settings

FOLDER = Path(deployments.__file__).parent
FILE = FOLDER / "compose.yaml"
DOCKERFILE = FOLDER / "Dockerfile"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOTS = {"migrate", "deploy"}
OURS = {name: service for name, service in SERVICES.items() if service["command"][0] == "nova"}


def variables(*models: type[BaseSettings]) -> set[str]:
    """Names of the environment variables that these settings read."""
    found: set[str] = set()
    for model in models:
        for field in model.model_fields.values():
            alias = field.validation_alias
            names = alias.choices if isinstance(alias, AliasChoices) else [alias]
            found |= {str(name) for name in names}
    return found


def seconds(duration: str) -> int:
    """Seconds of a duration of one unit, as compose writes them."""
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def test_it_is_a_compose_file() -> None:
    """By the Compose specification's own schema, to which an unknown key is an error."""
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema, str(FILE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version" not in COMPOSE


@pytest.mark.parametrize("name", OURS)
def test_every_nova_command_exists(name: str) -> None:
    """Its options too, with values that they take; nothing is run."""
    group = typer.main.get_command(app)
    _, command, *options = [
        re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(word)) for word in SERVICES[name]["command"]
    ]
    with group.make_context("nova", [command, *options], resilient_parsing=False) as context:
        _, found, rest = group.resolve_command(context, [command, *options])  # type: ignore[attr-defined]
        found.make_context(command, rest, parent=context).close()


def test_prefects_command_exists() -> None:
    """`prefect server start` has the options that it is given."""
    program, *rest = SERVICES["prefect"]["command"]
    words = rest[: next(i for i, word in enumerate(rest) if word.startswith("-"))]
    done = subprocess.run([sys.executable, "-m", program, *words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for option in (word for word in rest if word.startswith("--")):
        assert option in done.stdout


@pytest.mark.parametrize("name", [*OURS, "prefect"])
def test_every_variable_is_read_by_somebody(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prefect's by the installed Prefect, which must like the value; the rest by NOVA's settings."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    given: dict[str, str] = SERVICES[name]["environment"]
    for variable in (found for found in given if found.startswith("PREFECT_")):
        monkeypatch.setenv(variable, given[variable])
    known = set(PrefectSettings().to_environment_variables(exclude_unset=True)) | {"DO_NOT_TRACK"}
    assert set(given) - known - variables(Settings) == set()


def test_every_variable_of_novas_in_it_is_one_of_novas_settings() -> None:
    """Those that are taken from `.env` and those that comments speak of."""
    named = set(re.findall(r"NOVA_\w+", FILE.read_text()))
    assert named
    assert named - variables(Settings, WorkerSettings) == set()


@pytest.mark.parametrize("variable", ["NOVA_ENCRYPTION_KEY", "POSTGRES_PASSWORD"])
def test_secrets_come_from_outside_and_are_asked_for(variable: str) -> None:
    """Compose stops with the message when one is missing; none has a default."""
    uses = re.findall(rf"\$\{{{variable}(.*?)\}}", FILE.read_text())
    assert uses
    assert all(use.startswith(":?") and len(use) > 10 for use in uses)
    if variable == "NOVA_ENCRYPTION_KEY":
        assert all("nova key" in use for use in uses)


def test_files_that_it_needs_are_there() -> None:
    """The tuned settings reach Prefect's server; what is the user's own is optional and comes after them."""
    needed = {entry for s in SERVICES.values() for entry in s.get("env_file", []) if isinstance(entry, str)}
    assert needed == {"prefect-server.env"}
    assert all((FOLDER / entry).is_file() for entry in needed)
    first, *others = SERVICES["prefect"]["env_file"]
    assert first == "prefect-server.env"
    assert all(other["required"] is False for other in others)
    for service in OURS.values():
        assert all(entry["required"] is False for entry in service["env_file"])


def test_images_are_pinned() -> None:
    """To a minor version at least, and to the distribution's release."""
    pulled = [s["image"] for s in SERVICES.values() if "build" not in s]
    pulled += re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert pulled
    assert all(re.search(r":\d+\.\d+-\w", image) for image in pulled), pulled
    context = FOLDER / SERVICES["api"]["build"]["context"]
    assert (context / SERVICES["api"]["build"]["dockerfile"]).resolve() == DOCKERFILE.resolve()


def test_nothing_is_open_to_the_network() -> None:
    """Ports are published on this machine's own address."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_comes_back_or_is_waited_for(name: str) -> None:
    """Those that stay are checked and restarted; the others run once, before whoever needs them."""
    service = SERVICES[name]
    if name in ONE_SHOTS:
        assert service["restart"] == "no"
        waiting = [s["depends_on"][name] for s in SERVICES.values() if name in s.get("depends_on", {})]
        assert waiting
        assert all(w["condition"] == "service_completed_successfully" for w in waiting)
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
        for other in (s for s in SERVICES.values() if name in s.get("depends_on", {})):
            assert other["depends_on"][name]["condition"] == "service_healthy"


def test_a_worker_has_time_to_hand_its_runs_back() -> None:
    """It is killed only after any grace that makes sense: a whole run, and the handing back."""
    longest = times.worker_stop(Settings.model_fields["run_timeout"].default)
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > longest
    assert "--with-healthcheck" in SERVICES["worker"]["command"]


@pytest.mark.parametrize(
    ("name", "needed"),
    [("api", times.API_STOP), ("prefect", times.PREFECT_STOP), ("postgres", times.POSTGRES_STOP)],
)
def test_each_part_has_time_to_end(name: str, needed: float) -> None:
    """Nothing is killed that would have ended by itself, as `nova up` has it."""
    assert seconds(SERVICES[name]["stop_grace_period"]) >= needed


def test_a_check_waits_for_the_answer_about_health() -> None:
    """The API may need its time to find out that a part is away: that is an answer, and no timeout."""
    check = SERVICES["api"]["healthcheck"]
    asked = float(re.search(r"timeout=(\d+)", check["test"][-1]).group(1))  # type: ignore[union-attr]
    assert times.HEALTH <= asked < seconds(check["timeout"])


def test_the_image_runs_as_nobody_special_and_passes_signals_on() -> None:
    """A user by number, and commands in exec form: a shell would swallow SIGTERM."""
    lines = DOCKERFILE.read_text().splitlines()
    user = next(line.split()[1] for line in lines if line.startswith("USER "))
    assert int(user) > 0
    assert all(
        line.split(maxsplit=1)[1].startswith("[") for line in lines if re.match("CMD|ENTRYPOINT", line)
    )
    assert all(isinstance(service["command"], list) for service in SERVICES.values())
