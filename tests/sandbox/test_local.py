"""Local sandboxes are child processes; they leave nothing behind, even if their worker dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.config.settings import Settings
from flows.graphs.errors import SandboxError
from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.factory import provider
from flows.sandbox.local import LocalProvider
from tests.sandbox.conftest import Bench, spec

ROOT = str(Path(__file__).parents[2])
WORKER = """
import asyncio, sys
from flows.sandbox.local import LocalProvider
from tests.sandbox.conftest import Bench, spec

async def main():
    sandbox = await LocalProvider().create(spec())
    print(sandbox.id, flush=True)
    code = "import os, time; open(context['marker'], 'w').write(str(os.getpid())); time.sleep(300)"
    bench = Bench(sandbox)
    await bench.load(marker=sys.argv[1])
    await bench.run(code, timeout=60)

asyncio.run(main())
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The parent of the sandboxes' folders; all of these must be gone after the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert left_in(tmp_path) == []


def text_of(path: Path) -> str:
    """Return what a node has written so far."""
    return path.read_text() if path.exists() else ""


def left_in(path: Path) -> list[Path]:
    """Return the sandboxes' folders that still exist."""
    return list(path.glob("nova-*"))


def written(path: Path) -> bool:
    """Return whether a node has written its file."""
    return text_of(path) != ""


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (processes and files send no event)
            await asyncio.sleep(0.01)


async def test_a_killed_worker_leaves_nothing(tmp_path: Path, alive: Callable[[int], bool]) -> None:
    """When a worker is killed, its runner and node end and their folder is removed."""
    marker = tmp_path / "marker"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": ROOT}
    command = [sys.executable, "-c", WORKER, str(marker)]
    worker = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment)
    assert worker.stdout is not None
    runner = int((await worker.stdout.readline()).split(b"-")[1])
    await until(lambda: written(marker))
    node = int(text_of(marker))
    assert alive(runner)
    assert alive(node)
    worker.kill()
    await worker.wait()
    await until(lambda: not alive(runner) and not alive(node))
    assert left_in(tmp_path) == []


async def test_a_cancelled_run_leaves_nothing(folders: Path, alive: Callable[[int], bool]) -> None:
    """Cancelling a run and killing its sandbox, even twice, ends all its processes."""
    sandbox = await LocalProvider().create(spec())
    bench = Bench(sandbox)
    marker = folders / "marker"
    await bench.load(marker=str(marker))
    code = "import os, time; open(context['marker'], 'w').write(str(os.getpid())); time.sleep(300)"
    running = asyncio.create_task(bench.run(code, timeout=60))
    await until(lambda: written(marker))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await sandbox.kill()
    await sandbox.kill()
    assert not alive(int(text_of(marker)))
    assert not alive(int(sandbox.id.split("-")[1]))
    with pytest.raises(SandboxError):
        await bench.run("pass")
    with pytest.raises(SandboxError):
        await bench.load(a=1)


async def test_any_worker_of_the_machine_can_end_a_sandbox(
    folders: Path, alive: Callable[[int], bool]
) -> None:
    """Any worker ends a sandbox by its id; a second time does nothing."""
    sandbox = await LocalProvider().create(spec())
    other = LocalProvider()
    await other.kill(sandbox.id)
    assert not alive(int(sandbox.id.split("-")[1]))
    await other.kill(sandbox.id)
    await sandbox.kill()


async def test_a_reused_process_id_is_not_killed() -> None:
    """When a sandbox's process id belongs to another process now, nothing is killed."""
    await LocalProvider().kill(f"local-{os.getpid()}-0123456789ab")
    with pytest.raises(SandboxError):
        await LocalProvider().kill("i0123456789")


async def test_a_runner_that_does_not_answer_is_killed(folders: Path, alive: Callable[[int], bool]) -> None:
    """A runner that hangs is killed after the node's timeout and the grace, with a SandboxError."""
    sandbox = await LocalProvider(grace=0.3).create(spec())
    runner = int(sandbox.id.split("-")[1])
    os.kill(runner, signal.SIGSTOP)
    with pytest.raises(SandboxError, match="did not answer"):
        await Bench(sandbox).run("pass", timeout=0.2)
    await until(lambda: not alive(runner))
    await sandbox.kill()


async def test_a_runner_that_dies_is_noticed_at_once(folders: Path) -> None:
    """When a node kills its runner, its caller gets a SandboxError at once."""
    sandbox = await LocalProvider().create(spec())
    with pytest.raises(SandboxError, match="its process ended"):
        await Bench(sandbox).run("import os, time; os.kill(os.getppid(), 9); time.sleep(60)", timeout=60)
    await sandbox.kill()


async def test_a_sandbox_that_cannot_be_created_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When the sandbox's folder cannot be created, a SandboxError says so."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(SandboxError, match="could not be started"):
        await LocalProvider().create(spec())


def test_the_key_of_e2b_decides(caplog: pytest.LogCaptureFixture) -> None:
    """With `E2B_API_KEY` nodes run in E2B; without it they run here, and a warning says so."""
    provider.cache_clear()  # the warning comes once per process
    assert isinstance(provider(Settings.model_validate({"E2B_API_KEY": "e2b_x"})), E2BProvider)
    assert caplog.text == ""
    assert isinstance(provider(Settings.model_validate({"E2B_API_KEY": ""})), LocalProvider)
    assert "Run only code that you trust" in caplog.text
