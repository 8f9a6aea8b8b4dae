"""The REST API: holds, calls, quotas and the catalog for programs of people. Same rules as the console (office).

What must not live here: who may see or decide what (office, desk), what a call is (model).
"""
