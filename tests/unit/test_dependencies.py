"""What the rooms import is what pyproject.toml says they need."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOR_DEVELOPERS = (ROOT / "ops" / "grafana",)
ROOMS = ("rayvisor", "vmm", "runtime", "actors", "migration", "ops")


def third_party(source: str) -> set[str]:
    """The top-level modules that a file imports and that are neither ours nor Python's."""
    tops = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            tops.add(node.module.split(".")[0])
    return tops - sys.stdlib_module_names - {"rayvisor"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str = "") -> set[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return {normal(re.split(r"[\[~=<>! ]", line, maxsplit=1)[0]) for line in lines}


def test_every_import_is_declared() -> None:
    providers = packages_distributions()
    missing = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).glob("**/*.py")):
            for top in third_party(path.read_text()):
                names = {normal(name) for name in providers.get(top, [f"unknown: {top}"])}
                extra = "dev" if path.parent in FOR_DEVELOPERS else ""
                if names.isdisjoint(declared(extra)):
                    missing[top] = path.relative_to(ROOT).as_posix()
    assert missing == {}


def test_every_declared_dependency_has_a_line_in_the_adr() -> None:
    table = (ROOT / "docs" / "adr" / "0003-dependencies.md").read_text()
    assert {name for name in declared() if f"| {name} |" not in table} == set()


def test_an_import_of_another_project_is_seen() -> None:
    source = "import os, numpy.linalg\nfrom yaml import load\nfrom . import x\nimport rayvisor.vmm"
    assert third_party(source) == {"numpy", "yaml"}
