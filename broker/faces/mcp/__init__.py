"""MCP for agents, over streamable HTTP, SSE and stdio, for the revisions 2024-11-05 to 2026-07-28.

A request passes `gate` (bytes, headers, identity) and is answered by `direct` when it is a 2026-07-28 `tools/call` that
ends as one JSON object; everything else goes on to the SDK's server in `server`. Both ways build the same `Call`
(`calls`) and meet in the same pipeline. `strict` is the one JSON reader, for HTTP and stdio.

`gate`, `direct`, `strict` and what they use import nothing of `mcp`: a process may answer its first call before the SDK
is loaded. `sdk` is the one module that touches private parts of it.
"""
