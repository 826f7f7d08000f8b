"""The HTTP facade: the contract of the old build."""
