"""Write what the container image is built from: every Python package, by version and hash.

    .venv/bin/python k8s/lock.py

Takes the newest versions that pyproject.toml lets in, for CPython 3.11 on x86-64, and asks the
package index for their names and hashes alone. Run it with that Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PYTHON = (3, 11)  # the Dockerfile's
HEAD = "# Written by k8s/lock.py from pyproject.toml; for CPython 3.11 on x86-64.\n"


def resolve(requirements: list[str]) -> str:
    """The lines of a requirements file with all that `requirements` need."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-"]
    command += ["--ignore-installed", "--only-binary", ":all:", *requirements]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=HERE)
    return HEAD + "".join(sorted(map(line, json.loads(done.stdout)["install"]), key=str.lower))


def line(package: dict[str, Any]) -> str:
    """One package as a requirement."""
    name, version = package["metadata"]["name"], package["metadata"]["version"]
    digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={version} --hash=sha256:{digest}\n"


def main() -> None:
    """Write both files."""
    if sys.version_info[:2] != PYTHON:
        sys.exit(f"run it with Python {PYTHON[0]}.{PYTHON[1]}: the hashes are of its wheels")
    about = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    project = about["project"]
    run = project["dependencies"] + project["optional-dependencies"]["jobs"]
    (HERE / "requirements.txt").write_text(resolve(run))
    (HERE / "requirements-build.txt").write_text(resolve(about["build-system"]["requires"]))


if __name__ == "__main__":
    main()
