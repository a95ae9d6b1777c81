"""`rayvisor image` as a person or a script runs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime.cli.app import main

if TYPE_CHECKING:
    from pathlib import Path

    from tests.images.conftest import Archive


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.mark.usefixtures("archive")
def test_build_ls_rm(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "build"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("debian: linux-image-1.0.1-cloud-amd64 1.0-1, ")
    assert "Downloading linux-image-1.0.1-cloud-amd64" in captured.err

    assert main(["image", "ls"]) == 0
    assert "1.0-1" in capsys.readouterr().out

    assert main(["image", "rm", "debian"]) == 0
    assert "debian removed" in capsys.readouterr().out
    assert not list((cache / "rayvisor/objects").iterdir())

    assert main(["image", "ls"]) == 0
    assert "rayvisor image build debian" in capsys.readouterr().out


@pytest.mark.usefixtures("archive")
def test_json_is_all_a_script_sees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "ls", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == []
    assert main(["image", "build", "debian", "--json"]) == 0
    captured = capsys.readouterr()
    built = json.loads(captured.out)
    assert captured.err == ""
    assert built["name"] == "debian"
    assert [package["version"] for package in built["packages"]] == ["1.0-1", "1.0-1"]
    assert main(["image", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [built]
    assert main(["image", "rm", "debian", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "debian",
        "freed_bytes": built["size_bytes"],
    }


def test_refresh(archive: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "build"]) == 0
    archive.version = "1.1-1"
    archive.publish()
    assert main(["image", "build"]) == 0
    assert "1.0-1" in capsys.readouterr().out.splitlines()[-1]
    assert main(["image", "build", "--refresh"]) == 0
    assert "1.1-1" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["build", "plan9"], "no recipe for an image 'plan9': there are debian, debian-i386"),
        (["rm", "plan9"], "no image 'plan9': there are none"),
        (["rm", "../../etc"], "no image '../../etc'"),
    ],
)
def test_errors_are_one_line(
    words: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", *words]) == 2
    captured = capsys.readouterr()
    assert found in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    assert captured.out == ""
