"""E2B sandboxes: E2B's own SDK against a server that speaks its protocol."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from flows.graphs.errors import SandboxError
from flows.sandbox.e2b import e2b_sandbox
from flows.sandbox.e2b.provider import E2BProvider
from flows.sandbox.e2b.throttle import CreationThrottle
from tests.e2b_server.fixture import E2BServer
from tests.sandbox.conftest import FLOW_RUN, Bench, spec
from tests.waiting import eventually


async def started(marker: Path) -> None:
    """Wait until a node has written its file."""
    async with asyncio.timeout(60):
        while not marker.exists():  # noqa: ASYNC110, ASYNC240  (a file tells no event)
            await asyncio.sleep(0.01)


async def asked_for(e2b_server: E2BServer) -> None:
    """Wait until E2B was asked for a sandbox."""

    async def asked() -> int:
        return e2b_server.cloud.asked

    await eventually(asked, lambda number: number > 0)


async def test_a_sandbox_is_made_for_its_run(e2b_server: E2BServer) -> None:
    """The sandbox has the run's template, metadata and timeout, serves all its nodes and is ended."""
    sandbox = await E2BProvider("nova-python").create(spec(timeout=89.5))
    bench = Bench(sandbox)
    await bench.run("pass")
    await bench.run("pass")
    await sandbox.kill()
    await sandbox.kill()
    [remote] = e2b_server.sandboxes
    assert remote.id == sandbox.id
    assert remote.template == "nova-python"
    assert remote.metadata == {"nova": "run", "flow_run": str(FLOW_RUN), "run": "invoices #7 idom"}
    assert remote.timeout == 90 + 60
    assert remote.ended_by == "kill"
    with pytest.raises(SandboxError):
        await bench.run("pass")


async def test_without_a_template_it_is_e2b_s_base(e2b_server: E2BServer) -> None:
    """Without a template the sandbox has E2B's base template."""
    sandbox = await E2BProvider().create(spec())
    await sandbox.kill()
    assert [remote.template for remote in e2b_server.sandboxes] == ["base"]


async def test_a_sandbox_is_ended_by_its_id(e2b_server: E2BServer) -> None:
    """Any process can end a sandbox by its id; a second time does nothing."""
    sandbox = await E2BProvider().create(spec())
    await E2BProvider().kill(sandbox.id)
    assert e2b_server.sandboxes[0].killed
    await E2BProvider().kill(sandbox.id)
    await sandbox.kill()


async def test_a_vanished_sandbox_is_an_error_at_once(e2b_server: E2BServer, tmp_path: Path) -> None:
    """If a sandbox disappears during a node or between two, the run gets a SandboxError without waiting."""
    sandbox = await E2BProvider().create(spec())
    bench = Bench(sandbox)
    await bench.load(marker=str(tmp_path / "marker"))
    code = "import time; open(context['marker'], 'w'); time.sleep(60)"
    running = asyncio.create_task(bench.run(code, timeout=60))
    await started(tmp_path / "marker")
    e2b_server.vanish(sandbox.id)
    async with asyncio.timeout(40):
        with pytest.raises(SandboxError, match="gone") as caught:
            await running
    assert caught.value.reason == "gone"
    with pytest.raises(SandboxError):
        await bench.run("pass")
    await sandbox.kill()

    second = await E2BProvider().create(spec())
    e2b_server.vanish(second.id)
    async with asyncio.timeout(40):
        with pytest.raises(SandboxError):
            await Bench(second).run("pass")
    await second.kill()


async def test_a_sandbox_past_its_time_is_an_error(e2b_server: E2BServer) -> None:
    """When E2B ends a sandbox at its timeout, the running node gets a SandboxError."""
    sandbox = await E2BProvider().create(spec())
    remote = e2b_server.cloud.find(sandbox.id)
    assert remote is not None
    running = asyncio.create_task(Bench(sandbox).run("import time; time.sleep(60)", timeout=60))
    await asyncio.sleep(0)
    e2b_server.set_timeout(sandbox.id, 0.2)
    async with asyncio.timeout(40):
        with pytest.raises(SandboxError):
            await running
    assert remote.ended_by == "timeout"
    await sandbox.kill()


async def test_a_runner_that_dies_is_an_error(e2b_server: E2BServer) -> None:
    """When the runner is killed in its sandbox, a SandboxError says so."""
    sandbox = await E2BProvider().create(spec())
    with pytest.raises(SandboxError, match="runner ended with status"):
        await Bench(sandbox).run("import os, time; os.kill(os.getppid(), 9); time.sleep(60)", timeout=60)
    await sandbox.kill()


async def test_a_broken_stream_is_connected_again(e2b_server: E2BServer, tmp_path: Path) -> None:
    """When the connection breaks during a node, its answer is fetched again; the node runs once."""
    sandbox = await E2BProvider().create(spec())
    bench = Bench(sandbox)
    await bench.load(marker=str(tmp_path / "marker"), big="x" * 100_000)
    code = """
import time
with open(context["marker"], "a") as file: file.write("ran ")
time.sleep(1)
context["big"] += "y"
"""
    running = asyncio.create_task(bench.run(code, timeout=30))
    await started(tmp_path / "marker")
    e2b_server.cut_streams(sandbox.id)
    result = await running
    assert len(result.changes["big"]) == 100_003
    assert (tmp_path / "marker").read_text() == "ran "
    e2b_server.cut_streams(sandbox.id)
    assert await bench.changes("context['n'] = len(context['big'])") == {"n": 100_001}
    await sandbox.kill()


async def test_a_lost_answer_is_sent_again(e2b_server: E2BServer, tmp_path: Path) -> None:
    """When a node ends while the connection is broken, its answer is sent again; it does not run again."""
    sandbox = await E2BProvider().create(spec())
    bench = Bench(sandbox)
    marker = tmp_path / "marker"
    await bench.load(marker=str(marker))
    code = "import time; time.sleep(0.3); open(context['marker'], 'a').write('ran '); context['n'] = 1"
    running = asyncio.create_task(bench.run(code, timeout=30))
    async with asyncio.timeout(60):
        while not running.done():
            e2b_server.cut_streams(sandbox.id)
            await asyncio.sleep(0.07 if not marker.exists() else 2)
    assert (await running).changes == {"n": b"1"}
    assert marker.read_text() == "ran "
    await sandbox.kill()


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (401, "authentication", "E2B_API_KEY was refused"),
        (429, "no_turn", "rate limit"),
        (503, "no_turn", "no free capacity"),
        (500, "unwell", "500"),
        (502, "unwell", "502"),
        (504, "unwell", "504"),
        (400, "refused", "template"),
    ],
)
async def test_a_refused_sandbox_says_why(
    e2b_server: E2BServer, status: int, reason: str, words: str
) -> None:
    """When E2B refuses a sandbox, the error has a sentence and a reason."""
    e2b_server.cloud.refuse_with = (status, "template or so")
    with pytest.raises(SandboxError, match=words) as caught:
        await E2BProvider(throttle=CreationThrottle(patience=0.5)).create(spec())
    assert caught.value.reason == reason


async def test_e2b_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """When E2B cannot be reached, the SDK's transport error becomes a SandboxError."""
    monkeypatch.setenv("E2B_API_URL", "http://127.0.0.1:9")
    with pytest.raises(SandboxError, match="cannot be reached") as caught:
        await E2BProvider(api_key="e2b_" + "0" * 40).create(spec())
    assert caught.value.reason == "unreachable"


async def test_the_next_creation_gets_the_sandbox_whose_answer_was_lost(
    e2b_server: E2BServer,
) -> None:
    """When a creation's answer is lost, the run's next creation returns that sandbox, not a second one."""
    provider = E2BProvider()
    async with httpx.AsyncClient(base_url=e2b_server.url) as client:
        await client.put("/faults", json={"rate": 1, "kinds": ["lost answer"]})
        with pytest.raises(SandboxError) as caught:
            await provider.create(spec())
        await client.put("/faults", json={"rate": 0})
    assert caught.value.reason == "unreachable"
    sandbox = await provider.create(spec())
    assert [remote.id for remote in e2b_server.sandboxes] == [sandbox.id]
    other = await provider.create(spec())
    assert other.id != sandbox.id
    await sandbox.kill()
    await other.kill()


async def test_a_template_without_python_says_so(e2b_server: E2BServer, tmp_path: Path) -> None:
    """When the runner cannot start, the error has the shell's message and the sandbox is ended."""
    e2b_server.cloud.envs = {"PATH": str(tmp_path)}
    with pytest.raises(SandboxError, match="python3"):
        await E2BProvider().create(spec())
    assert all(remote.killed for remote in e2b_server.sandboxes)


async def test_a_cancelled_creation_leaves_no_sandbox(e2b_server: E2BServer) -> None:
    """When a creation is cancelled, its sandbox is ended once E2B has created it."""
    e2b_server.cloud.start_delay = 0.5
    making = asyncio.create_task(E2BProvider().create(spec()))
    await asked_for(e2b_server)
    making.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await making
    assert [remote.killed for remote in e2b_server.sandboxes] == [True]


async def test_a_cancelled_creation_ends_a_sandbox_that_comes_late(
    e2b_server: E2BServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A creation may take longer than other requests; its sandbox is ended then, too."""
    e2b_server.hold()
    with monkeypatch.context() as patched:
        patched.setattr(e2b_sandbox, "REQUEST_TIMEOUT", 0.1)
        making = asyncio.create_task(E2BProvider().create(spec()))
        await asked_for(e2b_server)
        making.cancel()
        done, _ = await asyncio.wait({making}, timeout=1)
        assert not done
        making.cancel()  # a second cancellation does not stop it
        await asyncio.wait({making})
    e2b_server.release()

    async def left() -> list[bool]:
        return [remote.killed for remote in e2b_server.sandboxes]

    await eventually(left, lambda found: found == [True])


async def test_a_killed_sandbox_takes_its_processes_along(
    e2b_server: E2BServer, tmp_path: Path, alive: Callable[[int], bool]
) -> None:
    """Killing a sandbox during a node ends the node's processes; its caller gets a SandboxError."""
    sandbox = await E2BProvider().create(spec())
    bench = Bench(sandbox)
    marker = tmp_path / "marker"
    await bench.load(marker=str(marker))
    code = """
import os, pathlib, time
marker = pathlib.Path(context["marker"])
marker.with_suffix(".new").write_text(str(os.getpid()))
marker.with_suffix(".new").rename(marker)
time.sleep(60)
"""
    running = asyncio.create_task(bench.run(code, timeout=60))
    await started(marker)
    node = int(marker.read_text())
    assert alive(node)
    await sandbox.kill()
    with pytest.raises(SandboxError):
        await running

    async def lives() -> bool:
        return alive(node)

    await eventually(lives, lambda found: not found)  # the kernel ends it after the answer


async def test_the_server_can_run_as_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m tests.e2b_server` prints its URL, serves the SDK and accepts only its own key."""
    root = Path(__file__).parents[2]
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2b_server", "--port", "0", "--api-key", "e2b_key"),
        stdout=asyncio.subprocess.PIPE,
        cwd=root,
    )
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode("ascii").strip()
    monkeypatch.setenv("E2B_API_URL", url)
    monkeypatch.setenv("E2B_SANDBOX_URL", url)
    sandbox = await E2BProvider(api_key="e2b_key").create(spec())
    assert await Bench(sandbox).changes("context['a'] = 1") == {"a": 1}
    with pytest.raises(SandboxError, match="E2B_API_KEY was refused"):
        await E2BProvider(api_key="e2b_other").create(spec())
    await sandbox.kill()
    server.terminate()
    assert await server.wait() == 0
