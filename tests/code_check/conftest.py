"""A fixture that finds this process's compiler processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil
import pytest

from flows.code_check import compiler
from tests.servers import living


@pytest.fixture
def compilers() -> Callable[[], Sequence[psutil.Process]]:
    """The function that returns this process's running compiler processes."""

    def find() -> list[psutil.Process]:
        children = living(psutil.Process().children())
        return [child for child in children if compiler.__file__ in child.cmdline()]

    return find
