"""What things are: frozen values without I/O and without a clock.

Times are integers: milliseconds since the Unix epoch, UTC, in names that end in `_at_ms`; durations end in `_ms` or
`_s`. Integers because they go through JSON, SQL and hashes without changing. Nothing here knows manifests, HTTP or SQL.
"""
