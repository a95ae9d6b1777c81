"""The entry point of `rayvisor`: commands together, errors in one line.

A command returns nothing; it leaves with a status by ``raise typer.Exit(status)``. What it
raises becomes one line on standard error (with --json, one JSON object ``{"error": message,
"kind": class}`` on standard error, so that standard output holds results alone) and a status:
2 for a request that cannot be used as it stands, 130 after ctrl-C, 1 for everything else.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from rayvisor.runtime.config import debug
from rayvisor.vmm.errors import ConfigError, RayvisorError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND_MODULES = ("run", "image", "cluster", "migrate", "ha", "ft", "inspect", "monitor", "demo")

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

EPILOG = """
[bold]Examples[/bold]

Debian on this terminal, until `exit` or ctrl-]: [cyan]rayvisor run[/cyan]

The same on Ray: [cyan]rayvisor up[/cyan], then [cyan]rayvisor create web[/cyan] and [cyan]rayvisor console web[/cyan]

Two hosts, and a VM that moves while it runs: [cyan]rayvisor up --hosts 2[/cyan], [cyan]rayvisor create web[/cyan], [cyan]rayvisor migrate web[/cyan]

From nothing to a shell, step by step: [cyan]rayvisor demo[/cyan]

What a command takes: [cyan]rayvisor COMMAND --help[/cyan]

Every command takes --json. RAYVISOR_DEBUG=1 shows where an error came from.
"""  # noqa: E501 - one line is one paragraph of help

app = typer.Typer(
    name="rayvisor",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rayvisor {version('rayvisor')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run unmodified x86 operating systems in ordinary processes, spread over a Ray cluster."""


def register_all() -> typer.Typer:
    """The app with the commands of every module on it. Harmless to call again."""
    if not app.registered_commands:
        for name in COMMAND_MODULES:
            import_module(f"rayvisor.runtime.cli.{name}").register(app)
    return app


def _one_line(text: str) -> str:
    return " ".join(text.split())


def describe_error(error: BaseException) -> tuple[str, str, int]:
    """An error as (one line, kind, exit status).

    The kind is the name of the class, "UsageError" for everything the parser refuses.
    """
    cause = getattr(error, "cause", None)  # what Ray wraps around an error of an actor
    if isinstance(cause, RayvisorError):
        error = cause
    if isinstance(error, ConfigError):
        return _one_line(str(error)), type(error).__name__, EXIT_USAGE
    if isinstance(error, RayvisorError):
        return _one_line(str(error)), type(error).__name__, EXIT_FAILURE
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return _one_line(error.format_message()) + hint, "UsageError", error.exit_code
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}", type(error).__name__, EXIT_FAILURE
    text = _one_line(f"internal error: {type(error).__name__}: {error}")
    return f"{text} (RAYVISOR_DEBUG=1 shows where)", type(error).__name__, EXIT_FAILURE


def _report(error: BaseException, *, as_json: bool) -> int:
    if debug():
        traceback.print_exception(error)
    text, kind, status = describe_error(error)
    line = json.dumps({"error": text, "kind": kind}) if as_json else f"rayvisor: {text}"
    sys.stderr.write(line + "\n")
    return status


def _ensure_standard_streams() -> None:
    """Give descriptors 0 to 2 something to be, where the caller closed them.

    Otherwise the next file that is opened takes their place: a guest's memory as our input.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (default: the process's) and give the exit status."""
    _ensure_standard_streams()
    logging.basicConfig(format="rayvisor: %(message)s", level=logging.WARNING)
    words = list(sys.argv[1:] if args is None else args)
    options = words[: words.index("--")] if "--" in words else words
    try:
        status = register_all()(words, prog_name="rayvisor", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `head` does; a second attempt at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return EXIT_USAGE
        return _report(error, as_json="--json" in options)
    except Exception as error:  # noqa: BLE001 - the last line of defence against tracebacks
        return _report(error, as_json="--json" in options)
    return status if isinstance(status, int) else 0
