"""One settings file: precedence, references, every problem at once, and a template that cannot drift."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.errors import SettingsError
from broker.settings import Settings
from broker.settings_file import read_settings, rows, template

DEFAULTS = Settings().model_dump()


def settings_of(tmp_path: Path, text: str, **environ: str) -> Settings:
    (tmp_path / "broker.yaml").write_text(text)
    return read_settings(tmp_path / "broker.yaml", environ)


def problems_with(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as error:
        settings_of(tmp_path, text, **environ)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in error.value.problems]


def test_without_a_file_or_with_an_empty_one_everything_has_its_default(tmp_path: Path) -> None:
    assert read_settings(None, {}).model_dump() == DEFAULTS
    assert read_settings(None, {}).directory == Path.cwd()
    for text in ("", "{}", "# nothing\n"):
        assert settings_of(tmp_path, text).model_dump() == DEFAULTS


def test_the_file_overrides_defaults_and_the_environment_overrides_the_file(tmp_path: Path) -> None:
    text = "listen: {port: 1, host: 127.0.0.2}\nallowed_hosts: [a]\ndatabase: x.db\n"
    found = settings_of(
        tmp_path,
        text,
        BROKER_LISTEN__PORT="9",
        BROKER_STDIO__SCOPES="[a, b]",
        BROKER_LOG_LEVEL="info",
        BROKER_STDIO__USER="no",
    )
    assert (found.listen.host, found.listen.port) == ("127.0.0.2", 9)
    assert found.allowed_hosts == ["a"]
    assert found.stdio.scopes == ["a", "b"]
    assert (found.log_level, found.stdio.user) == ("info", "no")
    assert found.database == Path("x.db")
    assert found.directory == tmp_path


def test_every_problem_is_told_at_once_with_its_place_and_the_nearest_key(tmp_path: Path) -> None:
    text = "listn: {port: 1}\nhold: {wait_s: x, foo: 1}\nlog_level: warn\nwatch: no\n"
    text += "auth: {issuers: [{isuer: x}]}\nwatch: true\n"
    assert problems_with(tmp_path, text) == [
        "broker.yaml:1:1: unknown key 'listn'; did you mean 'listen'?",
        "broker.yaml:2:16: hold.wait_s: must be a number",
        "broker.yaml:2:19: hold: unknown key 'foo'; known: wait_s, expires_s, reviewer_scope, open_per_agent",
        "broker.yaml:3:12: log_level: must be debug, info, warning or error, not 'warn'; did you mean 'warning'?",
        "broker.yaml:4:8: watch: must be true or false",
        "broker.yaml:5:18: auth.issuers[0].issuer: missing key (The issuer exactly as in the tokens' `iss` (RFC 8414))",
        "broker.yaml:5:19: auth.issuers[0]: unknown key 'isuer'; did you mean 'issuer'?",
        "broker.yaml:6:1: duplicate key 'watch'; it stands first in line 4",
    ]


def test_nothing_is_coerced(tmp_path: Path) -> None:
    assert problems_with(tmp_path, "listen: {port: '8750'}") == [
        "broker.yaml:1:16: listen.port: must be a whole number"
    ]
    assert problems_with(tmp_path, "watch: 1") == ["broker.yaml:1:8: watch: must be true or false"]


@pytest.mark.parametrize("text", ["- a", "just text", "a: 1\n---\nb: 2"])
def test_a_settings_file_is_one_mapping(tmp_path: Path, text: str) -> None:
    assert problems_with(tmp_path, text)


def test_variables_that_name_nothing_are_told_and_those_of_a_platform_are_not(tmp_path: Path) -> None:
    wrong = problems_with(
        tmp_path,
        "",
        BROKER_LISTEN__PROT="1",
        BROKER_DATABSE="x",
        BROKER_HOLD__WAIT_S="abc",
        BROKER_LISTEN__PORT="[1",
        BROKER_PORT="tcp://10.0.0.1:8750",
        BROKER_SERVICE_HOST="10.0.0.1",
        BROKER_CONFIG="x",
    )
    assert [told.split(";")[0].split(", but")[0] for told in wrong] == [
        "environment: BROKER_DATABSE: no such setting",
        "environment: BROKER_HOLD__WAIT_S: wait_s: must be a number",
        "environment: BROKER_LISTEN__PORT: not valid YAML: expected ',' or ']'",
        "environment: BROKER_LISTEN__PROT: no such setting",
    ]
    assert "did you mean 'BROKER_LISTEN__PORT'" in wrong[3]


def test_references_are_resolved_and_a_missing_one_is_a_problem_without_the_value(tmp_path: Path) -> None:
    (tmp_path / "url.txt").write_text("https://b.example\n")
    found = settings_of(tmp_path, "public_url: ${file:url.txt}\nstdio: {agent: 'a-${env:WHO}'}", WHO="bot")
    assert (found.public_url, found.stdio.agent) == ("https://b.example", "a-bot")
    assert problems_with(
        tmp_path, "public_url: ${env:NOPE}\nstdio:\n  scopes: [x, '${file:no.txt}', '${vault:x}']"
    ) == [
        "broker.yaml:1:13: ${env:NOPE}: the environment variable NOPE is not set",
        "broker.yaml:3:15: ${file:no.txt}: No such file or directory",
        "broker.yaml:3:33: ${vault:x} is not a reference; write ${env:NAME} or ${file:PATH}",
    ]


def test_the_template_is_valid_as_it_is_and_with_every_key_in_force(tmp_path: Path) -> None:
    assert settings_of(tmp_path, template()).model_dump() == DEFAULTS
    in_force = "\n".join(re.sub(r"^# (?=\s*[a-z_]+:)", "", line) for line in template().splitlines())
    found = settings_of(tmp_path, in_force)
    assert found.model_dump() == DEFAULTS
    assert found.model_fields_set == set(Settings.model_fields)


def test_every_setting_has_a_sentence_a_type_and_its_default() -> None:
    listed = rows()
    assert len({row.key for row in listed}) == len(listed)
    for row in listed:
        assert row.description.endswith("."), row
        assert row.kind, row
        assert row.default, row
    port = next(row for row in listed if row.key == "listen.port")
    assert (port.default, port.variable) == ("8750", "BROKER_LISTEN__PORT")
    assert next(row for row in listed if row.key == "auth.issuers[].issuer").default == "required"


@pytest.mark.parametrize(
    ("console", "told"),
    [
        ("{issuer: https://b.example, client_id: desk}", "names none of auth.issuers"),
        ("{issuer: https://a.example}", "client_id is needed"),
    ],
)
def test_the_consoles_issuer_is_one_that_is_believed_and_knows_us(console: str, told: str, tmp_path: Path) -> None:
    (problem,) = problems_with(tmp_path, f"auth: {{issuers: [{{issuer: https://a.example}}]}}\nconsole: {console}\n")
    assert problem.startswith("broker.yaml:2:")
    assert told in problem


@pytest.mark.parametrize("issuer", ["http://login.example.com", "login.example.com", "file:///keys", ""])
def test_an_issuer_whose_keys_would_come_in_clear_is_refused_with_the_settings(issuer: str, tmp_path: Path) -> None:
    settings = tmp_path / "broker.yaml"
    settings.write_text(f"auth:\n  issuers:\n    - issuer: '{issuer}'\n")
    with pytest.raises(SettingsError, match=r":3:15: issuer must be an https URL"):
        read_settings(settings, {})
