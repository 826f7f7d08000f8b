"""`nova template build` as its user sees it, E2B's own SDK in it, against a server of E2B's protocol."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployments.conftest import Nova
from tests.e2b_server.fixture import E2BServer
from tests.servers import clean_environment, wait_until


@pytest.fixture
def server() -> Iterator[E2BServer]:
    """E2B, on this machine."""
    with E2BServer() as started:
        yield started


def test_the_setting_is_the_output_and_the_progress_is_beside_it(nova: Nova, server: E2BServer) -> None:
    """`nova template build >> .env` is all there is to do."""
    options = ["--name", "invoices", "--cpus", "1", "--memory", "512", "--no-cache"]
    done = nova("template", "build", *options, **server.environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "E2B_TEMPLATE=invoices\n"
    for line in ("Requesting build for template: invoices", "] FROM python:3.11\n", "] RUN pip install"):
        assert line in done.stderr
    [build] = server.builds.all
    assert (build.status, build.name, build.cpus, build.memory) == ("ready", "invoices", 1, 512)
    assert build.forced


def test_a_dotenv_is_enough(nova: Nova, server: E2BServer, tmp_path: Path) -> None:
    """Key and address may stand in the file alone; the template has a name of its own."""
    lines = [f"{name}={value}\n" for name, value in server.environment.items()]
    (tmp_path / ".env").write_text("".join(lines))
    done = nova("template", "build")
    assert done.stdout == "E2B_TEMPLATE=nova-runner\n", done.stderr


def test_without_a_key_it_says_what_to_do(nova: Nova) -> None:
    """Not the SDK's exception, but where keys are made and where they are put."""
    done = nova("template", "build")
    assert done.returncode == 2
    assert done.stderr.startswith("nova: E2B_API_KEY is not set. Make a key at https://e2b.dev")
    assert "Traceback" not in done.stderr


def test_a_build_that_fails_is_an_error(nova: Nova, server: E2BServer) -> None:
    """The log's end and the step are the last that is seen; there is no setting to write down."""
    server.builds.fails = "import fitz"
    done = nova("template", "build", **server.environment)
    assert done.returncode == 1
    assert done.stdout == ""
    *_, log, error = done.stderr.splitlines()
    assert "command failed: exit status 1" in log
    assert error.startswith("nova: The build failed at step 4: failed to run command 'python3 -c 'import")


def test_the_log_comes_while_it_builds_and_ctrl_c_leaves(server: E2BServer, tmp_path: Path) -> None:
    """Who leaves is told that the build goes on, and it does."""
    server.builds.held = True
    log = tmp_path / "terminal"
    with log.open("wb") as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "template", "build"],
            env=clean_environment(**server.environment),
            stdout=terminal,
            stderr=subprocess.STDOUT,
            # As a terminal starts it: a job in the background ignores Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    wait_until(lambda: "FROM python" in log.read_text() or process.poll() is not None, 60, "the first lines")
    assert process.poll() is None, log.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert log.read_text().endswith("nova: Stopped waiting. A build that has begun goes on in E2B's cloud.\n")
    server.builds.held = False
    wait_until(lambda: server.builds.all[0].status == "ready", 60, "the build to end")
