"""All that speaks to Prefect's API."""
