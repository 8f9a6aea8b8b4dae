"""The SDK's private parts that are touched, and the facts that are relied upon: red when an upgrade moves one."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mcp_types
import mcp_types.version
import pytest
from mcp.server.auth.middleware.bearer_auth import authorization_context
from mcp.server.connection import Connection
from mcp.server.session import ServerSession
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared import inbound

import broker.faces.mcp as face
from broker.faces.mcp import agreement, replies, strict
from broker.faces.mcp.headers import decoded
from broker.faces.mcp.sdk import BrokerServer, open_sessions, owner, silence
from broker.model import task
from broker.model.principal import Principal

FOLDER = Path(face.__path__[0])
WITHOUT_SDK = ("gate", "strict", "direct", "bodies", "standing", "agreement", "headers", "request", "replies", "calls")


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("mcp") == "2.3.0", "read broker/faces/mcp/sdk.py again, then change this line"


def test_only_one_module_touches_private_parts() -> None:
    touching = {
        path.name
        for path in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    assert touching == {"sdk.py"}


def test_no_private_module_is_imported() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mcp"):
                assert "._" not in f".{node.module}", path


def test_the_session_still_keeps_its_connection_there() -> None:
    connection = Connection.from_envelope("2026-07-28", None, None)
    session = ServerSession(None, connection)  # type: ignore[arg-type]
    assert session._connection is connection  # pyright: ignore[reportPrivateUsage]  # the touch itself
    assert connection.exit_stack
    assert callable(connection.send_tool_list_changed)
    assert callable(connection.send_resource_list_changed)
    assert callable(connection.send_prompt_list_changed)


def test_handshake_era_sessions_hear_that_lists_change() -> None:
    async def handler(*_: Any) -> None: ...

    server = BrokerServer("x")
    for method in ("tools/list", "resources/list", "prompts/list"):
        server.add_request_handler(method, mcp_types.PaginatedRequestParams, handler)
    said = server.create_initialization_options().capabilities
    assert said.tools is not None
    assert said.resources is not None
    assert said.prompts is not None
    assert (said.tools.list_changed, said.resources.list_changed, said.prompts.list_changed) == (True, True, True)


def test_sessions_are_bound_by_the_principal_key_and_by_nothing_else() -> None:
    ann, again, bob = (
        owner(Principal(agent="ann", scopes=frozenset({"a"}), credential_id="1")),
        owner(Principal(agent="ann", scopes=frozenset({"b"}), credential_id="2")),
        owner(Principal(agent="bob")),
    )
    assert authorization_context(ann) == authorization_context(again)
    assert authorization_context(ann) != authorization_context(bob)


def test_constants_are_those_of_the_sdk() -> None:
    assert agreement.MODERN == mcp_types.version.MODERN_PROTOCOL_VERSIONS
    assert agreement.HANDSHAKE == mcp_types.version.HANDSHAKE_PROTOCOL_VERSIONS
    of_tasks = dict.fromkeys(task.METHODS, "taskId")  # an extension's, which the SDK leaves to whoever serves it
    assert dict(agreement.NAMED) == dict(inbound.NAME_BEARING_METHODS) | of_tasks
    assert dict(inbound.ERROR_CODE_HTTP_STATUS) == replies.HTTP_STATUS
    assert agreement.VERSION_KEY == mcp_types.PROTOCOL_VERSION_META_KEY
    assert agreement.CAPABILITIES_KEY == mcp_types.CLIENT_CAPABILITIES_META_KEY
    assert agreement.CLIENT_KEY == mcp_types.CLIENT_INFO_META_KEY
    assert agreement.SERVER_KEY == mcp_types.SERVER_INFO_META_KEY
    assert agreement.LOG_LEVEL_KEY == mcp_types.LOG_LEVEL_META_KEY
    assert (strict.PARSE_ERROR, strict.INVALID_REQUEST) == (mcp_types.PARSE_ERROR, mcp_types.INVALID_REQUEST)


@pytest.mark.parametrize("text", ["echo", " x", "é", "=?base64?eA==?=", "a b", "\t", ""])
def test_names_are_unwrapped_as_the_sdk_wraps_them(text: str) -> None:
    header = inbound.encode_header_value(text)
    assert decoded(header.encode("latin-1")) == inbound.decode_header_value(header) == text


def test_the_classes_built_upon_still_take_what_they_are_given() -> None:
    manager = StreamableHTTPSessionManager(
        app=BrokerServer("x"), session_idle_timeout=1, max_sessions=1, max_request_body_size=1024
    )
    assert open_sessions(manager) == 0
    SseServerTransport("/messages/", max_request_body_size=1024)


class Root(logging.Handler):
    """What reaches the handlers of the root logger, which is where ours are."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


def test_the_logs_of_the_sdk_quote_nothing() -> None:
    silence()
    silence()
    root = Root()
    logging.getLogger().addHandler(root)
    try:
        logger = logging.getLogger("mcp.server.sse")
        logger.debug("Received JSON: %s", "hunter2")
        try:
            raise ValueError("hunter2")
        except ValueError:
            logger.exception("Failed to parse %s", "hunter2")
    finally:
        logging.getLogger().removeHandler(root)
    assert "hunter2" not in root.text
    assert root.text.count("Failed to parse %s (ValueError)") == 1


def test_what_answers_first_does_not_load_the_sdk() -> None:
    modules = ", ".join(f"broker.faces.mcp.{name}" for name in WITHOUT_SDK)
    code = f"import sys, {modules}; sys.exit(any(m.split('.')[0] in ('mcp', 'mcp_types') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
