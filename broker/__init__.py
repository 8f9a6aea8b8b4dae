"""The governed MCP broker: one catalog between agents and everything they can touch."""

__version__ = "0.1.0"
