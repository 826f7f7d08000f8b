"""Text as Prefect's database takes it."""


def printable(text: str) -> str:
    """Replace NUL and lone surrogates, which PostgreSQL refuses in text."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
