"""Programs that are too much for Python's compiler, or a lot of work."""

from __future__ import annotations


def nested_finally(depth: int) -> str:
    """Return what costs the compiler twice as much with each level: it writes what a `finally` holds twice.

    On Python 3.11 14 levels take a quarter of a second and 50 MB, 19 (700 bytes) fifteen seconds and 1.5 GB.
    """
    levels = "".join(f"{' ' * level}try: pass\n{' ' * level}finally:\n" for level in range(depth))
    return f"{levels}{' ' * depth}pass\n"


MANY_FORS = "[x " + "for x in y " * 60_000 + "]"
"""660 KB, which crash a process that compiles them."""
MANY_PARTS = "import " + ".".join(["a"] * 60_000)
"""120 KB, for which the compiler wants four gigabytes."""
