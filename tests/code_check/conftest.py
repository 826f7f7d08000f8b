"""The child processes of this one that compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil
import pytest

from flows.code_check import compiler
from tests.servers import living


@pytest.fixture
def compilers() -> Callable[[], Sequence[psutil.Process]]:
    """Find the processes that compile for this one at this moment."""

    def find() -> list[psutil.Process]:
        children = living(psutil.Process().children())
        return [child for child in children if compiler.__file__ in child.cmdline()]

    return find
