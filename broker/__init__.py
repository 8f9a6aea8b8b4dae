"""The governed MCP broker: one catalog between agents and everything they can touch."""

import sys

__version__ = "0.1.0"


def _log_without_rich() -> None:
    """structlog imports rich wherever that is installed, for pictures of tracebacks that show the value of every local
    variable. We never want those, and the import is a tenth of a broker's memory. So it is looked for once in vain.
    """
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]  # what makes an import fail, by the language reference
        try:
            import structlog as structlog
        finally:
            del sys.modules["rich"]


_log_without_rich()
