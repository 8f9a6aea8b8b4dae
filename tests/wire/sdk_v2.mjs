// The TypeScript SDK of the second line: the same, in the handshake era or (WIRE_ERA=auto) the newest both sides speak.
// Environment: as in sdk_v1.mjs, and WIRE_ERA legacy | auto.
import { Client, SSEClientTransport, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const { WIRE_TRANSPORT, WIRE_URL, WIRE_TOKEN, WIRE_COMMAND, WIRE_TOOL, WIRE_ARGUMENTS, WIRE_ERA } = process.env;
const headers = { Authorization: `Bearer ${WIRE_TOKEN}` };

function transport() {
  if (WIRE_TRANSPORT === "http") return new StreamableHTTPClientTransport(new URL(WIRE_URL), { requestInit: { headers } });
  if (WIRE_TRANSPORT === "sse") return new SSEClientTransport(new URL(WIRE_URL), { requestInit: { headers } });
  const [command, ...args] = JSON.parse(WIRE_COMMAND);
  return new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" });
}

const options = WIRE_ERA === "auto" ? { versionNegotiation: { mode: "auto" } } : {};
const client = new Client({ name: "wire-sdk-v2", version: "1" }, options);
await client.connect(transport());
const { tools } = await client.listTools();
const result = await client.callTool({ name: WIRE_TOOL, arguments: JSON.parse(WIRE_ARGUMENTS) });
const version = client.getNegotiatedProtocolVersion?.() ?? "";
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), result, version }));
await client.close();
