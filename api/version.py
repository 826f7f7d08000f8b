"""The version of NOVA."""

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("nova-prefect")
    except PackageNotFoundError:  # it runs from a folder that is not installed
        return "0.0.0"


VERSION = _installed()
