"""Programs that overload or crash Python's compiler."""

from __future__ import annotations


def nested_finally(depth: int) -> str:
    """Return nested `finally` blocks; each level doubles the compiler's work, since it copies the block.

    On Python 3.11, 14 levels take 0.25 s and 50 MB; 19 levels (700 bytes) take 15 s and 1.5 GB.
    """
    levels = "".join(f"{' ' * level}try: pass\n{' ' * level}finally:\n" for level in range(depth))
    return f"{levels}{' ' * depth}pass\n"


MANY_FORS = "[x " + "for x in y " * 60_000 + "]"
"""660 KB that crash the process that compiles them."""
MANY_PARTS = "import " + ".".join(["a"] * 60_000)
"""120 KB that need 4 GB to compile."""
