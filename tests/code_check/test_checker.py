"""Check graphs with real compiler processes: their answers, their limits and their end."""

from __future__ import annotations

import asyncio
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import pytest

from flows.code_check import compiler
from flows.code_check.checker import GraphChecker
from flows.code_check.compiler_process import Limits
from flows.graphs.errors import Fault, InfrastructureError
from flows.graphs.validation.inspection import MAX_NODES
from tests.builders import action, expression, fork, line
from tests.code_check.programs import MANY_FORS, MANY_PARTS, nested_finally
from tests.graphs.strategies import line_graph
from tests.graphs.validating import validate_graph
from tests.waiting import eventually

Compilers = Callable[[], Sequence[psutil.Process]]

MB = 1024 * 1024


def limits(**changes: Any) -> Limits:
    """Return limits like the API's, but for code up to 1 MiB."""
    return Limits(**{"code": MB, **changes})


async def check(*codes: str, **changes: Any) -> list[Fault]:
    """Check a line of nodes n0, n1, … with these codes and return the faults."""
    graph = line(*(action(f"n{number}", code) for number, code in enumerate(codes)))
    return (await GraphChecker(limits(**changes)).validate(graph)).faults


async def test_a_sound_graph_is_read() -> None:
    """A valid graph comes back without faults; its code and conditions compile in the child."""
    graph = fork(
        action("read", "context['total'] = 5"),
        expression("big", " context['total'] > 3\n"),
        true=action("yes", "pass"),
        false=action("no", "pass"),
    )
    result = await GraphChecker(limits()).validate(graph)
    assert result.faults == []
    assert result.graph is not None
    assert result.graph.node("big").condition == "context['total'] > 3"


@pytest.mark.parametrize(
    "code",
    [
        "x = 1\nif x:\n  y = (\n",
        "return",
        "x = '\0'",
        "'\ud800'",
        "'\U0001f600' '",
        "x = 1\u2028y = (",
        "(" * 100_000 + ")" * 100_000,
        "[" * 500,
        "-" * 100_000,
        "x" + ".a" * 100_000,
        "9" * 5000,
        "x: (y := 1) = 2",
    ],
)
async def test_a_child_reports_what_python_reports(code: str) -> None:
    """The child's faults have the same node, line and column as compiling in this process."""
    here = validate_graph(line(action("n0", code), action("n1", "def")), code_limit=MB).faults
    assert await check(code, "def") == here
    assert here[-1].node == "n1"


async def test_a_condition_is_compiled_as_an_expression() -> None:
    """A statement as a condition is a fault that says so."""
    graph = fork(
        action("read", "pass"),
        expression("big", "x = 1"),
        true=action("a", "pass"),
        false=action("b", "pass"),
    )
    (fault,) = (await GraphChecker(limits()).validate(graph)).faults
    assert (fault.code, fault.node, fault.line) == ("invalid-condition", "big", 1)
    assert "is not a Python expression" in fault.message


@pytest.mark.parametrize("code", [MANY_FORS, MANY_PARTS, nested_finally(19)])
async def test_a_program_that_ends_its_process_is_named_and_the_others_are_checked(code: str) -> None:
    """A program that crashes the process or exceeds a limit gets a fault; all other nodes are checked."""
    faults = await check("pass", "def", code, "x = (", "pass", memory=128 * MB)
    assert [(fault.code, fault.node) for fault in faults] == [
        ("invalid-code", "n1"),
        ("unchecked-code", "n2"),
        ("invalid-code", "n3"),
    ]
    assert faults[1].message.startswith('The code of node "n2" cannot be checked: ')
    assert faults[1].message.endswith(". Make it smaller.")


async def test_a_program_that_needs_too_much_memory_is_refused() -> None:
    """The fault names the limit of memory."""
    (fault,) = await check(nested_finally(19), memory=64 * MB)
    assert "it needs more than 64 MB" in fault.message


async def test_a_program_that_takes_too_long_is_refused() -> None:
    """A program is refused for its processor time, not for the wall clock, so load does not matter."""
    (fault,) = await check(nested_finally(19), memory=4096 * MB, seconds=1)
    assert (fault.code, fault.node) == ("unchecked-code", "n0")
    assert "it needs longer than 1 s" in fault.message


async def test_each_program_has_its_own_time() -> None:
    """The time limit is for each program, not for all together."""
    assert await check(*[nested_finally(14)] * 12, seconds=1) == []


async def test_programs_left_at_the_end_of_patience_are_named() -> None:
    """When the time for the graph ends, a fault names the first unchecked program and counts the rest."""
    faults = await check("def", nested_finally(19), "pass", "x = (", memory=4096 * MB, patience=0.5)
    assert [(fault.code, fault.node) for fault in faults] == [
        ("invalid-code", "n0"),
        ("unchecked-code", "n1"),
    ]
    assert 'of node "n1" and of 2 more was not checked in the 0.5 s' in faults[1].message


async def test_a_child_that_was_killed_from_outside_is_replaced(compilers: Compilers) -> None:
    """When something kills the process once, the program is compiled again without a fault."""
    checking = asyncio.create_task(check("pass", nested_finally(16), "pass"))
    await kill_one(compilers)
    assert await checking == []


async def test_a_program_whose_child_is_killed_twice_is_refused(
    compilers: Compilers, caplog: pytest.LogCaptureFixture
) -> None:
    """A program whose process is killed twice gets a fault, and both kills are logged."""
    checking = asyncio.create_task(check("pass", nested_finally(19), "def", memory=4096 * MB))
    killed = await kill_one(compilers)
    await kill_one(compilers, other_than=killed)
    faults = await checking
    assert [(fault.code, fault.node) for fault in faults] == [
        ("unchecked-code", "n1"),
        ("invalid-code", "n2"),
    ]
    assert "ended twice, with status -9" in faults[0].message
    assert caplog.text.count("ended with status -9") == 2


async def kill_one(compilers: Compilers, other_than: int = 0) -> int:
    """Kill a compiler process while it compiles and return its id."""

    async def working() -> list[psutil.Process]:
        return [one for one in compilers() if one.pid != other_than and one.cpu_times().user > 0.05]

    (process,) = await eventually(working, bool)
    process.kill()
    return process.pid


async def test_a_child_has_limits_and_no_environment(compilers: Compilers) -> None:
    """A compiler process has its limits set, and no environment variable of the API."""
    checking = asyncio.create_task(check(nested_finally(19), memory=4096 * MB, seconds=7))

    async def working() -> Sequence[psutil.Process]:
        return [one for one in compilers() if one.cpu_times().user > 0.05]

    (process,) = await eventually(working, bool)
    assert set(process.environ()) <= {"LC_CTYPE"}  # Python sets it itself
    assert process.rlimit(psutil.RLIMIT_AS)[0] == 4096 * MB
    assert process.rlimit(psutil.RLIMIT_CPU)[0] == 8
    assert process.rlimit(psutil.RLIMIT_CORE)[0] == 0
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking


async def test_a_cancelled_check_leaves_no_process(compilers: Compilers) -> None:
    """A cancelled check kills its compiler process at once."""
    checking = asyncio.create_task(check(nested_finally(19), memory=4096 * MB))
    await eventually(lambda: asyncio.to_thread(compilers), bool)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert compilers() == []


async def test_the_number_of_children_is_limited(compilers: Compilers) -> None:
    """Checks beyond `at_once` wait for their turn."""
    checker = GraphChecker(limits(), at_once=1)
    graphs = [
        line(action(f"n{number}", nested_finally(14) + code)) for number, code in enumerate(["", "x = ("])
    ]
    checks = asyncio.gather(*(checker.validate(graph) for graph in graphs * 2))
    seen = set()
    while not checks.done():
        seen.add(len(compilers()))
        await asyncio.sleep(0.01)
    assert max(seen) == 1
    assert [[fault.node for fault in check.faults] for check in checks.result()] == [[], ["n1"]] * 2


async def test_a_check_that_waits_too_long_is_an_infrastructure_error() -> None:
    """A check that gets no turn in time raises InfrastructureError, which says to send the graph again."""
    checker = GraphChecker(limits(patience=0.1), at_once=0)
    with pytest.raises(InfrastructureError, match="Send this one again later"):
        await checker.validate(line(action("n0", "pass")))


async def test_a_child_that_cannot_be_started_is_an_infrastructure_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When no compiler process can be started, InfrastructureError says so."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InfrastructureError, match="cannot be started"):
        await check("pass")


async def test_a_graph_without_programs_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph without code is checked without a compiler process."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert [fault.code for fault in (await GraphChecker(limits()).validate([])).faults] == ["not-an-object"]


async def test_the_compiler_s_warnings_are_not_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code with warnings prints nothing, and is accepted even if warnings are errors."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await check("'\\d'; 1 is 1; assert (1, 2)") == []
    assert capfd.readouterr() == ("", "")


async def test_the_event_loop_goes_on_meanwhile() -> None:
    """Checking the largest graph never blocks the event loop for 0.1 s."""
    graph = line_graph(*(f"n{number}" for number in range(MAX_NODES - 2)))
    for step in graph["nodes"][1:-1]:
        step["code"] = "context['total'] = sum(context.get('amounts', []))  # " + "x" * 1000
    checking = asyncio.create_task(GraphChecker(limits()).validate(graph))
    longest = 0.0
    while not checking.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - before)
    assert checking.result().faults == []
    assert longest < 0.1


def test_the_child_needs_the_standard_library_alone() -> None:
    """The compiler imports only the standard library: it starts without site-packages, in 0.05 s."""
    imported = {name for name in vars(compiler) if type(getattr(compiler, name)).__name__ == "module"}
    assert imported <= set(sys.stdlib_module_names)
