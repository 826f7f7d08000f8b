"""The supervisor: parts are kept running, and none of their processes stays behind."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deployments.cli.supervisor import Part, Pauses, Supervisor
from tests.servers import living, wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
FAMILY = """
import subprocess, sys, time
child = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
print(subprocess.Popen(child, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def part(tmp_path: Path, code: str, name: str = "part", grace: float = 5.0) -> Part:
    """A part that runs Python code."""
    return Part(name, [sys.executable, "-c", code], {}, tmp_path / f"{name}.log", tmp_path, grace=grace)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as the condition holds; the supervisor goes on meanwhile."""
    await asyncio.to_thread(wait_until, condition, 60, what)


async def logged(path: Path, lines: int = 1) -> list[str]:
    """The lines of a log, as soon as there are that many."""
    read = functools.partial(Path.read_text, path)
    await until(lambda: path.exists() and read().count("\n") >= lines, f"{lines} lines in {path}")
    return read().splitlines()


async def test_a_dying_part_is_started_again_after_growing_pauses(tmp_path: Path) -> None:
    """Each death in a row doubles the pause, up to the bound, and each is said."""
    said: list[str] = []
    supervisor = Supervisor(said.append, pauses=Pauses(first=0.05, longest=0.15))
    stamp = part(tmp_path, "import time; print(time.monotonic()); raise SystemExit(3)")
    await supervisor.start(stamp)
    starts = [float(line) for line in await logged(stamp.log, 5)]
    await supervisor.stop_all()
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps[0] >= 0.05
    assert gaps[1] >= 0.10
    assert all(gap >= 0.15 for gap in gaps[2:])
    assert "part ended (exit code 3); it is started again in 0.05 s" in said[0]
    assert "again in 0.1 s" in said[1]
    assert "again in 0.15 s" in said[2]


def test_pauses_are_one_two_four_and_so_on_to_thirty_seconds() -> None:
    """The pauses that people get."""
    assert [Pauses().after(deaths) for deaths in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert Pauses().after(10_000) == 30


async def test_a_part_that_lived_long_enough_begins_with_the_first_pause_again(tmp_path: Path) -> None:
    """Deaths only count in a row."""
    supervisor = Supervisor(lambda line: None, pauses=Pauses(first=0.01, longest=9, healthy_after=0))
    ends = part(tmp_path, "print('x')")
    await supervisor.start(ends)
    await logged(ends.log, 4)
    assert supervisor.deaths("part") <= 1
    await supervisor.stop_all()


async def test_stopping_leaves_no_process_not_even_one_in_a_session_of_its_own(tmp_path: Path) -> None:
    """A grandchild that ignores SIGTERM in its own session is killed with the rest."""
    supervisor = Supervisor(lambda line: None)
    head = part(tmp_path, FAMILY)
    await supervisor.start(head)
    grandchild = psutil.Process(int((await logged(head.log))[0]))
    pid = supervisor.pid("part")
    assert pid is not None
    assert grandchild.is_running()
    await supervisor.stop_all()
    assert not psutil.pid_exists(pid)
    assert living([grandchild]) == []


async def test_a_death_is_noticed_though_a_grandchild_lives_and_its_output_is_kept(tmp_path: Path) -> None:
    """As when a worker is killed while its runs go on: they hold the same pipe."""
    child = "import os, time; time.sleep(0.5); print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "sys.exit(4)"
    )
    said: list[str] = []
    supervisor = Supervisor(said.append)
    head = part(tmp_path, code)
    await supervisor.start(head)
    await until(lambda: len(said) == 1, "the death to be said")
    assert "exit code 4" in said[0]
    grandchild = psutil.Process(int((await logged(head.log))[0]))
    await supervisor.stop_all()
    grandchild.kill()


async def test_a_part_that_does_not_stop_is_killed_after_its_grace(tmp_path: Path) -> None:
    """SIGTERM ignored: SIGKILL, said on the terminal."""
    said: list[str] = []
    supervisor = Supervisor(said.append)
    deaf = "import signal; signal.signal(15, signal.SIG_IGN)\n" + SLEEPER
    stubborn = part(tmp_path, deaf, grace=0.3)
    await supervisor.start(stubborn)
    await logged(stubborn.log)
    since = time.monotonic()
    await supervisor.stop("part")
    assert time.monotonic() - since < 5
    assert any("is killed" in line for line in said)


async def test_parts_stop_in_the_opposite_order(tmp_path: Path) -> None:
    """What was started last, and may need the others, goes first."""
    supervisor = Supervisor(lambda line: None)
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def bye(*_):\n    open({order!r}, 'a').write({name!r} + ' '); sys.exit()\n"
        "signal.signal(15, bye); print('up', flush=True); time.sleep(600)"
    )
    for name in ("first", "second", "third"):
        one = part(tmp_path, code.format(order=str(order), name=name), name)
        await supervisor.start(one)
        await logged(one.log)
    await supervisor.stop_all()
    assert order.read_text().split() == ["third", "second", "first"]


async def test_warnings_reach_the_terminal_and_all_output_the_log(tmp_path: Path) -> None:
    """Quiet by default: only trouble is repeated."""
    said: list[str] = []
    supervisor = Supervisor(said.append)
    lines = (
        "print('INFO fine'); print('WARNING look'); print('x' * 200_000); print('ERROR bad', flush=True)\n"
    )
    talker = part(tmp_path, lines + SLEEPER)
    await supervisor.start(talker)
    await logged(talker.log, 4)
    await until(lambda: len(said) >= 2, "two lines on the terminal")
    await supervisor.stop_all()
    assert said == ["part: WARNING look", "part: ERROR bad"]
    assert "INFO fine" in talker.log.read_text()


async def test_a_program_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    """Nothing to start again: the caller is told."""
    supervisor = Supervisor(lambda line: None)
    missing = Part("ghost", [str(tmp_path / "ghost")], {}, tmp_path / "log", tmp_path)
    with pytest.raises(FileNotFoundError):
        await supervisor.start(missing)
    await supervisor.stop_all()
