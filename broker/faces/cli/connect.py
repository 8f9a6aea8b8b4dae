"""`broker connect`: lead an agent's program to the broker, and its servers behind it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.errors import Problem, SettingsError
from broker.faces.cli import house, options
from broker.faces.cli.config_file import ConfigFile
from broker.faces.cli.output import print_json, print_table, say
from broker.faces.cli.programs import NAME, PROGRAMS, Program, broker_command
from broker.faces.text import safe

if TYPE_CHECKING:
    from broker.faces.cli.takeover import Left, Taken
    from broker.settings import Settings

SECTIONS = ("mcpServers", "servers")


def connect(
    program: Annotated[
        str, typer.Argument(metavar="PROGRAM", show_default=False, help=f"One of: {', '.join(PROGRAMS)}.")
    ] = "",
    write: Annotated[bool, typer.Option("--write", help="Write the program's file, keeping a copy of it.")] = False,
    show: Annotated[bool, typer.Option("--print", help="Only print what would be written (the default).")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take the change back.")] = False,
    stdio: Annotated[bool, typer.Option("--stdio", help="The program starts the broker itself.")] = False,
    http: Annotated[
        bool, typer.Option("--http", help="The program talks to `broker serve` (the default where it can).")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="PATH", help="Another file than the program's usual one.")
    ] = None,
    take_over: Annotated[
        Path | None,
        typer.Option(
            "--take-over",
            metavar="FILE",
            show_default=False,
            help="Put the servers of this mcpServers JSON behind the broker, and the broker in their place.",
        ),
    ] = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Connect an agent's program (Claude Code, IDEs) to the broker.

    Prints the entry for the program's configuration; --write puts it there, --undo takes it back. Without PROGRAM,
    lists the programs it knows and what stands in their files.

    Example:
      broker connect claude-code
      broker connect cursor --write
      broker connect cursor --undo
      broker connect --take-over .mcp.json --write
    """
    _one_of({"--write": write, "--print": show, "--undo": undo})
    _one_of({"--stdio": stdio, "--http": http})
    if take_over is not None:
        _taken_over(take_over, write=write, undo=undo, http=http, config=config, as_json=as_json)
        return
    if not program:
        _list(as_json=as_json)
        return
    known = PROGRAMS.get(program)
    if known is None:
        raise typer.BadParameter(f"there is no program {program!r}; known: {', '.join(PROGRAMS)}", param_hint="PROGRAM")
    target = ConfigFile(file or known.file(), known.section)
    if undo:
        _undo(target)
        return
    entry = _entry(known, stdio=stdio, http=http, config=config)
    if write:
        _write(program, known, target, entry)
    elif as_json:
        print_json(
            {"program": program, "file": str(target.path), "section": known.section, "name": NAME, "entry": entry}
        )
    else:
        _print(program, known, target, entry)


def _one_of(options: dict[str, bool]) -> None:
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other")


def _list(*, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for name, program in PROGRAMS.items():
        path = program.file()
        rows.append({"program": name, "title": program.title, "file": str(path), "state": _state(path, program)})
    if as_json:
        print_json(rows)
        return
    print_table(
        ["PROGRAM", "TITLE", "STATE", "FILE"],
        [[row["program"], row["title"], row["state"], row["file"]] for row in rows],
    )
    say("", "`broker connect PROGRAM` prints its entry; with --write it is put there.")


def _state(path: Path, program: Program) -> str:
    if not path.exists():
        return "no file"
    if program.toml:
        return "edited by hand"
    try:
        return "connected" if NAME in ConfigFile(path, program.section).servers() else "not connected"
    except SettingsError:
        return "not plain JSON"


def _entry(program: Program, *, stdio: bool, http: bool, config: Path | None) -> dict[str, Any]:
    """The program's entry for the broker. Raises BadParameter, SettingsError."""
    if http and program.http is None:
        raise typer.BadParameter(f"{program.title} starts its servers itself: use --stdio", param_hint="--http")
    if stdio or program.http is None:
        return program.stdio(broker_command(_required(config)))
    return program.http(_url(config))


def _required(config: Path | None) -> Path:
    path = house.settings_path(config)
    if path is None:
        message = "there are no settings here; `broker init` writes them, so that the program's broker finds them"
        raise SettingsError([Problem(house.SETTINGS_FILE, 0, 0, message)])
    house.read(path)
    return path


def _url(config: Path | None) -> str:
    settings = house.read(config)
    if not settings.public_url and settings.listen.port == 0:
        path = str(house.settings_path(config) or house.SETTINGS_FILE)
        raise SettingsError(
            [Problem(path, 0, 0, "listen.port is 0, so the address changes at each start; name a port")]
        )
    return house.base_url(settings) + "/mcp"


def _snippet(program: Program, entry: dict[str, Any]) -> str:
    if not program.toml:
        return json.dumps({program.section: {NAME: entry}}, indent=2, ensure_ascii=False)
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    return "\n".join([f"[{program.section}.{NAME}]", *lines])


def _print(name: str, program: Program, target: ConfigFile, entry: dict[str, Any]) -> None:
    writes = "" if program.toml else f" (`broker connect {name} --write` does it, and keeps a copy)"
    say(f"{program.title} reads {safe(str(target.path))}. Put this in it{writes}:", "")
    say(safe(_snippet(program, entry), lines=True), "")
    url = next((str(value) for key, value in entry.items() if key in ("url", "serverUrl", "httpUrl")), "")
    if url and program.also:
        say(f"Or run: {program.also.format(url=safe(url))}")
    if url:
        say("The broker must be running: broker serve. People sign in with an account: broker user add NAME")
    say(program.then)


def _write(name: str, program: Program, target: ConfigFile, entry: dict[str, Any]) -> None:
    if program.toml:
        raise typer.BadParameter(
            f"{program.title}'s file is TOML, which is not rewritten; --print shows the lines to add"
        )
    copy = target.change({NAME: entry})
    say(f"Wrote {safe(str(target.path))}; as it was: {safe(str(copy))}", program.then)
    say(f"`broker connect {name} --undo` takes it back.")


def _undo(target: ConfigFile) -> None:
    undone = target.undo()
    if undone is None:
        say(f"Nothing to take back: {safe(str(target.path))} was not changed by `broker connect`.")
        raise typer.Exit(1)
    say(
        f"{safe(str(undone.path))} is as it was before."
        if undone.exact
        else f"{safe(str(undone.path))}: the broker's entry is gone; what others changed since stays."
    )


# --------------------------------------------------------------------------------------------------------- take over


def _taken_over(file: Path, *, write: bool, undo: bool, http: bool, config: Path | None, as_json: bool) -> None:
    from broker.faces.cli.takeover import convert

    if not file.is_file():
        raise SettingsError([Problem(str(file), 0, 0, "there is no such file")])
    target = ConfigFile(file, _section(file))
    if undo:
        _undo(target)
        say("The manifests made from it stay in place; remove them if they are not wanted.")
        return
    settings = _required(config)
    taken, left = convert(target.servers(), source=str(target.path), reserved=_reserved(house.read(settings)))
    entry = {"type": "http", "url": _url(config)} if http else _as_command(broker_command(settings), target.section)
    if as_json:
        print_json({
            "file": str(target.path),
            "taken": [asdict(one) | {"secrets": sorted(one.secrets)} for one in taken],
            "left": [asdict(one) for one in left],
            "entry": entry,
        })  # fmt: skip
    if write and taken:
        _keep(taken, house.read(settings))
        copy = target.change({NAME: entry}, drop=frozenset(one.name for one in taken))
    if as_json:
        return
    _tell_taken(taken, left, written=write)
    if not taken:
        say("Nothing to take over.")
        raise typer.Exit(1)
    if write:
        say(f"Wrote {safe(str(target.path))}; as it was: {safe(str(copy))}")  # pyright: ignore[reportPossiblyUnboundVariable] – written above under the same condition
        say("Next: `broker check --live` starts each server once; `broker tools` lists what they offer.")
        say(f"`broker connect --take-over {safe(str(file))} --undo` takes the change of that file back.")
    else:
        say("", "Nothing was written; --write does it.")


def _reserved(settings: Settings) -> set[str]:
    """Names of backends that stand in other files than the one we would write: theirs to keep.

    Raises ManifestError when the manifests there are not good: nothing is added to what is not understood.
    """
    from broker.assembly import backend_kinds
    from broker.catalog.reader import read_manifests

    folder = settings.directory / settings.manifests
    if not folder.is_dir():
        return set()
    names = {declared.spec.name for declared in read_manifests(folder, backend_kinds()).backends}
    return {name for name in names if not (folder / f"{name}.yaml").exists()}


def _as_command(argv: list[str], section: str) -> dict[str, Any]:
    typed = {"type": "stdio"} if section == "servers" else {}  # VS Code's section, which wants the type
    return {**typed, "command": argv[0], "args": argv[1:]}


def _section(file: Path) -> str:
    document = ConfigFile(file, SECTIONS[0]).read()
    found = next((section for section in SECTIONS if isinstance(document.get(section), dict)), None)
    if found is None:
        raise SettingsError([Problem(str(file), 0, 0, f"has neither of {' and '.join(SECTIONS)}: it names no servers")])
    return found


def _keep(taken: list[Taken], settings: Settings) -> None:
    """Write manifests and secrets, judge them as the broker will, and leave nothing behind when they are not good."""
    from broker.assembly import backend_kinds
    from broker.catalog.reader import read_manifests

    manifests: Path = settings.directory / settings.manifests
    secrets: Path = settings.directory / "secrets"
    files = {manifests / f"{one.backend}.yaml": one.text for one in taken}
    files |= {secrets / name: value for one in taken for name, value in one.secrets.items()}
    fresh = {path: text for path, text in files.items() if not (path.exists() and path.read_text("utf-8") == text)}
    there = [path for path in fresh if path.exists()]
    if there:
        raise SettingsError(
            [Problem(str(path), 0, 0, "is there already and says something else; move it away") for path in there]
        )
    written: list[Path] = []
    try:
        for path, text in fresh.items():
            path.parent.mkdir(mode=0o700 if path.parent == secrets else 0o777, parents=True, exist_ok=True)
            written.append(path)
            path.touch(mode=0o600 if path.parent == secrets else 0o644)
            path.write_text(text, "utf-8")
        read_manifests(manifests, backend_kinds())
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _tell_taken(taken: list[Taken], left: list[Left], *, written: bool) -> None:
    for one in taken:
        say(f"{'Took over' if written else 'Would take over'} {safe(one.name)} as tool_manifests/{one.backend}.yaml")
        for name in one.secrets:
            say(f"  its secret goes to secrets/{safe(name)} (mode 0600)")
        for note in one.notes:
            say(f"  {safe(note)}")
        if not written:
            say(*(f"  | {safe(line)}" for line in one.text.rstrip().splitlines()))
    for one in left:
        say(f"Left {safe(one.name)} where it is: {safe(one.why)}")
