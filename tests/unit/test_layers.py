"""The import rules of docs/design.md, checked on the source."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]

# What each room may import: runtime -> actors -> migration -> vmm, with ops beside actors.
ALLOWED = {
    "vmm": {"vmm"},
    "migration": {"migration", "vmm"},
    "actors": {"actors", "migration", "vmm"},
    "ops": {"ops", "migration", "vmm"},
    "runtime": {"runtime", "actors", "ops", "migration", "vmm"},
}
PUBLIC_API = {"Cluster", "VmSpec"}


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that is imported; a relative import starts with a dot."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom():
                module = "." * node.level + (node.module or "")
                for alias in node.names:
                    yield node.lineno, f"{module}.{alias.name}"
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                function = ast.unparse(node.func)
                if function.endswith(("import_module", "__import__")):
                    yield node.lineno, name


def violations(path: str, source: str) -> list[str]:
    """The rules that the file `path` (relative to the repository) breaks, one line each."""
    room = path.split("/", 1)[0]
    may_use_ray = room == "actors" or path == "runtime/ray_session.py"
    found = []
    for line, name in imported_modules(ast.parse(source)):
        top, _, rest = name.partition(".")
        target = rest.split(".", 1)[0]
        if top == "ray" and not may_use_ray:
            found.append(f"{path}:{line}: only actors/ and runtime/ray_session.py import ray")
        elif not top or top in ALLOWED:
            found.append(f"{path}:{line}: {name} must be imported as rayvisor.<room>")
        elif top == "rayvisor" and target in ALLOWED and target not in ALLOWED[room]:
            found.append(f"{path}:{line}: {room} must not import {target}")
        elif top == "rayvisor" and target in PUBLIC_API and room != "runtime":
            found.append(f"{path}:{line}: {room} must not import the public API")
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_keeps_the_import_rules(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room}/ has no Python file"
    found = [
        line
        for path in files
        for line in violations(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vmm/board.py", "from rayvisor.migration.stream import Stream"),
        ("vmm/board.py", "def f():\n    import rayvisor.runtime.config"),
        ("vmm/board.py", "from rayvisor import ops"),
        ("vmm/board.py", "from rayvisor import VmSpec"),
        ("vmm/board.py", "import_module('rayvisor.actors.host')"),
        ("migration/precopy.py", "import ray"),
        ("migration/precopy.py", "from ..vmm import state"),
        ("ops/metrics.py", "from rayvisor.actors.host import HostActor"),
        ("actors/host.py", "from rayvisor.ops.metrics import Registry"),
        ("actors/host.py", "if TYPE_CHECKING:\n    from rayvisor.runtime.cluster import Cluster"),
        ("runtime/config.py", "from ray.util import placement_group"),
        ("runtime/config.py", "from vmm.errors import ConfigError"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("actors/host.py", "import ray\nfrom rayvisor.vmm.vm import Vm"),
        ("runtime/ray_session.py", "import ray.exceptions\nfrom rayvisor.actors.host import Host"),
        ("runtime/notebook.py", "from rayvisor import Cluster"),
        ("vmm/machine.py", "from rayvisor import __version__\nimport raylib\nimport ast"),
        ("ops/metrics.py", "from rayvisor.vmm.exits import ExitCensus"),
    ],
)
def test_a_kept_rule_is_not_reported(path: str, source: str) -> None:
    assert violations(path, source) == []
