"""What `import rayvisor` gives, and what it does not cost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import rayvisor


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after running `code`."""
    report = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(names)


def test_public_names_are_offered_and_resolve() -> None:
    for name in rayvisor.__all__:
        assert name in dir(rayvisor)
        assert getattr(rayvisor, name) is not None


def test_public_classes_are_those_of_the_runtime() -> None:
    from rayvisor.runtime.api import VmSpec
    from rayvisor.runtime.cluster import Cluster

    assert (rayvisor.Cluster, rayvisor.VmSpec) == (Cluster, VmSpec)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Hypervisor'"):
        _ = rayvisor.Hypervisor  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import rayvisor", {"ray", "pydantic", "typer", "rich", "capstone"}),
        ("import rayvisor.vmm.machine", {"ray", "pydantic", "typer", "rich", "capstone"}),
        ("import rayvisor.runtime.cli.app as a; a.register_all()", {"ray", "capstone"}),
        ("from rayvisor import Cluster, VmSpec", {"ray", "capstone", "typer"}),
    ],
)
def test_an_import_does_not_pay_for_what_it_does_not_need(code: str, heavy: set[str]) -> None:
    assert loaded_after(code).isdisjoint(heavy)
