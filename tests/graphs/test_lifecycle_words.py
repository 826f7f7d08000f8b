"""The words of the lifecycle: each has a sentence that explains it."""

from __future__ import annotations

from enum import StrEnum

import pytest

from flows.graphs import lifecycle
from flows.graphs.flow_run_state import PrefectState
from flows.graphs.lifecycle import (
    LIVE,
    REOPENABLE,
    Action,
    Asker,
    Ending,
    ErrorKind,
    Named,
    PrefectCase,
    RowCase,
    Status,
    StepStatus,
)

ENUMS = [each for each in vars(lifecycle).values() if isinstance(each, type) and issubclass(each, StrEnum)]


def test_every_enum_is_one_of_words_with_sentences() -> None:
    """Statuses, kinds, ways of ending, askers, cases, actions; `PrefectState` has Prefect's own words."""
    ours = {each for each in ENUMS if issubclass(each, Named)} - {Named}
    assert ours == {
        Status,
        StepStatus,
        ErrorKind,
        Ending,
        Asker,
        RowCase,
        PrefectCase,
        Action,
    }
    assert set(ENUMS) - ours <= {Named, StrEnum, PrefectState}


@pytest.mark.parametrize("words", [each for each in ENUMS if issubclass(each, Named)])
def test_every_member_has_its_sentence(words: type[Named]) -> None:
    """One that begins with a capital letter, ends with a full stop, and is no other member's."""
    sentences = [member.sentence for member in words]
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    assert len(set(sentences)) == len(sentences)
    assert [str(member) for member in words] == [member.value for member in words]


def test_a_run_is_open_or_closed() -> None:
    """And of the closed ones all but the completed may be opened again."""
    assert set(LIVE) | set(REOPENABLE) | {Status.COMPLETED} == set(Status)
    assert not set(LIVE) & set(REOPENABLE)
