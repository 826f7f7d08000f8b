"""Finds runs whose worker died, and rows that disagree with Prefect, and sets them right."""
