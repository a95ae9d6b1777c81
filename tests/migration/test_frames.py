"""Frames are the bytes they always were, and hostile bytes are refused with one kind of error."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from dataclasses import fields, replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayvisor.migration import frames
from rayvisor.migration.codec import Packer, Unpacker
from rayvisor.migration.config import Codec
from rayvisor.migration.errors import StreamError

SAMPLES: dict[str, frames.Frame] = {
    "hello": frames.Hello(
        version=1,
        features=("delta", "lz4"),
        vm="web",
        memory_bytes=16 << 20,
        page_bytes=4096,
        machine="machine/1",
        token=7,
        tsc_hz=2_800_000_000,
        boot_id="b",
    ),
    "welcome": frames.Welcome(1, ("lz4",), "c"),
    "pages": frames.Pages(
        runs=bytes.fromhex("0300000002000000"),
        zeros=bytes.fromhex("0900000001000000"),
        codec="raw",
        delta=True,
        raw_bytes=8192,
        data=b"\x01\x02",
    ),
    "coming": frames.Coming(bytes.fromhex("0300000002000000")),
    "pace": frames.Pace(urgent=True),
    "round": frames.RoundEnd(3),
    "ack": frames.Ack(12, 34),
    "console": frames.ConsoleOutput(5, b"login: "),
    "state": frames.MachineState({"schema": "machine"}, running=True, stopped_for_ns=9),
    "commit": frames.Commit(),
    "running": frames.Running(8, 1_000, 2_000),
    "done": frames.Done(b"typed"),
    "abort": frames.Abort("no room"),
    "missing": frames.Missing(bytes.fromhex("0300000002000000")),
    "wanted": frames.Wanted((4, 3)),
    "epoch": frames.EpochEnd(
        7, last=True, typed=b"\x81\xa2me\x03", data=frames.pack_state({"schema": "machine"})
    ),
    "guarded": frames.Guarded(7),
    "beat": frames.Beat(),
}

# What each sample is as frame number 5. A change here is a change of the protocol's version.
GOLDEN: dict[str, str] = {
    "hello": (
        "85a46b696e64a568656c6c6fa373657105a373756dce2ca7c76da468656164c47489a77665727369"
        "6f6e01a8666561747572657392a564656c7461a36c7a34a2766da3776562ac6d656d6f72795f6279"
        "746573ce01000000aa706167655f6279746573cd1000a76d616368696e65a96d616368696e652f31"
        "a5746f6b656e07a67473635f687acea6e49c00a7626f6f745f6964a162a464617461c400"
    ),
    "welcome": (
        "85a46b696e64a777656c636f6d65a373657105a373756dce85b39983a468656164c42283a7766572"
        "73696f6e01a8666561747572657391a36c7a34a7626f6f745f6964a163a464617461c400"
    ),
    "pages": (
        "85a46b696e64a57061676573a373657105a373756dceed4a2091a468656164c43e85a472756e73c4"
        "080300000002000000a57a65726f73c4080900000001000000a5636f646563a3726177a564656c74"
        "61c3a97261775f6279746573cd2000a464617461c4020102"
    ),
    "coming": (
        "85a46b696e64a6636f6d696e67a373657105a373756dce7591c1b4a468656164c40180a464617461"
        "c4080300000002000000"
    ),
    "pace": (
        "85a46b696e64a470616365a373657105a373756dce3aa142cda468656164c40981a6757267656e74"
        "c3a464617461c400"
    ),
    "round": (
        "85a46b696e64a5726f756e64a373657105a373756dce0d12fe84a468656164c40981a66e756d6265"
        "7203a464617461c400"
    ),
    "ack": (
        "85a46b696e64a361636ba373657105a373756dcebed7c653a468656164c40e82a47570746f0ca561"
        "745f6e7322a464617461c400"
    ),
    "console": (
        "85a46b696e64a7636f6e736f6c65a373657105a373756dcebb21d36fa468656164c40981a66f6666"
        "73657405a464617461c4076c6f67696e3a20"
    ),
    "state": (
        "85a46b696e64a57374617465a373657105a373756dce7609d642a468656164c43083a57374617465"
        "81a6736368656d61a76d616368696e65a772756e6e696e67c3ae73746f707065645f666f725f6e73"
        "09a464617461c400"
    ),
    "commit": (
        "85a46b696e64a6636f6d6d6974a373657105a373756dcead817b45a468656164c40180a464617461c400"
    ),
    "running": (
        "85a46b696e64a772756e6e696e67a373657105a373756dce115afcbba468656164c42383a5746f6b"
        "656e08aa726573756d65645f6e73cd03e8a96761696e65645f6e73cd07d0a464617461c400"
    ),
    "done": (
        "85a46b696e64a4646f6e65a373657105a373756dced6c47542a468656164c40180a464617461c4057479706564"
    ),
    "abort": (
        "85a46b696e64a561626f7274a373657105a373756dce691b0407a468656164c41081a6726561736f"
        "6ea76e6f20726f6f6da464617461c400"
    ),
    "missing": (
        "85a46b696e64a76d697373696e67a373657105a373756dcec24c3103a468656164c40180a4646174"
        "61c4080300000002000000"
    ),
    "wanted": (
        "85a46b696e64a677616e746564a373657105a373756dce5e68acaaa468656164c40a81a570616765"
        "73920403a464617461c400"
    ),
    "epoch": (
        "85a46b696e64a565706f6368a373657105a373756dceaf200e57a468656164c41b83a565706f6368"
        "07a46c617374c3a57479706564c40581a26d6503a464617461c41081a6736368656d61a76d616368"
        "696e65"
    ),
    "guarded": (
        "85a46b696e64a767756172646564a373657105a373756dceab939786a468656164c40881a565706f636807a464617461c400"
    ),
    "beat": ("85a46b696e64a462656174a373657105a373756dce94bfe3faa468656164c40180a464617461c400"),
}


def test_there_is_a_sample_of_every_kind() -> None:
    assert {type(f) for f in SAMPLES.values()} == set(frames.Frame.__args__)
    assert set(GOLDEN) == set(SAMPLES)


@pytest.mark.parametrize("kind", SAMPLES)
def test_golden_bytes(kind: str) -> None:
    assert frames.encode(5, SAMPLES[kind]).hex() == GOLDEN[kind]
    assert frames.decode(bytes.fromhex(GOLDEN[kind]), 5) == SAMPLES[kind]


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_changed_byte_is_noticed(kind: str) -> None:
    good = frames.encode(5, SAMPLES[kind])
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << (i % 8)
        with pytest.raises(StreamError):
            frames.decode(bytes(bad), 5)


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_shortened_frame_is_noticed(kind: str) -> None:
    good = frames.encode(5, SAMPLES[kind])
    for length in range(len(good)):
        with pytest.raises(StreamError):
            frames.decode(good[:length], 5)


def test_a_lost_frame_is_noticed() -> None:
    with pytest.raises(StreamError, match="frame 6 wanted, found 5"):
        frames.decode(frames.encode(5, frames.Commit()), 6)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StreamError):
        frames.decode(data, 0)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def sealed(kind: object, head: bytes, data: bytes, seq: int = 0) -> bytes:
    """A frame with a right checksum, whatever is in it."""
    total = zlib.crc32(data, zlib.crc32(head, zlib.crc32(f"{kind}:{seq}:".encode())))
    outer = {"kind": kind, "seq": seq, "sum": total, "head": head, "data": data}
    return bytes(msgpack.packb(outer))


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_fields_of_any_type_give_a_frame_or_an_error(kind: str, data: st.DataObject) -> None:
    names = [f.name for f in fields(SAMPLES[kind]) if f.name != "data"]
    head = {name: data.draw(plain, name) for name in names}
    body = data.draw(st.binary(max_size=64), "data")
    frame = sealed(kind, msgpack.packb(head), body)
    with contextlib.suppress(StreamError):
        assert frames.encode(0, frames.decode(frame, 0)) == frame


@given(st.dictionaries(st.text(), plain, max_size=6))
def test_other_keys_are_refused(head: dict[str, object]) -> None:
    with pytest.raises(StreamError):
        frames.decode(sealed("running", msgpack.packb(head), b""), 0)


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32-1
        b"\xdf\xff\xff\xff\xff",  # a map of 2**32-1
        b"\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
        b"\xdb\xff\xff\xff\xff",  # 4 GiB of text
        b"\xdd\x00\x10\x00\x00" * 200_000,  # arrays in arrays, a million entries each
        b"\x91" * 1_000_000,  # deep
        b"\xdc\x0f\xff" * 1000,
        b"\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GiB
    ],
    ids=["array", "map", "bytes", "text", "nested", "deep", "nested-small", "extension"],
)
@pytest.mark.parametrize("place", ["frame", "head"])
def test_a_claimed_size_allocates_nothing(hostile: bytes, place: str) -> None:
    frame = hostile if place == "frame" else sealed("state", hostile, b"")
    tracemalloc.start()
    try:
        with pytest.raises(StreamError):
            frames.decode(frame, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(frame) + (40 << 20)


def test_a_frame_that_is_too_long_is_not_even_read() -> None:
    with pytest.raises(StreamError, match="allowed"):
        frames.decode(bytes(frames.MAX_FRAME_BYTES + 1), 0)


@pytest.mark.parametrize(
    "change",
    [{"codec": "gzip"}, {"raw_bytes": 4095}, {"runs": b"1234567"}, {"zeros": b"1"}],
    ids=lambda change: next(iter(change)),
)
def test_pages_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    pages = SAMPLES["pages"]
    assert isinstance(pages, frames.Pages)
    with pytest.raises(StreamError, match="pages"):
        frames.decode(frames.encode(0, replace(pages, **change)), 0)  # type: ignore[arg-type]


blocks = st.binary(max_size=200) | st.integers(0, 64).map(lambda n: bytes(4096 * n))


@given(blocks, st.sampled_from(list(Codec)))
def test_a_block_comes_out_as_it_went_in(raw: bytes, codec: Codec) -> None:
    packed = Packer().pack(codec, raw)
    assert Unpacker().unpack(codec, packed, len(raw)) == raw
    with pytest.raises(StreamError):
        Unpacker().unpack(codec, packed, len(raw) + 1)


@given(st.binary(max_size=400), st.sampled_from(list(Codec)), st.integers(0, 8192))
def test_a_block_of_random_bytes_is_refused(block: bytes, codec: Codec, raw_bytes: int) -> None:
    try:
        raw = Unpacker().unpack(codec, block, raw_bytes)
    except StreamError:
        return
    assert len(raw) == raw_bytes


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
def test_a_bomb_is_refused_before_it_goes_off(codec: Codec) -> None:
    bomb = Packer().pack(codec, bytes(256 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(StreamError):
            Unpacker().unpack(codec, bomb, 4096)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
