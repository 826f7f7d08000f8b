"""Runs whose worker died, and rows and Prefect that disagree: found and set right."""
