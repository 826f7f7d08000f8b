"""Checking graphs with real child processes: what they say, what they may take, and what outlives them."""

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
    """Return limits like the API's, for larger code."""
    return Limits(**{"code": MB, **changes})


async def check(*codes: str, **changes: Any) -> list[Fault]:
    """Check a line of nodes n0, n1, … with these codes; returns the faults."""
    graph = line(*(action(f"n{number}", code) for number, code in enumerate(codes)))
    return (await GraphChecker(limits(**changes)).validate(graph)).faults


async def test_a_sound_graph_is_read() -> None:
    """Code and conditions compile in the child; what comes back is the graph, without a fault."""
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
async def test_a_child_says_what_python_says(code: str) -> None:
    """The same faults, by node, line and column, as compiling here would give."""
    here = validate_graph(line(action("n0", code), action("n1", "def")), code_limit=MB).faults
    assert await check(code, "def") == here
    assert here[-1].node == "n1"


async def test_a_condition_is_compiled_as_an_expression() -> None:
    """A statement is none, and is told as such."""
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
async def test_a_program_that_is_too_much_is_named_and_the_others_are_checked(code: str) -> None:
    """It takes its process with it, or meets a limit; nodes before and behind it get their own faults."""
    faults = await check("pass", "def", code, "x = (", "pass", memory=128 * MB)
    assert [(fault.code, fault.node) for fault in faults] == [
        ("invalid-code", "n1"),
        ("unchecked-code", "n2"),
        ("invalid-code", "n3"),
    ]
    assert faults[1].message.startswith('The code of node "n2" cannot be checked: ')
    assert faults[1].message.endswith(". Make it smaller.")


async def test_a_program_that_takes_too_much_memory_is_told_so() -> None:
    """With the limit, so that the sentence can be judged."""
    (fault,) = await check(nested_finally(19), memory=64 * MB)
    assert "it needs more than 64 MB" in fault.message


async def test_a_program_that_takes_too_long_is_told_so() -> None:
    """Processor time counts, not the clock: a busy machine accuses nobody."""
    (fault,) = await check(nested_finally(19), memory=4096 * MB, seconds=1)
    assert (fault.code, fault.node) == ("unchecked-code", "n0")
    assert "it needs longer than 1 s" in fault.message


async def test_each_program_has_its_own_time() -> None:
    """Many that take a little are not taken for one that takes too much."""
    assert await check(*[nested_finally(14)] * 12, seconds=1) == []


async def test_what_is_left_when_patience_ends_is_named() -> None:
    """All programs of a graph have a bound of time together; the first that did not come to it is named."""
    faults = await check("def", nested_finally(19), "pass", "x = (", memory=4096 * MB, patience=0.5)
    assert [(fault.code, fault.node) for fault in faults] == [
        ("invalid-code", "n0"),
        ("unchecked-code", "n1"),
    ]
    assert 'of node "n1" and of 2 more was not checked in the 0.5 s' in faults[1].message


async def test_a_child_that_was_killed_from_outside_is_replaced(compilers: Compilers) -> None:
    """Once is no fault of the program."""
    checking = asyncio.create_task(check("pass", nested_finally(16), "pass"))
    await kill_one(compilers)
    assert await checking == []


async def test_a_program_whose_child_is_killed_twice_is_refused(
    compilers: Compilers, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine may lack the memory for it; the log has it, and nothing waits for ever."""
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
    """Kill a process that compiles, in the middle of it; returns its id."""

    async def working() -> list[psutil.Process]:
        return [one for one in compilers() if one.pid != other_than and one.cpu_times().user > 0.05]

    (process,) = await eventually(working, bool)
    process.kill()
    return process.pid


async def test_a_child_has_no_variables_and_its_limits(compilers: Compilers) -> None:
    """Nothing of the API's environment: no key, no address of the database."""
    checking = asyncio.create_task(check(nested_finally(19), memory=4096 * MB, seconds=7))

    async def working() -> Sequence[psutil.Process]:
        return [one for one in compilers() if one.cpu_times().user > 0.05]

    (process,) = await eventually(working, bool)
    assert set(process.environ()) <= {"LC_CTYPE"}  # which Python itself sets
    assert process.rlimit(psutil.RLIMIT_AS)[0] == 4096 * MB
    assert process.rlimit(psutil.RLIMIT_CPU)[0] == 8
    assert process.rlimit(psutil.RLIMIT_CORE)[0] == 0
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking


async def test_a_check_that_is_given_up_leaves_no_process(compilers: Compilers) -> None:
    """Whoever cancels it, as the API's end does, need not wait for the compiler."""
    checking = asyncio.create_task(check(nested_finally(19), memory=4096 * MB))
    await eventually(lambda: asyncio.to_thread(compilers), bool)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert compilers() == []


async def test_so_many_children_at_once_and_no_more(compilers: Compilers) -> None:
    """Who comes later waits for its turn."""
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


async def test_a_turn_that_does_not_come_is_no_fault_of_the_graph() -> None:
    """Whoever sent it is told to come again, and not kept for ever."""
    checker = GraphChecker(limits(patience=0.1), at_once=0)
    with pytest.raises(InfrastructureError, match="Send this one again later"):
        await checker.validate(line(action("n0", "pass")))


async def test_a_child_that_cannot_be_started_is_no_fault_of_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told as what it is, and may be tried again."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(InfrastructureError, match="cannot be started"):
        await check("pass")


async def test_a_graph_without_programs_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with it is known without one."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert [fault.code for fault in (await GraphChecker(limits()).validate([])).faults] == ["not-an-object"]


async def test_warnings_of_the_compiler_are_kept_quiet(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code with `1 is 1` prints nothing on the server, and is not refused where warnings are errors."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert await check("'\\d'; 1 is 1; assert (1, 2)") == []
    assert capfd.readouterr() == ("", "")


async def test_the_event_loop_goes_on_meanwhile() -> None:
    """The largest graph is looked at without keeping other requests from being served."""
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
    """It is started without site-packages, so that it is there in the twentieth of a second."""
    imported = {name for name in vars(compiler) if type(getattr(compiler, name)).__name__ == "module"}
    assert imported <= set(sys.stdlib_module_names)
