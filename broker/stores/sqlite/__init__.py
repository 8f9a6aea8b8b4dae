"""One SQLite file: records, quotas, holds. Start reading in store.py; writer.py says how a change becomes durable."""
