"""The commands of docs/operating.md, run as a person would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime import local_ray
from rayvisor.runtime.images import ImageStore
from rayvisor.vmm.errors import ImageError
from tests.docs.pages import ROOT, section

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "operating.md"
BIN = Path(sys.executable).parent


def run(script: str, **environment: str) -> str:
    """What a script says, once it has run to its end without an error."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout


@pytest.fixture(name="state")
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state folder of our own; whatever is up in the end is ended."""
    try:
        ImageStore().get("debian")
    except ImageError as error:
        pytest.skip(f"{error}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    yield
    run("rayvisor down")


def test_every_block_is_run_here() -> None:
    text = PAGE.read_text()
    known = ("On a laptop", "On a Ray cluster", "What to alert on", "Upgrading")
    assert text.count("```sh") == sum(len(section(PAGE, heading)) for heading in known) == 5


@pytest.mark.cluster
@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("state")
def test_on_a_laptop() -> None:
    setup, use = section(PAGE, "On a laptop")
    assert setup.splitlines() == ["make setup", ". .venv/bin/activate"]  # how this came to be here
    said = run(use)
    assert re.search(r"web\s+.*running", said)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_ray_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = section(PAGE, "On a Ray cluster")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    theirs = local_ray.start(
        object_store_bytes=100 << 20, cpus=1, dashboard=False, progress=lambda _text: None
    )
    try:
        found = run(
            block.replace("--address auto", f"--address {theirs.address}"),
            XDG_STATE_HOME=str(tmp_path / "ours"),
            **local_ray.client_environment(theirs),
        )
    finally:
        local_ray.stop(theirs)
    assert "127.0.0.1" in found


@pytest.mark.cluster
@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("state")
def test_upgrading() -> None:
    (block,) = section(PAGE, "Upgrading")
    run("rayvisor up --hosts 2; rayvisor create web --memory 128M --host host-2")
    run(block)
    assert re.search(r"web\s+.*host-2", run("rayvisor ls"))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
def test_what_to_alert_on() -> None:
    (block,) = section(PAGE, "What to alert on")
    assert "SUCCESS" in run(block)
