"""Where records, quotas and holds live. A new engine is one row here and passes tests/contracts/test_stores.py."""

STORES: dict[str, str] = {"sqlite": "broker.stores.sqlite.store:SqliteStore"}
