"""A stdio server with stand-ins behind it, to be started as a child by tests of real stdio clients."""

from __future__ import annotations

import anyio

from broker.model.answer import Answer
from broker.model.call import Call
from broker.model.principal import Principal
from tests.serving import Keys, Tools, agents_with, settings_with


class Chatty(Tools):
    async def perform(self, call: Call) -> Answer:
        print("a stray print")  # must not get onto the wire
        return await super().perform(call)


async def main() -> None:
    tools = Chatty()
    agents = agents_with(tools, Keys(), settings_with(limits={"body_bytes": 65_536}), lambda: "", [])
    await agents.serve_stdio(Principal(agent="launched", issuer="settings"))


if __name__ == "__main__":
    anyio.run(main)
