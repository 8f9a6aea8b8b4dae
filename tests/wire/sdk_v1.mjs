// The TypeScript SDK of the first line: list the tools and call one, over the transport it is told.
// Environment: WIRE_TRANSPORT http | sse | stdio, WIRE_URL, WIRE_TOKEN, WIRE_COMMAND (JSON array), WIRE_TOOL, WIRE_ARGUMENTS.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { WIRE_TRANSPORT, WIRE_URL, WIRE_TOKEN, WIRE_COMMAND, WIRE_TOOL, WIRE_ARGUMENTS } = process.env;
const headers = { Authorization: `Bearer ${WIRE_TOKEN}` };

function transport() {
  if (WIRE_TRANSPORT === "http") return new StreamableHTTPClientTransport(new URL(WIRE_URL), { requestInit: { headers } });
  if (WIRE_TRANSPORT === "sse") return new SSEClientTransport(new URL(WIRE_URL), { requestInit: { headers } });
  const [command, ...args] = JSON.parse(WIRE_COMMAND);
  return new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" });
}

const client = new Client({ name: "wire-sdk-v1", version: "1" });
await client.connect(transport());
const { tools } = await client.listTools();
const result = await client.callTool({ name: WIRE_TOOL, arguments: JSON.parse(WIRE_ARGUMENTS) });
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), result }));
await client.close();
