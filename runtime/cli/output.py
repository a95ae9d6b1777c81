"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
"""Declare ``as_json: JsonOption = False`` (keyword-only) on every command."""


def emit(
    obj: dict[str, Any] | list[Any], *, as_json: bool, render: Callable[[], RenderableType]
) -> None:
    """Print a command's result on standard output: `obj` as JSON, or what `render` makes."""
    if as_json:
        sys.stdout.write(json.dumps(obj) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    result = render()
    # Text that is laid out already, and a sentence that a program may look for, must not be
    # folded to the width of the terminal, which is 80 where there is none.
    Console().print(result, soft_wrap=isinstance(result, (str, Text)))


def stderr_console() -> Console:
    """A Rich console on standard error, where progress and reports go."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class Step:
    """A step in progress. Call it with a text to say what is going on inside."""

    def __init__(self, text: str, say: Callable[[str], None], *, percentages: bool = False) -> None:
        self.text = text
        self._say = say
        self._percentages = percentages
        self._last = ""

    def __call__(self, detail: str, fraction: float | None = None) -> None:
        """Show `detail` beside the step's text on a terminal, or as a line of its own.

        Args:
            detail: What is done now, in a few words. Said once, however often it is given.
            fraction: How much of it is done, 0 to 1, where that is known; shown on a terminal.
        """
        shown = f"{detail} {fraction:.0%}" if fraction is not None and self._percentages else detail
        if shown != self._last:
            self._last = shown
            self._say(shown)


@contextmanager
def step(text: str, *, quiet: bool = False) -> Iterator[Step]:
    """Say on standard error what is done, for work that may take over a second.

    On a terminal: a spinner while it runs, one line with the time it took after it. Elsewhere:
    a line before, one for each detail, and a line after. With `quiet` (pass ``as_json``): nothing.
    """
    if quiet:
        yield Step(text, lambda _detail: None)
        return
    begin_s = time.monotonic()
    if not sys.stderr.isatty():
        _line(f"{text} ...")
        yield Step(text, lambda detail: _line(f"  {detail}"))
        _line(f"{text}: done in {time.monotonic() - begin_s:.1f} s")
        return
    from rich.markup import escape

    console = stderr_console()
    with console.status(escape(text)) as status:
        yield Step(
            text, lambda detail: status.update(escape(f"{text}: {detail}")), percentages=True
        )
    console.print(f"[green]✓[/green] {escape(text)} ({time.monotonic() - begin_s:.1f} s)")


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
