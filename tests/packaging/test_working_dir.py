"""The repository as the working_dir of a Ray job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

JOB = """
import json, sys
import ray

ray.init(
    address="local",
    num_cpus=1,
    include_dashboard=False,
    runtime_env={"working_dir": sys.argv[1]},
)

@ray.remote
def look():
    import os
    from pathlib import Path
    import rayvisor.migration
    import rayvisor.vmm.core._native as native
    here = Path.cwd()
    return {
        "cwd": str(here),
        "package": rayvisor.__file__,
        "native": native.__file__,
        "entries": os.listdir(here),
        "links": [str(path) for path in here.rglob("*") if path.is_symlink()],
    }

print("RESULT " + json.dumps(ray.get(look.remote())))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a Ray worker finds where Ray has unpacked the repository."""
    folder = tmp_path_factory.mktemp("job")
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-I", "-c", JOB, str(ROOT)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(results[0].removeprefix("RESULT "))
    return found


pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_worker_imports_the_package_that_travelled(seen: dict[str, Any]) -> None:
    assert Path(seen["package"]) == Path(seen["cwd"]) / "rayvisor" / "__init__.py"
    assert seen["links"] == []


def test_native_core_travels_although_git_ignores_it(seen: dict[str, Any]) -> None:
    core = Path(seen["cwd"]) / "rayvisor" / "vmm" / "core" / "_native.abi3.so"
    assert Path(seen["native"]) == core


def test_rooms_travel_once(seen: dict[str, Any]) -> None:
    assert {"vmm", "runtime", "actors", "tests", ".venv"}.isdisjoint(seen["entries"])
