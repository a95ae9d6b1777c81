"""The build stage of the Dockerfile, step by step, in a folder in place of a container.

No container engine is needed: the files that .dockerignore lets in are copied, and the stage's RUN
instructions are run by a shell with its absolute folders moved below a folder of ours. What comes
out is started as the container's first process would start it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime.images.cmdline import exec_argument
from tests.k8s.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is for Python 3.11"),
]

MOVED = ("/opt/rayvisor", "/opt/builder", "/wheel")


def runs() -> list[str]:
    """The RUN instructions of the first stage, without their line ends."""
    stage = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1]
    found = re.findall(r"^RUN ((?:.*\\\n)*.*)$", stage, re.MULTILINE)
    return [text.replace("\\\n", " ") for text in found]


def let_in() -> Iterator[Path]:
    """What the build context holds, by .dockerignore."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            yield ROOT / line[1:]


def test_the_steps_make_a_rayvisor_that_runs(tmp_path: Path) -> None:
    context = tmp_path / "build"
    context.mkdir()
    for path in let_in():
        target = context / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            skip = shutil.ignore_patterns("__pycache__", "*.py[cod]", "*.so")
            shutil.copytree(path, target, symlinks=True, ignore=skip)
        else:
            shutil.copy(path, target, follow_symlinks=False)
    for name in ("requirements.txt", "requirements-build.txt"):
        shutil.copy(ROOT / "k8s" / name, context)
    root = tmp_path / "root"
    (root / "opt" / "rayvisor").mkdir(parents=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))},
        "PATH": f"{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}",
        "SOURCE_DATE_EPOCH": "1700000000",
    }
    assert len(runs()) == 3
    for step in runs():
        script = step
        for folder in MOVED:
            script = script.replace(folder, f"{root}{folder}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=context,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}"
    venv = root / "opt" / "rayvisor" / "venv" / "bin"
    assert not (venv / "pip").exists()
    assert (root / "opt" / "rayvisor" / "examples" / "job.py").is_file()
    # As a container runs it: nothing can be written but below /tmp, and nothing comes from here.
    run = subprocess.run(
        [
            *(venv / "rayvisor", "run", "--memory", "128M", "--timeout", "90"),
            *("--append", exec_argument("uname -s")),
        ],
        cwd=tmp_path,
        env={
            "PATH": f"{venv}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "XDG_CACHE_HOME": f"{root}/opt/rayvisor/cache",
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Linux" in run.stdout
