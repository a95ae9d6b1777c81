"""What a VM may be asked to be, and the one line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayvisor.runtime.api import VmSpec
from rayvisor.runtime.boot import source_of
from rayvisor.vmm.errors import ConfigError


def test_defaults() -> None:
    spec = VmSpec(name="web")
    assert (spec.image, spec.memory_bytes, spec.cpus) == ("debian", 256 << 20, 1)


@pytest.mark.parametrize("name", ["a", "0", "web-1", "a.b_c", "a" * 63])
def test_names(name: str) -> None:
    assert VmSpec(name=name).name == name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": ""}, "'' is no name for a VM"),
        ({"name": "-a"}, "'-a' is no name for a VM"),
        ({"name": "a-"}, "'a-' is no name for a VM"),
        ({"name": "A"}, "'A' is no name for a VM"),
        ({"name": "a b"}, "'a b' is no name for a VM"),
        ({"name": "a\n"}, "is no name for a VM"),
        ({"name": "a" * 64}, "is no name for a VM"),
        ({"name": "ä"}, "is no name for a VM"),
        ({"name": 5}, "VmSpec: name: input should be a valid string, found 5"),
        ({}, "VmSpec: name: field required"),
        ({"name": "a", "memory": "0"}, "memory of 0 is less than the 1 MiB a machine needs"),
        ({"name": "a", "memory": "-1"}, "memory of -1 is less than the 1 MiB"),
        ({"name": "a", "memory": "much"}, "'much' is not a size"),
        ({"name": "a", "memory": "1048577"}, "1048577 bytes is not whole pages of 4096"),
        ({"name": "a", "memory": 256}, "VmSpec: memory: input should be a valid string"),
        ({"name": "a", "cpus": 0}, "cpus 0: this engine gives a VM exactly one vCPU"),
        ({"name": "a", "cpus": 2}, "cpus 2: this engine gives a VM exactly one vCPU"),
        ({"name": "a", "cpus": True}, "VmSpec: cpus: input should be a valid integer"),
        ({"name": "a", "kernel": "/no/such"}, "/no/such: no such file"),
        ({"name": "a", "kernel": "/"}, "/: not a file"),
        ({"name": "a", "format": "exe"}, "VmSpec: format: input should be 'auto', 'linux'"),
        ({"name": "a", "disk": "x"}, "VmSpec: disk: extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_one_line(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VmSpec(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spec_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        VmSpec(name="a").name = "b"  # type: ignore[misc]


def test_files_become_a_boot_source(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "k", tmp_path / "i"
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    source = source_of(
        VmSpec(name="a", kernel=kernel, initrd=initrd, append="quiet", format="flat")
    )
    assert (source.kernel, source.initrd, source.format) == (b"kernel", b"initrd", "flat")
    assert source.cmdline == "quiet"


@pytest.mark.parametrize("values", [{"initrd": Path(__file__)}, {"format": "elf"}])
def test_an_image_is_not_mixed_with_files(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="goes with a kernel"):
        source_of(VmSpec(name="a", **values))
