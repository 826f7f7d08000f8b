"""Whatever a node does, it gets a clear failure and the sandbox can run the next node."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.sandbox.conftest import Bench

SPAWN = """
import os, subprocess, time
print(subprocess.Popen(["sleep", "300"]).pid)
print(subprocess.Popen(["sleep", "300"], start_new_session=True).pid, flush=True)
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.write(writing, b"started")
        time.sleep(300)
    os._exit(0)
os.read(reading, 7)
"""


async def test_an_exception_comes_back_with_the_node_s_lines(bench: Bench) -> None:
    """The failure has the type, the message and a traceback of the node's own lines, none of the runner's."""
    failure = await bench.fail('def take(mail):\n    return mail["subject"]\n\ntake({"from": "a"})\n')
    assert (failure.type, failure.message) == ("KeyError", "'subject'")
    lines = failure.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == '  File "<node>", line 4, in <module>'
    assert lines[2] == '    take({"from": "a"})'
    assert '  File "<node>", line 2, in take' in lines
    assert '    return mail["subject"]' in lines
    assert "runner" not in failure.traceback


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("if True\n    pass", "SyntaxError", "(<node>, line 2)"),
        ("x = 'a\x00b'", "", "null byte"),
        ("exit()", "SystemExit", "exit() was called"),
        ("import sys; sys.exit('because')", "SystemExit", "exit() was called with 'because'"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd", "odd"),
        (
            "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
            "Mute",
            "could not be read",
        ),
        ("def f(): f()\nf()", "RecursionError", "maximum recursion depth"),
        ("raise MemoryError", "MemoryError", "out of memory"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 40)",
            "MemoryError",
            "out of memory",
        ),
        ("open('/dev/full', 'w').write('x' * 100_000)", "OSError", "No space left on device"),
        (
            "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (9, 9)); open('f', 'w').write('x' * 99_999)",
            "OSError",
            "File too large",
        ),
        ("import os; os._exit(3)", "NodeExited", "ended with status 3"),
        ("import os; os._exit(0)", "NodeExited", "ended with status 0 and no result"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "NodeKilled", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "NodeKilled", "killed by SIGSEGV"),
        ("import os; os.closerange(0, 100)", "NodeExited", "no result"),
        ("import os; os.write(3, b'{\"keys\": []}\\n')", "NodeExited", "wrote to the result's pipe"),
        ("import sys; sys.stdout.close(); sys.stdout = None; 1 / 0", "ZeroDivisionError", "division"),
        ("import sys; sys.setrecursionlimit(60); raise LookupError('x')", "LookupError", "x"),
        (
            "import os\nif os.fork() == 0: raise SystemExit\nos.wait(); raise LookupError('parent')",
            "LookupError",
            "parent",
        ),
        ("raise ExceptionGroup('many', [ValueError('one'), TypeError('two')])", "ExceptionGroup", "many"),
    ],
)
async def test_a_clear_failure(bench: Bench, code: str, kind: str, message: str) -> None:
    """Whatever ends a node, its failure says what, and the next node runs."""
    failure = await bench.fail(f"context['spoiled'] = 1\n{code}")
    assert kind in failure.type
    assert message in failure.message


async def test_a_cause_is_shown(bench: Bench) -> None:
    """The traceback of an exception with a cause shows both."""
    failure = await bench.fail(
        "try: int('x')\nexcept ValueError as error: raise LookupError('no') from error"
    )
    assert "invalid literal" in failure.traceback
    assert "direct cause" in failure.traceback


async def test_output_before_a_failure_is_kept(bench: Bench) -> None:
    """What a node printed before it died is in its result."""
    result = await bench.sandbox.run(bench.call("import os, sys\nprint('so far')\nos.kill(os.getpid(), 9)"))
    assert result.stdout == "so far\n"


async def test_a_fork_of_the_node_does_not_answer(bench: Bench) -> None:
    """A process that the node forked runs to the end of the code; only the node's answer counts."""
    code = (
        "import os, time\nif (pid := os.fork()): time.sleep(0.2)\ncontext['who'] = 'node' if pid else 'fork'"
    )
    assert await bench.changes(code) == {"who": "node"}


async def test_a_late_node_is_killed_with_all_that_it_started(
    bench: Bench, alive: Callable[[int], bool]
) -> None:
    """At its timeout a node is killed with all its children, also those in other sessions and daemons."""
    started = time.monotonic()
    result = await bench.sandbox.run(bench.call(f"{SPAWN}time.sleep(300)", timeout=2))
    assert time.monotonic() - started < 100
    assert result.failure is not None
    assert result.failure.type == "NodeTimeout"
    assert result.failure.message == "the node ran longer than its 2 seconds and was killed"
    pids = [int(word) for word in result.stdout.split() if word.isdigit()]
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)
    await bench.run("pass")


async def test_a_busy_loop_is_late_too(bench: Bench) -> None:
    """Code that never waits and ignores signals is killed at its timeout, too."""
    code = "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
    assert (await bench.fail(code, timeout=0.5)).type == "NodeTimeout"


async def test_background_processes_end_with_their_node(bench: Bench, alive: Callable[[int], bool]) -> None:
    """When a node succeeds, its background processes are killed without waiting for them."""
    started = time.monotonic()
    result = await bench.run(f"{SPAWN}context['done'] = True")
    assert time.monotonic() - started < 100
    pids = [int(word) for word in result.stdout.split() if word.isdigit()]
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)


async def test_too_many_processes_end_a_node(bench: Bench) -> None:
    """A node with too many processes is killed, and its failure says so."""
    code = """
import os, time
for _ in range(300):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
    failure = await bench.fail(code)
    assert failure.type == "TooManyProcesses"
    assert failure.message == "the node had more than 256 processes and was killed"


async def test_a_folder_that_cannot_be_made_is_a_failure(bench: Bench) -> None:
    """When the node's folder cannot be created, as on a full disk, the node fails and says why."""
    await bench.run("import os, shutil; shutil.rmtree(os.path.dirname(os.getcwd()))")
    result = await bench.sandbox.run(bench.call("pass"))
    assert result.failure is not None
    assert "the node could not be started" in result.failure.message
