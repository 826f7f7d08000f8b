"""Fixtures for the command line's tests: a data folder, and NOVA itself as a process."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.fork_server.client import ForkedProcess
from tests.servers import clean_environment, wait_until

_numbers = itertools.count(1)
Nova = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def world_folder() -> Iterator[Path]:
    """A folder that every system user may pass through, as the embedded PostgreSQL needs it."""
    place = "/var/tmp" if Path("/var/tmp").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="nova-cli-", dir=place))
    folder.chmod(0o755)
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


@dataclass
class Up:
    """`nova up` as a process."""

    process: subprocess.Popen[bytes]
    log: Path
    data_dir: Path

    @property
    def said(self) -> str:
        """What it has written to the terminal so far."""
        return self.log.read_text()

    def address(self, what: str) -> str:
        """An address that it has told."""
        found = re.search(rf"^{what}\s+(\S+)", self.said, re.MULTILINE)
        assert found, self.said
        return found.group(1)

    @property
    def api_url(self) -> str:
        """Address of the API."""
        return self.address("API docs").removesuffix("/docs")

    def part(self, words: str) -> psutil.Process | None:
        """The part whose command line has these words."""
        for child in psutil.Process(self.process.pid).children():
            try:
                if words in " ".join(child.cmdline()):
                    return child
            except psutil.Error:
                continue
        return None

    def family(self) -> list[psutil.Process]:
        """All processes that descend from it."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def up(world_folder: Path) -> Iterator[Up]:
    """One `nova up`, ready, for a module's tests."""
    folder = world_folder / f"up-{next(_numbers)}"
    folder.mkdir()
    with running_up(folder) as running:
        yield running


@contextlib.contextmanager
def running_up(folder: Path) -> Iterator[Up]:
    """Run `nova up` on the data in a folder until the block ends; ready when given."""
    log = folder / "terminal.log"
    command = [sys.executable, "-m", "deployments.cli", "up", "--data-dir", str(folder / "data")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--api-port", "0", "--prefect-port", "0"],
            cwd=folder,
            # What points elsewhere must not reach the parts.
            env=clean_environment(PREFECT_PROFILE="elsewhere", PREFECT_API_URL="http://127.0.0.1:1/api"),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Up(process, log, folder / "data")
    try:
        wait_until(
            lambda: running.said.endswith("NOVA is ready\n") or process.poll() is not None,
            150,
            "NOVA to be ready",
        )
        assert process.poll() is None, running.said
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
