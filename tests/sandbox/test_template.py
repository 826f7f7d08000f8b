"""The template, built by E2B's own SDK against a server that speaks its protocol."""

from __future__ import annotations

import re
from pathlib import Path

import e2b
import pytest

from flows.sandbox.e2b import template
from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.protocol import installed_runner, runner_zip
from tests.e2b_server.fixture import E2BServer
from tests.sandbox.conftest import Bench, spec

CONSTRAINTS = Path(__file__).parents[2] / "deployments" / "constraints.txt"


def pins(file: Path) -> dict[str, str]:
    """Return package → version from a file of exact requirements."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", name.lower()): version for name, version in found.items()}


@pytest.fixture
def _fast_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll builds at short intervals."""
    monkeypatch.setattr(template, "POLL_INTERVAL", 0.02)


pytestmark = pytest.mark.usefixtures("_fast_polling")


async def test_its_sandboxes_have_the_runner_and_start_it(e2b_server: E2BServer) -> None:
    """A sandbox of the template contains the runner, and the build's last command starts it."""
    await template.build("nova-runner", cpus=4, memory=2048)
    [build] = e2b_server.builds.all
    assert (build.status, build.name, build.cpus, build.memory) == ("ready", "nova-runner", 4, 2048)
    assert build.image == "python:3.11"
    remote = await e2b.AsyncSandbox.create("nova-runner")
    assert await remote.files.read(installed_runner(), format="bytes") == runner_zip()
    tried = await remote.commands.run(build.commands[-1], user="root")
    assert tried.stdout.startswith('{"ready":')
    assert tried.stderr == ""
    await remote.files.write(installed_runner(), "not a runner", user="root")
    with pytest.raises(e2b.CommandExitException):
        await remote.commands.run(build.commands[-1], user="root")


async def test_a_run_in_it_needs_no_upload(e2b_server: E2BServer) -> None:
    """With the template's runner nothing is uploaded."""
    await template.build("nova-runner")
    sandbox = await E2BProvider("nova-runner").create(spec())
    assert await Bench(sandbox).changes("context['n'] = 1") == {"n": 1}
    [remote] = e2b_server.sandboxes
    assert list(remote.home.iterdir()) == []
    await sandbox.kill()


async def test_a_template_of_another_version_serves_too(
    e2b_server: E2BServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the template has another version's runner, the worker uploads its own."""
    monkeypatch.setattr(template, "installed_runner", lambda: "/opt/nova/runner-of-another-version.zip")
    await template.build("nova-runner")
    sandbox = await E2BProvider("nova-runner").create(spec())
    assert await Bench(sandbox).changes("context['n'] = 1") == {"n": 1}
    [remote] = e2b_server.sandboxes
    assert [path.name for path in remote.home.iterdir()] == ["nova-runner.zip"]
    await sandbox.kill()


async def test_the_packages_are_installed_and_tried(e2b_server: E2BServer) -> None:
    """The build installs the packages from wheels only, and imports each of them."""
    await template.build("nova-runner")
    [build] = e2b_server.builds.all
    install, imports, _ = build.commands
    [listed] = [path for path in e2b_server.cloud.installed["nova-runner"] if path.endswith("packages.txt")]
    assert e2b_server.cloud.installed["nova-runner"][listed] == template.PACKAGES.read_bytes()
    assert install.startswith("pip install ")
    assert "--only-binary=:all:" in install
    assert install.endswith(f" -r {listed}")
    for module in ("fitz", "requests", "pandas", "PIL", "psycopg2", "openpyxl"):
        assert re.search(rf"\b{module}\b", imports)


def test_the_packages_are_those_that_are_tested_here() -> None:
    """All packages are pinned; packages that are in the constraints, too, have the same version."""
    packages, tested = pins(template.PACKAGES), pins(CONSTRAINTS)
    assert {"pymupdf", "requests", "pandas", "pillow", "psycopg2-binary", "openpyxl"} <= packages.keys()
    common = packages.keys() & tested.keys()
    assert {"pymupdf", "psycopg2-binary", "requests"} <= common
    assert {name: packages[name] for name in common} == {name: tested[name] for name in common}


async def test_what_has_not_changed_is_not_uploaded_again(e2b_server: E2BServer) -> None:
    """A second build of a name belongs to the same template and uploads no unchanged file."""
    await template.build("nova-runner")
    runner_zip.cache_clear()  # as in another process
    lines: list[str] = []
    await template.build("nova-runner", cache=False, on_log=lambda entry: lines.append(entry.message))
    first, second = e2b_server.builds.all
    assert first.template_id == second.template_id
    assert (first.forced, second.forced) == (False, True)
    assert len([line for line in lines if "already cached" in line]) == 2


async def test_every_log_line_comes_once_and_in_order(e2b_server: E2BServer) -> None:
    """A long log comes complete, though E2B returns it in pages of a hundred lines."""
    e2b_server.builds.lines = 150
    lines: list[str] = []
    await template.build("nova-runner", on_log=lambda entry: lines.append(entry.message))
    [build] = e2b_server.builds.all
    said = [entry["message"] for entry in build.log]
    assert len(said) > 300
    assert lines[-len(said) :] == said


async def test_a_step_that_fails_is_named(e2b_server: E2BServer) -> None:
    """The error has the step's number and E2B's message; the complete log comes before it."""
    e2b_server.builds.fails = "pip install"
    lines: list[str] = []
    with pytest.raises(template.TemplateError, match=r"failed at step 2: failed to run command 'pip install"):
        await template.build("nova-runner", on_log=lambda entry: lines.append(entry.message))
    assert "failed to run command 'pip install" in lines[-1]
    assert "nova-runner" not in e2b_server.cloud.installed


async def test_a_refused_name_is_reported(e2b_server: E2BServer) -> None:
    """The error has E2B's message about the name."""
    with pytest.raises(template.TemplateError, match="cannot be built: 400: Invalid name"):
        await template.build("No Name")


async def test_a_refused_key_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the setting."""
    with E2BServer(api_key="another") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(template.TemplateError, match="E2B_API_KEY was refused"):
            await template.build("nova-runner")
        assert server.builds.all == []


async def test_a_build_that_e2b_forgot_is_reported(e2b_server: E2BServer) -> None:
    """When a build's state cannot be read any more, the error says that it may go on."""
    e2b_server.builds.held = True

    def on_log(entry: e2b.LogEntry) -> None:
        if "FROM python" in entry.message:
            e2b_server.builds.all.clear()

    with pytest.raises(template.TemplateError, match="may go on, but its state cannot be read any more: 400"):
        await template.build("nova-runner", on_log=on_log)
