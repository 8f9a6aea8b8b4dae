"""What happens to a call, in the order it happens. Start reading in call.py.

Faces come in through `Pipeline.perform` and nowhere else; nothing here knows a wire format, a file or SQL.
"""
