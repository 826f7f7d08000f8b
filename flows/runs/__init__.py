"""One execution put together from the store, the engine and the vault; no Prefect here."""
