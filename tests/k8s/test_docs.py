"""What the two pages name is there."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.k8s.conftest import K8S, ROOT

PAGES = ("kubernetes.md", "ray-jobs.md")


def commands(page: str) -> list[list[str]]:
    """The words of every command in the page's shell blocks."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / page).read_text()):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link


def test_overlays_that_are_applied_exist() -> None:
    applied = [words[-1] for words in commands("kubernetes.md") if words[1:3] == ["apply", "-k"]]
    assert {ROOT / folder for folder in applied} == set((K8S / "overlays").iterdir())


def test_files_in_the_table_exist() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    named = re.findall(r"^\| `([\w./-]+)` \|", text, re.MULTILINE)
    files = [name for name in named if name.startswith(("base", "components", "entry", "req"))]
    assert len(files) == 8
    assert all((K8S / name).exists() for name in files)


def test_jobs_that_are_submitted_exist() -> None:
    submitted = [
        words for words in commands("ray-jobs.md") if words[:3] == ["ray", "job", "submit"]
    ]
    assert submitted
    for words in submitted:
        folder, script = words[words.index("--working-dir") + 1], words[words.index("python") + 1]
        assert (ROOT / folder / script).is_file()
