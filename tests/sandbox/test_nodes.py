"""How a node runs: its own module, folder and output; decisions and conditions."""

from __future__ import annotations

import json

import pytest

from flows.sandbox.port import SandboxProvider
from tests.sandbox.conftest import Bench, spec

ANSWERS = [
    ("True", "true", True),
    ("0", "false", False),
    ("[]", "false", False),
    ("None", "false", False),
    ("3.5", "true", True),
    ("'high'", "high", True),
    ("''", "", False),
    ("'false'", "false", True),
]


async def test_a_node_is_a_program_of_its_own(bench: Bench) -> None:
    """A node is `__main__`, can define and use classes, and sees no variable of another node."""
    code = """
from __future__ import annotations
import sys, pickle
from dataclasses import dataclass
@dataclass
class Invoice:
    total: int
def double(n): return [n * f for f in (FACTOR,)][0]
FACTOR = 2
context["main"] = __name__
context["total"] = pickle.loads(pickle.dumps(Invoice(double(21)))).total
leak = "leaked"
sys.path.append("leaked")
"""
    assert await bench.changes(code) == {"main": "__main__", "total": 42}
    seen = "import sys; context['seen'] = ['leak' in globals(), 'Invoice' in globals(), 'leaked' in sys.path]"
    assert await bench.changes(seen) == {"seen": [False] * 3}


async def test_each_node_starts_in_an_empty_folder(bench: Bench) -> None:
    """Each node gets an empty working folder, whatever the node before left in its own."""
    write = "import os; open('file', 'w').write('x'); os.makedirs('a/b'); context['here'] = os.getcwd()"
    await bench.run(write)
    look = "import os; context['found'] = os.listdir(); context['old'] = os.path.exists(context['here'])"
    assert await bench.changes(look) == {"found": [], "old": False}


async def test_printed_text_is_not_part_of_the_result(bench: Bench) -> None:
    """Output of a node and of its programs is kept per stream; JSON in it is only text."""
    code = """
import subprocess, sys, json
print('{"failure": null, "keys": []}')
print("Grüße \\ud800", flush=True)
subprocess.run(["sh", "-c", "echo from below; echo trouble >&2"])
sys.stderr.write("no newline")
context["a"] = 1
"""
    result = await bench.run(code)
    assert result.changes == {"a": b"1"}
    assert result.stdout == '{"failure": null, "keys": []}\nGrüße \\ud800\nfrom below\n'
    assert result.stderr == "trouble\nno newline"


async def test_output_is_bounded(provider: SandboxProvider) -> None:
    """Of long output the beginning and the end are kept; a line says how many bytes were dropped."""
    sandbox = await provider.create(spec(output_limit=1000))
    try:
        bench = Bench(sandbox)
        result = await bench.run(
            "import os\nprint('first')\nos.write(1, b'\\xff' * 5_000_000)\nprint('last')"
        )
        assert result.stdout.startswith("first\n")
        assert result.stdout.endswith("last\n")
        assert "\n… 4999011 bytes left out …\n" in result.stdout
        assert len(result.stdout) < 1100
        exact = await bench.run("print('x' * 999)")
        assert exact.stdout == "x" * 999 + "\n"
    finally:
        await sandbox.kill()


async def test_a_node_reads_nothing_from_stdin(bench: Bench) -> None:
    """A node that reads stdin gets an end of file, not the runner's messages."""
    assert await bench.changes("import sys; context['read'] = sys.stdin.read() + open(0).read()") == {
        "read": ""
    }


async def test_a_decision_answers(bench: Bench) -> None:
    """A decision's text is the branch's label; any other answer counts as true or false, as in Python."""
    for answer, branch, truth in ANSWERS:
        result = await bench.run(f"context['branch_decision'] = {answer}", "decision")
        assert (result.branch, result.branch_truth) == (branch, truth)
        result = await bench.run(answer, "condition")
        assert (result.branch, result.branch_truth, result.changes) == (branch, truth, {})


async def test_a_decision_that_forgets_to_decide_fails(bench: Bench) -> None:
    """A decision that sets no answer fails; an earlier decision's answer does not count."""
    first = await bench.run("context['branch_decision'] = True", "decision")
    assert first.changes == {"branch_decision": b"true"}
    failure = await bench.fail("context['seen'] = 'branch_decision' in context", "decision")
    assert failure.message == 'the decision did not set context["branch_decision"]'
    again = await bench.run(
        "context['seen'] = 'branch_decision' in context\ncontext['branch_decision'] = 1", "decision"
    )
    assert json.loads(again.changes["seen"]) is False
    action = await bench.run("context['still'] = context['branch_decision']")
    assert action.branch is None
    assert action.branch_truth is None


async def test_a_condition_sees_the_context_by_name(bench: Bench) -> None:
    """A condition can use the context's keys as variables, also in comprehensions, and `context`."""
    await bench.load(amount=120, limits=[50, 100], context="shadowed", **{"odd key": 1})
    condition = (
        " all(amount > x for x in limits) and (lambda: amount)() == context['amount'] and context['odd key'] "
    )
    assert (await bench.run(condition, "condition")).branch == "true"
    assert (await bench.run("'high' if amount > 1000 else 'low'", "condition")).branch == "low"


async def test_a_condition_that_cannot_be_answered_fails(bench: Bench) -> None:
    """A condition that is not an expression, or raises, fails the node."""
    assert (await bench.fail("amount > 3", "condition")).type == "NameError"
    assert (await bench.fail("1 +", "condition")).type == "SyntaxError"
    assert (await bench.fail("x = 1", "condition")).type == "SyntaxError"
    assert (await bench.fail("1 / 0", "condition")).type == "ZeroDivisionError"


async def test_an_answer_without_truth_is_a_failure(bench: Bench) -> None:
    """An answer whose `__bool__` raises fails the node with that exception."""
    code = "type('Odd', (), {'__bool__': lambda self: 1 / 0})()"
    assert (await bench.fail(code, "condition")).type == "ZeroDivisionError"


async def test_a_call_is_run_once(bench: Bench) -> None:
    """A repeated call gets the same answer and does not run again."""
    call = bench.call("context['n'] = context.get('n', 0) + 1; print('ran')")
    first = await bench.sandbox.run(call)
    await bench.run("context['other'] = 1")
    assert await bench.sandbox.run(call) == first
    assert await bench.changes("context['m'] = context['n']") == {"m": 1}


async def test_nodes_do_not_see_the_worker_s_environment(
    provider: SandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's environment has no settings or secrets of the worker."""
    names = (
        "DATABASE_URL",
        "NOVA_ENCRYPTION_KEY",
        "PREFECT_API_URL",
        "PREFECT_API_AUTH_STRING",
        "AWS_SECRET_ACCESS_KEY",
    )
    for name in names:
        monkeypatch.setenv(name, "secret-of-the-worker")
    sandbox = await provider.create(spec())
    try:
        found = await Bench(sandbox).run(
            "import os; print(dict(os.environ)); print(open('/proc/self/environ').read())"
        )
        assert "PATH" in found.stdout
        assert "secret-of-the-worker" not in found.stdout
        assert "E2B_API_KEY" not in found.stdout
    finally:
        await sandbox.kill()
