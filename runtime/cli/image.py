"""`rayvisor image`: build, list and remove bootable images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayvisor.runtime.cli.output import JsonOption, emit, step
from rayvisor.runtime.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rayvisor.runtime.images import Image


def _complete_kind(incomplete: str) -> Iterator[tuple[str, str]]:
    from rayvisor.runtime.images import RECIPES

    for recipe in RECIPES.values():
        if recipe.name.startswith(incomplete):
            yield recipe.name, recipe.summary


def _complete_name(incomplete: str) -> Iterator[str]:
    from rayvisor.runtime.images import ImageStore

    return (image.name for image in ImageStore().ls() if image.name.startswith(incomplete))


def _as_dict(image: Image) -> dict[str, Any]:
    return {
        "name": image.name,
        "digest": image.digest,
        "size_bytes": image.size_bytes,
        "created": image.created.isoformat(),
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "cmdline": image.cmdline,
        "packages": [package.model_dump() for package in image.packages],
    }


def build(
    kind: Annotated[
        str, typer.Argument(help="What to build.", autocompletion=_complete_kind)
    ] = "debian",
    *,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask for newer packages even if it is built.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build an image from Debian's packages. No root, and no network if it is already built.

    Kinds: debian (amd64), debian-i386.
    """
    from rayvisor.runtime.images import ImageStore

    with step(f"Image {kind}", quiet=as_json) as current:
        image = ImageStore().build(kind, progress=current, refresh=refresh)

    def render() -> RenderableType:
        kernel = image.packages[0]
        return f"{image.name}: {kernel.name} {kernel.version}, {format_bytes(image.size_bytes)}"

    emit(_as_dict(image), as_json=as_json, render=render)


def ls(*, as_json: JsonOption = False) -> None:
    """List the images on this machine."""
    from rayvisor.runtime.images import ImageStore

    store = ImageStore()
    images = store.ls()

    def render() -> RenderableType:
        from rich.table import Table

        if not images:
            return f"No images in {store.root}: `rayvisor image build debian` makes one."
        table = Table("Name", "Kernel", "Size", "Built", "Digest", box=None)
        for image in images:
            table.add_row(
                image.name,
                image.packages[0].version if image.packages else "",
                format_bytes(image.size_bytes),
                f"{image.created:%Y-%m-%d %H:%M}",
                image.digest[:12],
            )
        return table

    emit([_as_dict(image) for image in images], as_json=as_json, render=render)


def rm(
    name: Annotated[str, typer.Argument(help="Which image.", autocompletion=_complete_name)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Remove an image and the files no other image needs."""
    from rayvisor.runtime.images import ImageStore

    freed_bytes = ImageStore().rm(name)
    emit(
        {"name": name, "freed_bytes": freed_bytes},
        as_json=as_json,
        render=lambda: f"{name} removed, {format_bytes(freed_bytes)} freed",
    )


def register(app: typer.Typer) -> None:
    """Add the `image` commands to the application."""
    images = typer.Typer(
        name="image", help="Bootable images on this machine.", no_args_is_help=True
    )
    images.command("build")(build)
    images.command("ls")(ls)
    images.command("rm")(rm)
    app.add_typer(images)
