"""An order service as a team would have it: an HTTP API with its own database, its own credential and its own log.

It knows nothing of the broker and imports nothing of it. `book` keeps the orders, `app` speaks HTTP, `__main__` serves.
"""
