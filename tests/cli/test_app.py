"""The command line's manners: one line for an error, the right status, help that teaches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from rayvisor.runtime.cli import app as cli
from rayvisor.runtime.cli.output import Step, emit, step
from rayvisor.vmm.errors import ConfigError, EngineError, ImageError, MachineStateError

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "run image up down hosts create ls show console stop reset rm migrate evacuate resume-host"
    " events disasm exits demo"
).split()


def raising(error: BaseException) -> Callable[..., None]:
    """What replaces the app: a command that fails."""

    def run(*_: object, **__: object) -> None:
        raise error

    return run


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    def set_error(error: BaseException) -> None:
        monkeypatch.setattr(cli, "register_all", lambda: raising(error))

    return set_error


class RayTaskError(Exception):
    """As Ray wraps the error of an actor."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a\nlong\ntraceback")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ConfigError("memory of 0"), "memory of 0", 2),
        (ImageError("no image\n  'x'"), "no image 'x'", 2),
        (EngineError("wrong Unicorn"), "wrong Unicorn", 1),
        (RayTaskError(MachineStateError("it is off")), "it is off", 1),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            "/x: No such file or directory",
            1,
        ),
        (
            ValueError("odd"),
            "internal error: ValueError: odd (RAYVISOR_DEBUG=1 shows where)",
            1,
        ),
    ],
)
def test_an_error_is_one_line_and_a_status(
    failing: Callable[[BaseException], None],
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    line: str,
    status: int,
) -> None:
    failing(error)
    assert cli.main(["x"]) == status
    assert capfd.readouterr() == ("", f"rayvisor: {line}\n")


def test_with_json_an_error_is_one_object(
    failing: Callable[[BaseException], None], capfd: pytest.CaptureFixture[str]
) -> None:
    failing(ImageError("no image 'x'"))
    assert cli.main(["ls", "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err) == {"error": "no image 'x'", "kind": "ImageError"}
    assert cli.main(["run", "--", "--json"]) == 2
    assert capfd.readouterr().err == "rayvisor: no image 'x'\n"


def test_ctrl_c_is_130_and_silent(
    failing: Callable[[BaseException], None], capfd: pytest.CaptureFixture[str]
) -> None:
    failing(KeyboardInterrupt())
    assert cli.main(["x"]) == 130
    assert capfd.readouterr() == ("", "")


def test_debug_shows_where(
    failing: Callable[[BaseException], None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(ConfigError("bad"))
    monkeypatch.setenv("RAYVISOR_DEBUG", "1")
    assert cli.main(["x"]) == 2
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["frobnicate"], "rayvisor: No such command 'frobnicate'. (see rayvisor --help)"),
        (["run", "--frob"], "rayvisor: No such option: --frob"),
        (["disasm"], "rayvisor: Missing argument 'NAME'. (see rayvisor disasm --help)"),
    ],
)
def test_what_the_parser_refuses(
    capfd: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_status_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def leave() -> None:
        raise typer.Exit(124)

    monkeypatch.setattr(cli, "register_all", lambda: app)
    assert cli.main([]) == 124


def test_every_command_is_there_with_help_and_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capfd.readouterr().out
    assert [name for name in COMMANDS if f" {name} " not in text] == []
    for name in set(COMMANDS) - {"image"}:
        assert cli.main([name, "--help"]) == 0
        assert "--json" in capfd.readouterr().out, name


def test_help_needs_neither_ray_nor_the_engine() -> None:
    program = (
        "import sys\nfrom rayvisor.runtime.cli.app import main\nmain(['--help'])\n"
        "heavy = {'ray', 'capstone', 'unicorn', 'rayvisor.vmm.core._native'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_streams_are_replaced() -> None:
    command = f"{sys.executable} -m rayvisor frobnicate 0<&- 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, check=False).returncode == 2


def test_a_reader_that_went_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m rayvisor --help | true"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, check=False)
    assert done.stderr == b""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_and_words(shell: str) -> None:
    environment = {"_RAYVISOR_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", "from rayvisor.__main__ import main; main()"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "RAYVISOR_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("typed", "found"),
    [("rayvisor dis", {"disasm"}), ("rayvisor run deb", {"debian", "debian-i386"})],
)
def test_bash_completes_commands_and_images(typed: str, found: set[str]) -> None:
    environment = {
        "_RAYVISOR_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
    }
    command = [sys.executable, "-c", "from rayvisor.__main__ import main; main()"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == found


def test_emit(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": 1}, as_json=True, render=lambda: "never")
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    emit({"a": 1}, as_json=False, render=lambda: "one [bold]a[/bold]")
    assert capsys.readouterr().out == "one a\n"


def test_steps_are_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with step("Building [x]") as progress:
        progress("unpacking")
        progress("fetching", 0.5)
        progress("fetching", 0.501)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == ["Building [x] ...", "  unpacking", "  fetching"]
    assert lines[3].startswith("Building [x]: done in ")
    with step("x", quiet=True) as progress:
        assert isinstance(progress, Step)
        progress("y")
    assert capsys.readouterr().err == ""
