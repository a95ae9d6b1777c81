"""Commands as the pages for users have them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "runbooks").glob("*.md"),
    ]
)
_BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```|((?:^ {4}\S.*\n)+)", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The shell blocks of a page, without prompts."""
    found = [fenced or indented for fenced, indented in _BLOCK.findall(page.read_text())]
    return [re.sub(r"^(?: {4}|\$ )", "", block, flags=re.MULTILINE) for block in found]


def section(page: Path, heading: str) -> list[str]:
    """The shell blocks below a heading."""
    _, _, rest = page.read_text().partition(f"\n## {heading}\n")
    assert rest, f"{page.name} has no section {heading!r}"
    return re.findall(r"^```sh\n(.*?)^```", rest.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every `rayvisor` command in a page's blocks."""
    return _words("\n".join(blocks(page)).replace("\\\n", " "))


def mentions(page: Path) -> list[list[str]]:
    """The same of commands that are named in its sentences."""
    return _words("\n".join(re.findall(r"`(rayvisor [^`]+)`", page.read_text().replace("\n", " "))))


def _words(text: str) -> list[list[str]]:
    found = []
    for line in text.splitlines():
        for part in re.split(r"[;|]", line):
            if part.strip().startswith(("rayvisor ", "-- rayvisor ")):
                words = shlex.split(part.strip(), comments=True)
                found.append(words[words.index("rayvisor") + 1 :])
    return found
