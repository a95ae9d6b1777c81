"""A source distribution, the wheel built from it, and that wheel in a fresh environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("vmm", "runtime", "actors", "migration", "ops")
TOP_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
BUILT = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
C_SOURCES = {".c", ".h"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RAYVISOR"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} {command[1:]}: {done.stdout}\n{done.stderr}"
    return done.stdout


def build(what: str, source: Path, out: Path) -> Path:
    """The file that the build backend makes of `source`; `what` is "sdist" or "wheel"."""
    out.mkdir()
    code = f"from setuptools import build_meta as b; b.build_{what}({str(out)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, built from a copy so that the work tree stays as it is."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    source.mkdir()
    for room in (*ROOMS, "rayvisor"):
        shutil.copytree(ROOT / room, source / room, symlinks=True, ignore=BUILT)
    for name in TOP_FILES:
        shutil.copy(ROOT / name, source / name)
    return build("sdist", source, folder / "out")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from nothing but the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            if content is not None:
                file = folder / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())
    (source,) = folder.iterdir()
    return build("wheel", source, folder / "out")


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel in it.

    What the wheel depends on is lent by the environment that runs the tests: its folder is a
    plain entry of the path, so that the editable installation there stays out of sight.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel, cwd=folder)
    lent = sysconfig.get_path("purelib")
    (site_packages(python) / "lent.pth").write_text(f"{lent}\n")
    return python


def site_packages(python: Path) -> Path:
    (folder,) = python.parents[1].glob("lib/python3*/site-packages")
    return folder


def test_source_distribution_holds_files_and_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert [m.name for m in members if not (m.isfile() or m.isdir())] == []
    assert any(m.name.endswith("rayvisor/vmm/errors.py") for m in members)


def test_wheel_serves_every_python_from_3_11_on(wheel: Path) -> None:
    assert wheel.name.endswith("-cp311-abi3-linux_x86_64.whl")


def test_wheel_holds_each_file_of_the_rooms_but_c(wheel: Path) -> None:
    wanted = {
        f"rayvisor/{path.relative_to(ROOT).as_posix()}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file()
        and path.suffix not in {*C_SOURCES, ".so", ".pyc"}
        and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wanted - names == set()
    assert {"rayvisor/py.typed", "rayvisor/vmm/core/_native.abi3.so"} <= names


def test_nothing_but_rayvisor_reaches_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rayvisor"}


def test_installed_package_imports_from_anywhere(python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, json, rayvisor\n"
        "from rayvisor import Cluster, VmSpec\n"
        "import rayvisor.vmm.core._native as native\n"
        f"rooms = [room for room in {ROOMS!r} if u.find_spec(room)]\n"
        "print(json.dumps([rayvisor.__file__, native.__file__, rooms]))"
    )
    package, native, rooms = json.loads(run(python, "-I", "-c", code, cwd=tmp_path))
    home = site_packages(python)
    assert Path(package).is_relative_to(home)
    assert Path(native).is_relative_to(home)
    assert rooms == []


def test_installed_script_runs(python: Path, tmp_path: Path) -> None:
    said = run(python.with_name("rayvisor"), "--version", cwd=tmp_path)
    assert said.strip() == "rayvisor 0.1.0"
