"""Several things at the very same moment, in real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable


def together(*works: Callable[[], object]) -> list[object]:
    """Run each in a thread of its own, all at once; what each returned or raised, in their order."""
    barrier = threading.Barrier(len(works))
    results: list[object] = [None] * len(works)

    def one(place: int, work: Callable[[], object]) -> None:
        barrier.wait()
        try:
            results[place] = work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            results[place] = error

    threads = [threading.Thread(target=one, args=(place, work)) for place, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
