"""Contexts: which values pass, which are refused with what path, and how they are written and read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.graphs.errors import InvalidValueError
from flows.graphs.json_values import (
    check_value,
    dumps,
    from_fragments,
    join_fragments,
    loads,
    merge,
    size_of,
    to_fragments,
)
from flows.sandbox.runner import values as runner
from tests.graphs.strategies import any_text, json_values, nested

MEGABYTE = 1_000_000
AWKWARD = "NUL \0 quotes ' \" ''' \"\"\" backslash \\ \\n line\nfeed \x1b \u2028 é 🚀 \ud800 \udfff"


def test_awkward_text_passes_unharmed() -> None:
    """What broke the old build: quotes, backslashes, control characters, NUL; and half a surrogate pair."""
    fragments = to_fragments({AWKWARD: AWKWARD})
    assert from_fragments(fragments) == {AWKWARD: AWKWARD}
    assert fragments[AWKWARD].isascii()
    assert b"\0" not in fragments[AWKWARD]


@pytest.mark.parametrize(
    "value", [0, -1, 10**999, -(10**999), 10**1000 - 1, 1.5, 1e308, -0.0, True, None, "", [], {}]
)
def test_plain_values_pass(value: object) -> None:
    """Integers of up to 1,000 digits included; each comes back with its type."""
    check_value(value)
    back = loads(dumps(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        (float("nan"), "invoice", "is NaN or infinite"),
        ([1.0, float("inf")], "invoice[1]", "is NaN or infinite"),
        ({"lines": [{"total": float("-inf")}]}, "invoice.lines[0].total", "is NaN or infinite"),
        (10**1000, "invoice", "is an integer of more than 1000 digits"),
        ([[-(10**1000)]], "invoice[0][0]", "is an integer of more than 1000 digits"),
        ({"pdf": b"%PDF"}, "invoice.pdf", "is of type bytes, which JSON lacks"),
        ({"seen": {1}}, "invoice.seen", "is of type set, which JSON lacks"),
        ({"by number": {1: 2}}, 'invoice["by number"]', "has a key that is of type int"),
        ({"a\n": object}, 'invoice["a\\n"]', "is of type type, which JSON lacks"),
    ],
)
def test_a_value_that_is_refused_is_named_by_its_path(value: object, path: str, problem: str) -> None:
    """In the sentence, and for programs in `path` and `problems`."""
    with pytest.raises(InvalidValueError) as caught:
        to_fragments({"customer": "idom", "invoice": value})
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path} {problem}")
    assert caught.value.problems == [{"field": path, "message": str(caught.value)}]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("NaN", ""),
        ('{"a": [1, Infinity]}', "a[1]"),
        ('{"a": {"b": -Infinity}}', "a.b"),
        ('{"a": 1e999}', "a"),
        ('{"a": -1e999}', "a"),
        ('[1, {"total": ' + "9" * 1001 + "}]", "[1].total"),
        ('{"a": -' + "9" * 5000 + "}", "a"),
        ("[" * 101 + "]" * 101, "[0]" * 13 + "…"),
    ],
)
def test_text_that_is_refused_is_named_by_the_values_path(text: str, path: str) -> None:
    """Reading checks the same bounds as writing: what Python reads but NOVA does not carry."""
    for data in (text, text.encode()):
        with pytest.raises(InvalidValueError) as caught:
            loads(data)
        assert caught.value.path == path


def test_a_name_for_the_whole_stands_before_the_path() -> None:
    """Who reads one value of a context says which it is."""
    with pytest.raises(InvalidValueError, match=r"invoice\.total is NaN"):
        loads('{"total": NaN}', "invoice")
    with pytest.raises(InvalidValueError, match=r"invoice is not JSON.*line 1, column 2"):
        from_fragments({"invoice": b"{"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xfe",
        b'"\xff"',
        b'"\x80abc"',
        "\ufeff1",
        "{'a': 1}",
        '{"a": 1,}',
        "[1] 2",
        '"line\nfeed"',
        '"\\x41"',
        "[" * MEGABYTE,
        '{"a":' * MEGABYTE,
        "[" * MEGABYTE + "]" * MEGABYTE,
        "9" * MEGABYTE,
        "-",
        "1" + "0" * 5000 + "x",
        "0" * 10,
        "tru",
    ],
    ids=lambda data: repr(data[:10]),
)
def test_hostile_text_is_refused_with_one_kind_of_error(data: bytes | str) -> None:
    """No RecursionError, no UnicodeDecodeError, no plain ValueError; and a short sentence."""
    with pytest.raises(InvalidValueError) as caught:
        loads(data)
    assert len(str(caught.value)) < 200


def test_reading_is_otherwise_pythons() -> None:
    """The last of equal keys counts, even after one that would be refused; surrogates and a BOM pass."""
    assert loads('{"a": 1, "a": 2}') == {"a": 2}
    assert loads('{"a": NaN, "a": 2}') == {"a": 2}
    assert loads('"\\ud800"') == "\ud800"
    assert loads('"\\u0000"') == "\0"
    assert loads(b"\xef\xbb\xbf1") == 1
    assert loads(" [1.0, 1, 1e2] ") == [1.0, 1, 100.0]


def test_a_hundred_levels_pass_and_one_more_is_refused() -> None:
    """Lists and dicts count alike; the context that holds the value does not."""
    fragments = to_fragments({"deep": nested(100)})
    assert from_fragments(fragments) == {"deep": nested(100)}
    with pytest.raises(InvalidValueError, match="lies deeper than 100 levels"):
        to_fragments({"deep": nested(101)})
    with pytest.raises(InvalidValueError, match="lies deeper than 100 levels"):
        from_fragments({"deep": json.dumps(nested(101)).encode()})


def test_a_list_in_a_dict_counts_two_levels() -> None:
    """Scalars count none."""
    check_value("x", max_depth=0)
    check_value({"a": [1]}, max_depth=2)
    with pytest.raises(InvalidValueError, match=r"^a lies deeper than 1 levels"):
        check_value({"a": [1]}, max_depth=1)


def test_a_reader_may_allow_for_what_is_wrapped_around_the_values() -> None:
    """A request with a context of its own in it is two levels deeper than the values."""
    request = json.dumps({"initial_context": {"deep": nested(100)}})
    assert loads(request, envelope=2)["initial_context"]["deep"] == nested(100)
    with pytest.raises(InvalidValueError):
        loads(request)


def test_a_value_that_holds_itself_is_refused() -> None:
    """Python can make it, JSON cannot say it."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidValueError):
        check_value(value)
    with pytest.raises(InvalidValueError):
        dumps(value)


def test_writing_does_not_bound_depth() -> None:
    """An answer wraps values that are a hundred levels deep already."""
    assert json.loads(dumps({"context": nested(100)})) == {"context": nested(100)}


@pytest.mark.parametrize(
    "value",
    [float("nan"), {"a": {1, 2}}, [b"x"], 10**5000],
    ids=["NaN", "set", "bytes", "5001 digits"],
)
def test_what_cannot_be_written_is_refused(value: object) -> None:
    """The same error as everywhere, never json's own."""
    with pytest.raises(InvalidValueError):
        dumps(value)


def test_a_key_that_is_no_string_is_refused() -> None:
    """Json would write 1 as "1", and a node would not find its key again."""
    with pytest.raises(InvalidValueError, match="keys are strings"):
        to_fragments({1: "x"})  # type: ignore[dict-item]


def test_fragments_are_joined_without_being_parsed() -> None:
    """Large values are passed on as they are: even one that is no JSON would be."""
    assert join_fragments({}) == b"{}"
    assert join_fragments({'a"\0': b"1", "b": b"not json"}) == b'{"a\\"\\u0000":1,"b":not json}'


def test_changes_are_laid_over_a_context() -> None:
    """What a node set wins; what it deleted, and so did not send, stays; nothing is changed in place."""
    context = {"a": 1, "b": 2}
    assert merge(context, {"b": 3, "c": 4}) == {"a": 1, "b": 3, "c": 4}
    assert context == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "value",
    ["x" * 10 * MEGABYTE, "\0" * MEGABYTE, "é" * MEGABYTE, [["row", 1, 2.5]] * 200_000],
    ids=["text", "NULs", "accents", "rows"],
)
@pytest.mark.timeout(20)
def test_ten_megabytes_are_written_and_read(value: object) -> None:
    """Large values are no special case."""
    assert from_fragments(to_fragments({"pdf": value})) == {"pdf": value}


@given(st.dictionaries(any_text, json_values, max_size=5))
def test_any_json_comes_back_as_it_was(context: dict[str, Any]) -> None:
    """One value at a time, or joined to one text."""
    fragments = to_fragments(context)
    assert from_fragments(fragments) == context
    assert loads(join_fragments(fragments), envelope=1) == context
    assert join_fragments(fragments) == dumps(context)


@given(st.text() | st.binary())
def test_reading_raises_one_kind_of_error_or_none(data: str | bytes) -> None:
    """Random text is refused, or read as Python reads it."""
    try:
        value = loads(data)
    except InvalidValueError:
        return
    assert value == json.loads(data)


@given(json_values, st.integers(0, 6))
def test_reading_and_checking_agree_on_depth(value: object, most: int) -> None:
    """What may be written with a bound may be read with it, and nothing else."""

    def passes(check: Any, *arguments: object) -> bool:
        try:
            check(*arguments, max_depth=most)
        except InvalidValueError:
            return False
        return True

    assert passes(check_value, value) == passes(loads, dumps(value))


@given(any_text, json_values)
def test_the_runner_counts_the_same_bytes(name: str, value: object) -> None:
    """The runner holds a node's changes to the limit that the worker holds the whole context to."""
    text = dumps(value)
    assert size_of(name, text) == runner.size_of(name, text)
