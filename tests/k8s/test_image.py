"""What the container image is built from, and its first process. No image is built here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.k8s.conftest import K8S, ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+) --hash=sha256:[0-9a-f]{64}")


def pins(name: str) -> dict[str, str]:
    """Versions by canonical name; every line has a hash."""
    found: dict[str, str] = {}
    for line in (K8S / name).read_text().splitlines():
        if not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match is not None, line
            found[canonicalize_name(match["name"])] = match["version"]
    return found


def closure(requirements: list[Requirement]) -> set[str]:
    """The names of all that is needed, as this environment's packages say."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in metadata.requires(name) or ():
                part = Requirement(text)
                if part.marker is None or part.marker.evaluate({"extra": extra}):
                    todo.append(part)
    return found


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + project["optional-dependencies"]["jobs"]
    return [Requirement(text) for text in texts]


def test_lock_meets_what_is_declared() -> None:
    locked = pins("requirements.txt")
    for requirement in declared():
        version = locked.get(canonicalize_name(requirement.name), "")
        assert version, f"{requirement.name} is not locked: run k8s/lock.py"
        assert requirement.specifier.contains(version), f"{requirement}: run k8s/lock.py"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is for Python 3.11")
def test_lock_is_whole() -> None:
    missing = closure(declared()) - set(pins("requirements.txt"))
    assert not missing, "run k8s/lock.py"


def test_lock_of_the_build_meets_what_is_declared() -> None:
    locked = pins("requirements-build.txt")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for requirement in map(Requirement, build):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_bases_are_pinned_and_the_user_is_not_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert all(base.startswith("python:${PYTHON}-") for base in bases)
    assert re.search(r"^ARG PYTHON=3\.11\.\d+$", DOCKERFILE, re.MULTILINE)
    *_, last = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert last == "10001:10001"
    assert DOCKERFILE.index("USER 10001") > DOCKERFILE.rindex("\nRUN ")
    installs = re.findall(r"pip install (?:.|\\\n)*?(?:&&|\n\n)", DOCKERFILE)
    assert installs
    assert all("--require-hashes" in i or "--no-index" in i for i in installs)


def test_user_is_the_pods() -> None:
    for path in (K8S / "base").glob("raycluster.yaml"):
        text = path.read_text()
        assert "runAsUser: 10001\n" in text
        assert "runAsGroup: 10001\n" in text


def test_context_holds_what_is_copied_and_nothing_unknown() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert all((ROOT / name).exists() for name in let_in)
    rooms = {p.name for p in (ROOT / "rayvisor").iterdir() if p.is_symlink()}
    assert rooms <= set(let_in)
    for source in re.findall(r"^COPY (?:--chmod=\d+ )?(k8s/.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert set(source.split()) <= set(let_in)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The first process's; its `python` writes what it is asked, as a join that works."""
    joiner = tmp_path / "python"
    joiner.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    joiner.chmod(0o755)
    keep = {k: v for k, v in os.environ.items() if not k.startswith("KUBERAY")}
    return {**keep, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def first_process(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [K8S / "entrypoint", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_runs_what_kuberay_says_and_ends_as_that_does(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["SPACED"] = "s p"
    environment["KUBERAY_GEN_RAY_START_CMD"] = (
        f'sh -c \'until [ -s {tmp_path}/asked ]; do sleep 0.05; done; printf "%s|" "$@"\''
        ' ray --password="$SPACED" end  '
    )
    process = first_process(environment, "false")
    assert process.communicate(timeout=30)[0] == "--password=s p|end|"
    assert process.returncode == 0
    assert (tmp_path / "asked").read_text() == "-m rayvisor.runtime.probe join\n"


@pytest.mark.parametrize("status", [0, 3])
def test_it_ends_as_its_command_does(environment: dict[str, str], status: int) -> None:
    process = first_process(environment, "sh", "-c", f"exit {status}")
    process.communicate(timeout=30)
    assert process.returncode == status


def test_a_signal_reaches_ray_which_may_take_its_time(
    environment: dict[str, str], tmp_path: Path
) -> None:
    ray = tmp_path / "ray"
    ray.write_text(
        "#!/bin/bash\ntrap 'sleep 0.5; echo ended; exit 9' TERM\necho up\n"
        "while true; do sleep 0.1; done\n"
    )
    ray.chmod(0o755)
    process = first_process(environment, str(ray))
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "ended\n"
    assert process.returncode == 9


def test_it_takes_a_join_that_hangs_along(environment: dict[str, str], tmp_path: Path) -> None:
    mark = tmp_path / "joining"
    (tmp_path / "python").write_text(f"#!/bin/sh\necho $$ > {mark}\nexec sleep 600\n")
    process = first_process(environment, "sh", "-c", f"while ! [ -s {mark} ]; do sleep 0.05; done")
    process.communicate(timeout=30)
    assert process.returncode == 0
    joiner, deadline_s = int(mark.read_text()), time.monotonic() + 30
    while True:
        try:
            os.kill(joiner, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_it_says_that_it_has_nothing_to_start(environment: dict[str, str]) -> None:
    process = first_process(environment)
    assert "nothing to start" in process.communicate(timeout=30)[1]
    assert process.returncode == 64
