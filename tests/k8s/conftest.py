"""The overlays as they are applied, and the examples."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.k8s.rendering import Manifest, render

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("local", "production")


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Each overlay in turn, by name."""
    return str(request.param)


@pytest.fixture
def manifests(overlay: str) -> list[Manifest]:
    """All that an overlay applies."""
    return render(K8S / "overlays" / overlay)


@pytest.fixture
def cluster(manifests: list[Manifest]) -> Manifest:
    """The overlay's RayCluster."""
    (found,) = (m for m in manifests if m["kind"] == "RayCluster")
    return found


@pytest.fixture
def examples() -> list[Manifest]:
    """The example jobs."""
    files = sorted((K8S / "examples").glob("*.yaml"))
    assert files
    return [m for file in files for m in yaml.safe_load_all(file.read_text())]
