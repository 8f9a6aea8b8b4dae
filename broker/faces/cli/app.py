"""The command line as the library reads it: the table of commands, their help, and what is wrong with a line."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from typer.exceptions import TyperException

from broker import __version__
from broker.faces.cli import COMMANDS
from broker.faces.cli.output import say, tell
from broker.faces.text import safe


class Commands(typer.core.TyperGroup):
    """The table of commands as a group that imports a command when it is asked for it."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 – the group's own signature
        return [name for part in COMMANDS.values() for name in part]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 – as above
        for part in COMMANDS.values():
            if cmd_name in part:
                self.commands[cmd_name] = built_command(cmd_name, part[cmd_name])
                return self.commands[cmd_name]
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            self.commands.update(dict.fromkeys(self.list_commands(ctx)))  # type: ignore[arg-type] – names to suggest from
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 – as above
        for heading, part in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, summary(reference)) for name, reference in part.items()])


def _found(reference: str) -> Any:
    """What is behind "module:Name": a function, or a typer app with verbs."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def summary(reference: str) -> str:
    """The first sentence of a command's help, as the library would show it, which would build the command for it."""
    found = _found(reference)
    callback: Any = getattr(found.registered_callback, "callback", None) if isinstance(found, typer.Typer) else found
    paragraph = inspect.cleandoc(str(callback.__doc__)).partition("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].rstrip(".") + "."


def built_command(name: str, reference: str) -> Any:
    """The command as the library has it."""
    found = _found(reference)
    if isinstance(found, typer.Typer):
        built: Any = typer.main.get_group(found)
        built.name = name
    else:
        single = plain()
        single.command(name)(found)
        built = typer.main.get_command(single)
    for one in (built, *getattr(built, "commands", {}).values()):
        one.help = _with_example(one.help or "")
    return built


def _with_example(text: str) -> str:
    """Help whose example keeps its lines: the mark is the help formatter's, and would be a riddle in a docstring."""
    return text.replace("\n\nExample:", "\n\n\b\nExample:")


def plain(**options: Any) -> typer.Typer:
    """A typer app in the house's manner: plain help, no completion options, errors left to `carried_out`."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        **options,
    )


root = plain(cls=Commands, no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"broker {__version__}")
        raise typer.Exit


@root.callback()
def broker(
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="PATH", help="The settings file, for any command.", show_default=False),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The governed MCP broker between AI agents and everything they can touch.

    Example:
      broker init                  write broker.yaml and a first tool
      broker serve                 serve it
      broker connect claude-code   show how an agent connects
      broker log --follow          watch the calls
    """
    del version  # acted on before any command
    if config is not None:
        os.environ["BROKER_CONFIG"] = str(config)  # every command's own --config reads it


def carried_out(arguments: Sequence[str]) -> int:
    """Read and carry out one command line. Returns the exit code; raises KeyboardInterrupt, and what a command does."""
    try:
        command = typer.main.get_command(root)
        command.help = _with_example(command.help or "")
        code = command.main(list(arguments), prog_name="broker", standalone_mode=False)
    except TyperException as mistake:
        return _usage(mistake)
    except typer.Abort:
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else 0


def _usage(mistake: TyperException) -> int:
    context: Any = getattr(mistake, "ctx", None)
    if type(mistake).__name__ == "NoArgsIsHelpError":
        tell(mistake.format_message())
        return 2
    said = mistake.format_message().replace("Value error, ", "").replace("Input should be", "must be")
    tell(f"Error: {safe(said, lines=True)}")
    if context is not None:
        tell(f"`{context.command_path} --help` shows how it is used.")
    return mistake.exit_code
