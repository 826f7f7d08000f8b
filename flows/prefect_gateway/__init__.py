"""Everything that calls Prefect's API."""
