"""The cpio writer, against a reader of its own and against busybox's."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.runtime.images import append_files, cpio
from rayvisor.vmm.errors import ImageError


def unpack(data: bytes) -> list[list[cpio.Entry]]:
    """The archives in an initrd, by the rules of the kernel's init/initramfs.c."""
    archives: list[list[cpio.Entry]] = []
    entries: list[cpio.Entry] = []
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, check = fields
        assert (uid, gid, mtime, check) == (0, 0, 0, 0)
        at += 110
        name = data[at : at + name_size]
        assert name.endswith(b"\0")
        at += name_size
        at += -at % 4
        content = data[at : at + size]
        assert len(content) == size
        at += size
        at += -at % 4
        if name == b"TRAILER!!!\0":
            archives.append(entries)
            entries = []
        else:
            entries.append(cpio.Entry(name[:-1].decode(), mode, content, (major, minor)))
    assert not entries, "no trailer"
    return archives


names = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name not in {".", ".."})
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
entries_of = st.dictionaries(
    paths.filter(lambda path: path != "TRAILER!!!"),
    st.one_of(
        st.builds(lambda d, m: ("file", d, m), st.binary(max_size=40), st.integers(0, 0o7777)),
        st.builds(lambda m: ("directory", b"", m), st.integers(0, 0o7777)),
        st.builds(lambda t: ("symlink", t.encode(), 0o777), paths),
    ),
    max_size=12,
)
KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}


@given(entries_of)
def test_what_is_packed_is_read_back(tree: dict[str, tuple[str, bytes, int]]) -> None:
    entries = [
        cpio.Entry(path, KINDS[kind] | mode, data) for path, (kind, data, mode) in tree.items()
    ]
    packed = cpio.pack(entries)
    assert unpack(packed) == [sorted(entries, key=lambda entry: entry.path)]
    assert cpio.pack(reversed(entries)) == packed, "the order given does not matter"


@given(st.binary(max_size=9), st.dictionaries(paths, st.binary(max_size=40), max_size=6))
def test_appended_files_are_read_back(head: bytes, files: dict[str, bytes]) -> None:
    base = cpio.pack([cpio.file("base", head)])
    wanted = {f"/{path}": data for path, data in files.items()}
    parents = {
        str(parent)
        for path in files
        for parent in PurePosixPath(path).parents
        if str(parent) != "."
    }
    if parents & files.keys() or "TRAILER!!!" in files:
        with pytest.raises(ImageError, match="rename"):
            append_files(base, wanted)
        return
    combined = append_files(base, wanted)
    assert combined.startswith(base)
    first, second = unpack(combined)
    assert [entry.path for entry in first] == ["base"]
    assert {e.path: e.data for e in second if stat.S_ISREG(e.mode)} == files
    assert {e.path for e in second if stat.S_ISDIR(e.mode)} == parents


def test_parents_come_before_what_they_hold() -> None:
    (entries,) = unpack(append_files(b"", {"/a/b/c/d": b"x", "/a-b": b"y"}))
    seen: set[str] = set()
    for entry in entries:
        parent = str(PurePosixPath(entry.path).parent)
        assert parent in seen | {"."}
        seen.add(entry.path)


def test_a_compressed_initrd_of_odd_length_can_be_extended() -> None:
    combined = append_files(b"\x1f\x8bodd", {"/f": b"x"})
    assert combined[:8] == b"\x1f\x8bodd\0\0\0"
    assert unpack(combined[8:])[0][0].path == "f"


def test_programs_are_executable(tmp_path: Path) -> None:
    program, text = tmp_path / "program", tmp_path / "text"
    program.write_bytes(b"anything")
    program.chmod(0o750)
    text.write_bytes(b"anything")
    text.chmod(0o644)
    files: dict[str, bytes | Path] = {
        "/program": program,
        "/text": text,
        "/elf": b"\x7fELF...",
        "/script": b"#!/bin/sh\n",
        "/data": b"data",
    }
    (entries,) = unpack(append_files(b"", files))
    assert {entry.path: stat.S_IMODE(entry.mode) for entry in entries} == {
        "program": 0o755,
        "text": 0o644,
        "elf": 0o755,
        "script": 0o755,
        "data": 0o644,
    }


@pytest.mark.parametrize(
    "path", ["relative", "/", "/a/", "//a", "/a/../b", "/./a", "/a\0b", "", "/TRAILER!!!"]
)
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ImageError, match="initramfs: ") as info:
        append_files(b"", {path: b"x"})
    assert "\n" not in str(info.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"initramfs: cannot read .*missing: No such file"):
        append_files(b"", {"/f": tmp_path / "missing"})


def test_a_path_given_twice() -> None:
    with pytest.raises(ImageError, match="/a is given twice"):
        cpio.pack([cpio.file("a", b"1"), cpio.directory("a")])


@pytest.mark.parametrize("target", ["", "x" * 4096])
def test_a_link_the_kernel_would_skip(target: str) -> None:
    with pytest.raises(ImageError, match="link /a needs a target of 1 to 4095 bytes"):
        cpio.pack([cpio.symlink("a", target)])


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox's cpio")
def test_busybox_agrees(tmp_path: Path) -> None:
    data = cpio.pack(
        [
            cpio.directory("d", 0o1777),
            cpio.file("d/f", b"content", 0o640),
            cpio.symlink("d/l", "../elsewhere"),
            cpio.character_device("console", 5, 1),
            cpio.file("odd", b"12345"),
        ]
    )
    archive = tmp_path / "a.cpio"
    archive.write_bytes(data)
    with archive.open("rb") as source:
        listing = subprocess.run(
            ["busybox", "cpio", "-tv"], stdin=source, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    assert [(line.split()[0], line.split("1970-01-01 00:00:00 ")[1]) for line in listing] == [
        ("crw-------", "console"),
        ("drwxrwxrwt", "d"),
        ("-rw-r-----", "d/f"),
        ("lrwxrwxrwx", "d/l -> ../elsewhere"),
        ("-rw-r--r--", "odd"),
    ]
    assert unpack(data)[0][0].device == (5, 1), "busybox does not list these"
    with archive.open("rb") as source:
        subprocess.run(
            ["busybox", "cpio", "-id", "odd", "d/f"], stdin=source, cwd=tmp_path, check=True,
            capture_output=True,
        )  # fmt: skip
    assert (tmp_path / "odd").read_bytes() == b"12345"
    assert (tmp_path / "d/f").read_bytes() == b"content"
