"""Worker and nodes exchange any JSON value unchanged, and nothing else."""

from __future__ import annotations

import itertools
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sandbox.conftest import Bench, text

ANY_TEXT = st.text(st.characters(exclude_categories=()))
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**1000) + 1, 10**1000 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=20,
)
TURNS = itertools.count()
ODD = [
    "\x00",
    "\ud800",
    "'''\"\"\"\\",
    "\\u0000\\n\r\n\t\x1b",
    "Ünïcödé €😀",
    10**999,
    -(10**999),
    1e308,
    5e-324,
    -0.0,
    {"": {"\x00": [None, True, False]}},
]

LACKING = [
    ("context['total'] = float('nan')", 'context["total"] is NaN, which JSON does not have'),
    (
        "context['t'] = {'a': [1, float('-inf')]}",
        'context["t"]["a"][1] is -Infinity, which JSON does not',
    ),
    ("context['b'] = b'x'", 'context["b"] is of type bytes'),
    ("context['s'] = [{1}]", 'context["s"][0] is of type set'),
    ("context['o'] = {'x': object()}", 'context["o"]["x"] is of type object'),
    ("context['k'] = {(1, 2): 3}", 'context["k"] has a key of type tuple'),
    ("context[(1, 2)] = 3", "context has a key of type tuple"),
    ("context['i'] = [10 ** 1000]", 'context["i"][0] is an integer of more than 1000 digits'),
    ("context['i'] = -10 ** 5000", 'context["i"] is an integer of more than 1000 digits'),
    ("a = []; a.append(a); context['loop'] = a", 'context["loop"][0] contains itself'),
    ("context = 5", "context was replaced by a value of type int"),
    ("del context", "context was deleted"),
]


def nested(depth: int) -> object:
    """Return a value with this many nested lists."""
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=ANY_TEXT, value=ANY_JSON)
async def test_any_json_value_crosses_there_and_back(bench: Bench, name: str, value: object) -> None:
    """A node gets any JSON value under any key, and returns it unchanged."""
    turn = next(TURNS)  # else a repeated example changes nothing
    await bench.sandbox.load({"v": text(value), "name": text(name), "turn": text(turn)})
    result = await bench.run("context[context['name']] = [context['v'], context['turn']]")
    assert result.changes[json.loads(text(name))] == text([value, turn])


async def test_odd_values_cross(bench: Bench) -> None:
    """NUL, surrogates, quotes, backslashes, long integers and extreme floats arrive unchanged."""
    await bench.load(odd=ODD)
    result = await bench.run("context['back'] = list(context['odd'])")
    assert result.changes == {"back": text(ODD)}


async def test_ten_megabytes_cross(bench: Bench) -> None:
    """A text and a tree of 10 MB are returned when a node changed them, and only then."""
    tree = [{"n": i, "v": ["x" * 20]} for i in range(200_000)]
    await bench.load(text="x" * 10_000_000, tree=tree)
    assert (await bench.run("context['n'] = len(context['text'])")).changes == {"n": b"10000000"}
    result = await bench.run("context['text'] += 'y'; context['tree'][-1]['n'] = -1")
    assert result.changes["text"] == text("x" * 10_000_000 + "y")
    tree[-1]["n"] = -1
    assert result.changes["tree"] == text(tree)


async def test_only_changed_keys_come_back(bench: Bench) -> None:
    """Only keys that were set, changed or mutated come back, not those read or set to the same."""
    await bench.load(read=[1], same={"a": 1}, number=1, grown=[1], deep={"a": [{}]})
    code = """
context["read"][0]
context["same"] = {"a": 1}
context["number"] = 2
context["grown"].append(2)
context["deep"]["a"][0]["b"] = None
context["new"] = "n"
"""
    assert await bench.changes(code) == {
        "number": 2,
        "grown": [1, 2],
        "deep": {"a": [{"b": None}]},
        "new": "n",
    }


async def test_equal_is_not_the_same(bench: Bench) -> None:
    """A value that is equal in Python but different in JSON is a change."""
    await bench.load(one=1, number=1, zero=0.0, same="1")
    result = await bench.run("context.update(one=True, number=1.0, zero=-0.0, same='1')")
    assert result.changes == {"one": b"true", "number": b"1.0", "zero": b"-0.0"}


async def test_a_deleted_key_stays(bench: Bench) -> None:
    """A deleted key is not reported, and the next node sees it again."""
    await bench.load(kept=1)
    assert (await bench.run("del context['kept']")).changes == {}
    assert await bench.changes("context['seen'] = context['kept']") == {"seen": 1}


async def test_nodes_build_on_each_other(bench: Bench) -> None:
    """A node sees the changes of the nodes before it."""
    for _ in range(3):
        await bench.run("context['n'] = context.get('n', 0) + 1")
    assert await bench.changes("context['last'] = context['n']") == {"last": 3}


async def test_python_values_become_json_as_json_writes_them(bench: Bench) -> None:
    """Tuples become lists and numeric keys become text, as in `json`."""
    got = await bench.changes("context['v'] = ({1: 'a', None: 'b', True: 'c', 1.5: 'd'}, ()); context[2] = 3")
    assert got == {"v": [{"1": "c", "null": "b", "1.5": "d"}, []], "2": 3}


async def test_what_json_lacks_is_named(bench: Bench) -> None:
    """A value that is not JSON fails the node; the failure names the key, and no change is kept."""
    for code, message in LACKING:
        failure = await bench.fail("context['spoiled'] = 1\n" + code)
        assert failure.type == "InvalidValue"
        assert message in failure.message


async def test_a_new_dict_as_the_context_is_accepted(bench: Bench) -> None:
    """A node may replace `context` with a new dict."""
    await bench.load(old=1)
    assert await bench.changes("context = {'new': 2}") == {"new": 2}
    assert await bench.changes("context['sum'] = context['old'] + context['new']") == {"sum": 3}


async def test_a_hundred_levels_and_no_more(bench: Bench) -> None:
    """A value with 100 levels is accepted; one more fails and names the key."""
    await bench.load(deep=nested(99))
    assert (await bench.run("context['deeper'] = [context['deep']]")).changes == {"deeper": text(nested(100))}
    failure = await bench.fail("context['spoiled'] = [context['deeper']]")
    assert failure.message == 'context["spoiled"] is nested deeper than 100 levels'
    failure = await bench.fail("a = []\nfor _ in range(100_000): a = [a]\ncontext['spoiled'] = a")
    assert 'context["spoiled"]' in failure.message


async def test_a_thousand_digits_and_long_texts_of_digits(bench: Bench) -> None:
    """An integer of 1000 digits is accepted, and so is a longer text of digits."""
    values = {"number": 10**1000 - 1, "text": "7" * 5000, "list": ["7" * 5000, 10**999]}
    await bench.load(**values)
    result = await bench.run("for k in list(context): context[k + '2'] = [context[k]]")
    assert result.changes == {f"{name}2": text([value]) for name, value in values.items()}
