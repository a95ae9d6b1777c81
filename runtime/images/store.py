"""Images on this machine's disk: build, look up, list, remove.

Below the store's root:

    images/NAME.json    one manifest an image; its appearance is what makes an image exist
    objects/ab/abcd...  kernels, programs and initrds, named by their SHA-256
    tmp/KIND-RANDOM/    work of one build, swept once nobody holds KIND's lock
    locks/              one lock a kind (held for a build), one for the store (held for moments)

A build works in tmp/ and publishes at its end: objects first, manifest last, each by a rename. So
whatever ends it (an error, ctrl-C, a kill, a power cut) leaves the images as they were.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rayvisor.runtime.config import cache_dir
from rayvisor.runtime.images import cmdline, initramfs
from rayvisor.runtime.images.builder import Fetcher, Parts
from rayvisor.runtime.images.image import Image
from rayvisor.runtime.images.locks import locked, try_locked
from rayvisor.runtime.images.manifest import NAME_PATTERN, Manifest, read_manifest
from rayvisor.runtime.images.objects import ObjectStore, sync_folder, write_atomically
from rayvisor.runtime.images.recipe import RECIPES, Recipe, find_recipe
from rayvisor.vmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rayvisor.runtime.images.builder import Progress

_log = logging.getLogger(__name__)
_NAME = re.compile(NAME_PATTERN, re.ASCII)

KINDS = tuple(RECIPES)
"""What `build` can make."""


class ImageStore:
    """The images of one folder. Several processes may use the same one.

    Args:
        root: the folder; by default Rayvisor's part of the XDG cache folder. Made when needed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root if root is not None else cache_dir()
        self._objects = ObjectStore(self._root / "objects")

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self._root

    def build(self, kind: str, progress: Progress | None = None, *, refresh: bool = False) -> Image:
        """Make the image of a recipe, or give the one that is there.

        An image that is there, whole and made by this version of Rayvisor is given back at once
        and needs no network. If only the init has changed, it is packed anew from the stored parts.

        Args:
            kind: name of a recipe: "debian" or "debian-i386".
            progress: called with what is being done, and with a fraction where one is known.
            refresh: ask Debian's archive for newer packages even if the image is whole.

        Raises:
            ImageError: no such recipe, no apt, no network, no space.
        """
        recipe = find_recipe(kind)
        tell: Progress = progress if progress is not None else lambda _message, _fraction: None
        with (
            self._storage_errors(f"build {kind}"),
            locked(
                self._kind_lock(kind),
                waiting=lambda: tell(f"Waiting for another build of {kind}", None),
            ) as lock_fd,
        ):
            self._sweep_scratch(held=kind)
            old = self._whole(kind)
            if old is not None and not refresh:
                return self._publish(recipe, self._parts(old), old, tell)
            with self._scratch(kind) as scratch:
                fetcher = Fetcher(recipe, scratch / "apt", tell, keep_fd=lock_fd)
                if old is not None and fetcher.look_up() == old.packages:
                    return self._publish(recipe, self._parts(old), old, tell)
                return self._publish(recipe, fetcher.fetch(), old, tell)

    def get(self, name: str) -> Image:
        """The image of that name, verified.

        Raises:
            ImageError: no such image (the message lists those there are), or a damaged one.
        """
        manifest = self._manifest(name)
        if manifest is None:
            raise ImageError(self._unknown(name))
        try:
            self._verify(manifest)
        except ImageError:
            # A build that replaced the image meanwhile took the old objects with it.
            newer = self._manifest(name)
            if newer is None or newer == manifest:
                raise
            self._verify(newer)
            manifest = newer
        return self._image(manifest)

    def ls(self) -> list[Image]:
        """The images, by name, not verified. A damaged manifest is logged and left out."""
        images = []
        for name in self._names():
            try:
                manifest = self._manifest(name)
            except ImageError as error:
                _log.warning("%s", error)
                continue
            if manifest is not None:
                images.append(self._image(manifest))
        return images

    def rm(self, name: str) -> int:
        """Remove an image, damaged or not, and the objects nobody else needs.

        A machine that booted from it is not affected.

        Returns:
            Bytes freed on disk.

        Raises:
            ImageError: no such image.
        """
        with self._storage_errors(f"remove {name}"), locked(self._store_lock()):
            if name not in self._names():
                raise ImageError(self._unknown(name))
            self._manifest_path(name).unlink()
            sync_folder(self._root / "images")
            freed_bytes = self._remove_unreferenced()
        with self._storage_errors(f"remove {name}"):
            self._sweep_scratch()
        return freed_bytes

    # What is there

    def _names(self) -> list[str]:
        paths = (self._root / "images").glob("*.json")
        return sorted(path.stem for path in paths if _NAME.fullmatch(path.stem))

    def _manifest_path(self, name: str) -> Path:
        return self._root / "images" / f"{name}.json"

    def _store_lock(self) -> Path:
        return self._root / "locks/store"

    def _kind_lock(self, kind: str) -> Path:
        return self._root / "locks" / f"{kind}.build"

    def _manifest(self, name: str) -> Manifest | None:
        if not _NAME.fullmatch(name):
            return None
        return read_manifest(self._manifest_path(name))

    def _unknown(self, name: str) -> str:
        known = ", ".join(self._names()) or "none"
        kind = name if name in RECIPES else next(iter(RECIPES))
        return f"no image {name!r}: there are {known}; `rayvisor image build {kind}` makes {kind}"

    def _verify(self, manifest: Manifest) -> None:
        way_out = f"`rayvisor image build {manifest.name}` repairs it"
        for record in manifest.objects():
            self._objects.read(record, what=f"image {manifest.name}", way_out=way_out)

    def _whole(self, name: str) -> Manifest | None:
        """The manifest of an image that passes every check, or None."""
        try:
            manifest = self._manifest(name)
            if manifest is not None:
                self._verify(manifest)
        except ImageError as error:
            _log.info("building again: %s", error)
            return None
        return manifest

    def _parts(self, manifest: Manifest) -> Parts:
        way_out = f"`rayvisor image build {manifest.name}` repairs it"
        what = f"image {manifest.name}"
        return Parts(
            kernel=self._objects.read(manifest.kernel, what=what, way_out=way_out),
            busybox=self._objects.read(manifest.busybox, what=what, way_out=way_out),
            packages=manifest.packages,
        )

    def _image(self, manifest: Manifest) -> Image:
        identity = f"{manifest.kernel.sha256} {manifest.initrd.sha256} {manifest.cmdline}"
        return Image(
            name=manifest.name,
            kernel=self._objects.path(manifest.kernel.sha256),
            initrd=self._objects.path(manifest.initrd.sha256),
            cmdline=manifest.cmdline,
            digest=hashlib.sha256(identity.encode()).hexdigest(),
            size_bytes=sum(record.size_bytes for record in manifest.objects()),
            created=manifest.created,
            packages=manifest.packages,
            kernel_sha256=manifest.kernel.sha256,
            initrd_sha256=manifest.initrd.sha256,
        )

    # Changing it

    def _publish(self, recipe: Recipe, parts: Parts, old: Manifest | None, tell: Progress) -> Image:
        """Pack the initrd and make the image visible, unless that is what `old` already is."""
        initrd = initramfs.build(parts.busybox, bits=recipe.bits)
        arguments = cmdline.default_command_line()
        if (
            old is not None
            and old.packages == parts.packages
            and old.initrd.sha256 == hashlib.sha256(initrd).hexdigest()
            and old.cmdline == arguments
        ):
            return self._image(old)
        tell(f"Storing image {recipe.name}", None)
        with self._scratch(recipe.name) as scratch, locked(self._store_lock()):
            manifest = Manifest(
                name=recipe.name,
                created=datetime.now(UTC).replace(microsecond=0),
                cmdline=arguments,
                kernel=self._objects.put(parts.kernel, scratch),
                busybox=self._objects.put(parts.busybox, scratch),
                initrd=self._objects.put(initrd, scratch),
                packages=parts.packages,
            )
            text = manifest.model_dump_json(indent=2) + "\n"
            write_atomically(self._manifest_path(recipe.name), text.encode(), scratch)
            self._remove_unreferenced()
        return self._image(manifest)

    def _remove_unreferenced(self) -> int:
        """Drop objects no image needs; call with the store's lock held. Gives bytes freed."""
        wanted: set[str] = set()
        for name in self._names():
            try:
                manifest = self._manifest(name)
            except ImageError as error:
                _log.warning("%s", error)
                continue
            if manifest is not None:
                wanted.update(record.sha256 for record in manifest.objects())
        return self._objects.remove_all_but(wanted)

    @contextmanager
    def _scratch(self, kind: str) -> Iterator[Path]:
        """A folder for one build; call with the kind's lock held."""
        parent = self._root / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=parent)).resolve()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep_scratch(self, *, held: str | None = None) -> None:
        """Remove what killed builds left.

        Args:
            held: the kind whose lock the caller holds; any other's is tried first.
        """
        for folder in (self._root / "tmp").glob("*-*"):
            kind = folder.name.rpartition("-")[0]
            if kind == held:
                shutil.rmtree(folder, ignore_errors=True)
            elif _NAME.fullmatch(kind):
                with try_locked(self._kind_lock(kind)) as free:
                    if free:
                        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _storage_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            raise ImageError(
                f"cannot {what}: {where}{error.strerror}: free it, or set XDG_CACHE_HOME to a"
                " folder that can be written"
            ) from error
