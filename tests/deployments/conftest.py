"""Fixtures for the command line's tests: the command, and a data folder."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fork_server.client import ForkedProcess
from tests.servers import clean_environment, reachable_folder

_numbers = itertools.count(1)
Nova = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def world_folder() -> Iterator[Path]:
    """A folder that every system user may pass through, as the embedded PostgreSQL needs it."""
    folder = reachable_folder("nova-cli-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def data_dir(world_folder: Path) -> Path:
    """A data folder of this test's own; it does not exist yet."""
    return world_folder / f"data-{next(_numbers)}"


def run_nova(
    *arguments: str, stdin: str = "", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a nova command to its end, by a start of its own."""
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments],
        input=stdin,
        cwd=cwd,
        env=clean_environment(COLUMNS="120", **environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def nova(tmp_path: Path, fork_server: Path) -> Nova:
    """The command, run in an empty folder by the fork server; keywords are environment variables."""
    terminal = tmp_path / "terminal"

    def run(
        *arguments: str, stdin: str = "", cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        terminal.mkdir(exist_ok=True)
        files = {name: terminal / f"{name}-{next(_numbers)}" for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write_text(stdin)
        environment = clean_environment(COLUMNS="120", **environment)
        command = ForkedProcess(fork_server, "deployments.cli", arguments, environment, cwd=cwd, **files)
        code = command.wait(60)
        said = (files[name].read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, code, *said)

    return run
