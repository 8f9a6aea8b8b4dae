"""Log lines on stderr: JSON for programs, one plain line for a person at a terminal. stdout belongs to the answer."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog

from broker.faces.text import safe, safe_json


def to_stderr(level: str) -> None:
    """Send structlog and the libraries' own logging to stderr from this level on."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _line if sys.stderr.isatty() else _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # as it is then: whoever has us may replace it
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Foreign())
    # A library's warnings are about its own insides; operators asked for ours.
    logging.basicConfig(
        level=max(threshold, logging.ERROR) if threshold > logging.INFO else threshold, handlers=[handler], force=True
    )


def _json(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> str:
    return safe_json(orjson.dumps(dict(event), default=str).decode())


def _line(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> str:
    at, level, what = event.pop("timestamp"), event.pop("level"), event.pop("event")
    trace = event.pop("exception", "")
    facts = " ".join(f"{key}={value}" for key, value in event.items())
    line = safe(f"{at} {level}: {what} {facts}".rstrip())
    return f"{line}\n{safe(trace, lines=True)}" if trace else line


class _Foreign(logging.Formatter):
    """Records of libraries, in the same two forms."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "event": record.getMessage(),
            "logger": record.name,
            "level": record.levelname.lower(),
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return _line(None, "", event) if sys.stderr.isatty() else _json(None, "", event)
