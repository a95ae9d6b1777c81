"""The image store against a real apt and a real archive on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from rayvisor.runtime.images import Image, ImageStore
from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.images.conftest import Archive

BUILD = """
import sys
from pathlib import Path
from rayvisor.runtime.images import Image, ImageStore
print(ImageStore(Path(sys.argv[1])).build("debian").digest)
"""


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store with a space")


def start_build(store: ImageStore) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(store.root)], stdout=subprocess.PIPE, text=True
    )


def leftovers(store: ImageStore) -> list[Path]:
    """Everything in the store but its locks."""
    return [p for p in store.root.rglob("*") if p.is_file() and p.parent.name != "locks"]


def content(image: Image) -> tuple[bytes, bytes, str]:
    """What a machine would boot, in a form that compares."""
    source = image.boot_source()
    return source.kernel[:], source.initrd[:], source.cmdline


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def test_build_gives_a_bootable_set_of_files(archive: Archive, store: ImageStore) -> None:
    said: list[tuple[str, float | None]] = []
    image = store.build("debian", lambda message, fraction: said.append((message, fraction)))
    assert image.kernel.read_bytes() == archive.kernel
    source = image.boot_source("loglevel=7")
    assert source.kernel[:] == archive.kernel
    assert source.initrd[:] == image.initrd.read_bytes()
    assert archive.busybox in source.initrd[:]
    assert source.cmdline.startswith("console=ttyS0")
    assert source.cmdline.endswith(" loglevel=7")
    assert [(p.name, p.version) for p in image.packages] == [
        ("linux-image-1.0.1-cloud-amd64", "1.0-1"),
        ("busybox-static", "1.0-1"),
    ]
    downloads = [fraction for message, fraction in said if message.startswith("Downloading")]
    assert downloads[0] == 0.0
    assert all(fraction is not None and 0 <= fraction <= 1 for fraction in downloads)
    assert not list((store.root / "tmp").iterdir())


def test_a_second_build_asks_the_network_nothing(archive: Archive, store: ImageStore) -> None:
    first = store.build("debian")
    archive.requests.clear()
    assert store.build("debian") == first == store.get("debian") == store.ls()[0]
    assert archive.requests == []


def test_refresh_downloads_only_what_is_new(archive: Archive, store: ImageStore) -> None:
    first = store.build("debian")
    archive.requests.clear()
    assert store.build("debian", refresh=True) == first
    assert archive.requests
    assert not any(path.endswith(".deb") for path in archive.requests)

    archive.version, archive.kernel = "1.1-1", b"MZ newer kernel" + bytes(100)
    archive.publish()
    second = store.build("debian", refresh=True)
    assert second.kernel.read_bytes() == archive.kernel
    assert second.digest != first.digest
    assert not first.kernel.exists(), "nobody needs the old kernel"
    assert second.boot_source().kernel[:] == archive.kernel
    with pytest.raises(ImageError, match=r"image debian: cannot read"):
        first.boot_source()


def test_a_new_init_needs_no_network(
    archive: Archive, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.build("debian")
    archive.requests.clear()
    monkeypatch.setattr("rayvisor.runtime.images.guest_init.INIT", "#!/bin/sh\n# another\n")
    second = store.build("debian")
    assert archive.requests == []
    assert second.kernel == first.kernel
    assert b"# another" in second.boot_source().initrd[:]
    assert not first.initrd.exists()


def test_a_killed_build_leaves_nothing_and_does_not_block(
    archive: Archive, store: ImageStore
) -> None:
    archive.released.clear()
    with start_build(store) as process:
        assert archive.requested.wait(30)
        process.kill()
    assert store.ls() == []
    with pytest.raises(ImageError, match=r"no image 'debian'"):
        store.get("debian")
    assert not (store.root / "objects").exists()
    assert leftovers(store), "the kill came too late to show anything"
    archive.released.set()
    image = store.build("debian")
    assert image.boot_source().kernel[:] == archive.kernel
    assert not list((store.root / "tmp").iterdir())


def test_an_interrupted_build_cleans_up_and_ends_apt(archive: Archive, store: ImageStore) -> None:
    archive.released.clear()
    with start_build(store) as process:
        assert archive.requested.wait(30)
        os.kill(process.pid, signal.SIGINT)
        process.wait(30)
    assert process.returncode != 0
    assert leftovers(store) == []
    assert store.ls() == []


def test_two_builds_at_once_download_once(archive: Archive, store: ImageStore) -> None:
    archive.released.clear()
    waited = threading.Event()

    def note(message: str, _fraction: float | None) -> None:
        if message.startswith("Waiting for another build"):
            waited.set()

    results = []
    with start_build(store) as process:
        assert archive.requested.wait(30)
        second = threading.Thread(target=lambda: results.append(store.build("debian", note)))
        second.start()
        assert waited.wait(30)
        archive.released.set()
        out, _ = process.communicate(timeout=60)
        second.join(60)
    assert process.returncode == 0
    assert [image.digest for image in results] == [out.strip()]
    packages = [path for path in archive.requests if path.endswith(".deb")]
    assert len(packages) == len(set(packages)) == 2


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("part", ["kernel", "initrd"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data[:100] + b"X" + data[101:], id="changed"),
        pytest.param(lambda _data: b"", id="empty"),
    ],
)
def test_damage_is_found_and_repaired(
    store: ImageStore, part: str, change: Callable[[bytes], bytes]
) -> None:
    image = store.build("debian")
    good = content(image)
    damage(image.kernel if part == "kernel" else image.initrd, change)
    for use in (lambda: store.get("debian"), image.boot_source):
        with pytest.raises(
            ImageError, match=r"(is damaged|it is empty).*: `rayvisor image build debian`"
        ) as info:
            use()
        assert "\n" not in str(info.value)
    store.build("debian")
    assert content(store.get("debian")) == good


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({"format": 2}, id="from the future"),
        pytest.param({"kernel": {"sha256": "../../../etc/passwd", "size_bytes": 1}}, id="path"),
        pytest.param({"cmdline": "a\nb"}, id="line break"),
        pytest.param({"name": "other"}, id="other name"),
        pytest.param({"surprise": 1}, id="unknown field"),
    ],
)
def test_a_damaged_manifest_is_refused_and_can_be_removed(
    store: ImageStore, edit: dict[str, object]
) -> None:
    store.build("debian")
    path = store.root / "images/debian.json"
    good = json.loads(path.read_bytes())
    damage(path, lambda _old: json.dumps(good | edit).encode())
    with pytest.raises(ImageError, match=r"image debian: its manifest.*image rm debian") as info:
        store.get("debian")
    assert "\n" not in str(info.value)
    assert store.ls() == []
    store.rm("debian")
    assert leftovers(store) == []


@pytest.mark.usefixtures("archive")
def test_rm_keeps_what_another_image_needs(store: ImageStore) -> None:
    image = store.build("debian")
    before = content(image)
    path = store.root / "images/debian.json"
    copy = json.loads(path.read_bytes()) | {"name": "copy"}
    (store.root / "images/copy.json").write_text(json.dumps(copy))
    assert store.rm("debian") == 0
    assert content(store.get("copy")) == before
    assert store.rm("copy") == image.size_bytes
    assert leftovers(store) == []


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("name", ["plan9", "", "..", "../x", "a/b", "debian ", "DEBIAN"])
def test_an_unknown_image_says_what_there_is(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageError, match=r"there are none; `rayvisor image build debian`"):
        store.get(name)
    store.build("debian")
    for use in (store.get, store.rm):
        with pytest.raises(ImageError, match=r"no image .*: there are debian; `rayvisor image"):
            use(name)
    with pytest.raises(ImageError, match=r"no recipe .*: there are debian, debian-i386"):
        store.build(name)


@pytest.mark.usefixtures("archive")
def test_an_archive_without_the_package(store: ImageStore) -> None:
    with pytest.raises(ImageError, match=r"linux-image-686 \(i386\) is in none .* /etc/apt"):
        store.build("debian-i386")
    assert leftovers(store) == []


def test_an_archive_that_lies_about_a_package(archive: Archive, store: ImageStore) -> None:
    for package in (archive.folder / "pool").glob("linux-image-1*"):
        package.write_bytes(package.read_bytes()[:-2000] + b"x" * 2000)
    with pytest.raises(ImageError, match=r"apt-get download: .*: check the network and retry"):
        store.build("debian")
    assert leftovers(store) == []


def test_a_package_without_the_file(archive: Archive, store: ImageStore) -> None:
    archive.kernel = b""
    archive.publish()
    with pytest.raises(ImageError, match=r"holds no complete /boot/vmlinuz-"):
        store.build("debian")
    assert leftovers(store) == []


def test_no_apt_on_this_machine(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match=r"apt-get is not on this machine"):
        store.build("debian")
    assert leftovers(store) == []


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match=r"cannot build debian: .*XDG_CACHE_HOME"):
        ImageStore(tmp_path / "file").build("debian")
