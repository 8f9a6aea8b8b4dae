"""The governed MCP broker: one catalog between agents and everything they can touch."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


def _validate_without_plugins() -> None:
    """What is validated here is nothing for plug-ins of pydantic that happen to be installed. Looking for them takes
    longer than all validation of a start, and so do the libraries (mail, archives) that the search is made of."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if os.environ["PYDANTIC_DISABLE_PLUGINS"] in ("__all__", "1", "true"):
        none = ModuleType("pydantic.plugin._loader")
        none.__dict__["get_plugins"] = tuple
        sys.modules.setdefault(none.__name__, none)


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


def _serve_without_commands() -> None:
    """uvicorn imports its command line (click, multiprocessing) with whatever is asked of it. So the package stands
    there with its two classes, and fills itself when something else is asked for; its modules are as they are."""
    found = None if "uvicorn" in sys.modules else find_spec("uvicorn")
    if found is None or found.loader is None:
        return
    package, loader = module_from_spec(found), found.loader

    def fill(name: str) -> Any:
        if name in ("Config", "Server"):
            return getattr(import_module(f"uvicorn.{name.lower()}"), name)
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = fill
    sys.modules["uvicorn"] = package


_validate_without_plugins()
_log_without_rich()
_serve_without_commands()
