"""The version of NOVA."""

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("nova-prefect")
    except PackageNotFoundError:  # run from a folder that was not installed
        return "0.0.0"


VERSION = _installed()
