"""Text that Prefect's database accepts."""


def printable(text: str) -> str:
    """Return the text with NUL and lone surrogates replaced, which PostgreSQL refuses in text."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
