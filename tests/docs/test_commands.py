"""Every command in the docs is one that the program takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import typer

from rayvisor.runtime.cli.app import app, register_all
from tests.docs.pages import PAGES, ROOT, commands, mentions

if TYPE_CHECKING:
    from pathlib import Path

PLACEHOLDERS = {"COMMAND", "...", "N"}


@pytest.fixture(scope="module", name="program")
def _program() -> Any:  # noqa: ANN401 - typer brings a click of its own
    register_all()
    return typer.main.get_command(app)


def parse(program: Any, words: list[str]) -> None:  # noqa: ANN401 - as above
    """Have a command's words read and not run; raises what the program would say."""
    command = program
    parent = program.make_context("rayvisor", [], resilient_parsing=True)
    rest = list(words)
    while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(parent, name)
        assert found is not None, f"no command {name!r}"
        command = found
    if "--help" in rest or "--version" in rest or (not rest and hasattr(command, "get_command")):
        return
    command.make_context("rayvisor", rest, parent=parent)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_program_takes_it(program: Any, page: Path) -> None:  # noqa: ANN401
    for words in commands(page):
        try:
            parse(program, words)
        except Exception as error:  # noqa: BLE001 - whatever it says
            pytest.fail(f"rayvisor {' '.join(words)}: {error!r}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_program_knows_what_is_mentioned(program: Any, page: Path) -> None:  # noqa: ANN401
    for words in mentions(page):
        if PLACEHOLDERS & set(words):
            continue
        try:
            parse(program, words)
        except Exception as error:  # noqa: BLE001 - whatever it says
            # A sentence may name a command without what it is given.
            if "Missing parameter" not in str(error):
                pytest.fail(f"rayvisor {' '.join(words)}: {error!r}")


def test_there_are_commands_to_look_at(program: Any) -> None:  # noqa: ANN401
    assert sum(len(commands(page)) for page in PAGES) > 60
    for wrong in (["ls", "--no-such"], ["no-such"], ["migrate"]):
        with pytest.raises(Exception, match=r"(?i)no such|no command|missing"):
            parse(program, wrong)
