"""The images that can be built, and the Debian packages each is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from rayvisor.vmm.errors import ImageError


@dataclass(frozen=True, slots=True)
class Recipe:
    """One kind of image.

    Attributes:
        name: what people call it; also the name of the image.
        architecture: Debian's name of it.
        bits: width of the guest's programs.
        kernel_package: package that depends on the current kernel's package.
        busybox_package: package with a statically linked /bin/busybox.
        summary: half a line for people.
    """

    name: str
    architecture: str
    bits: Literal[32, 64]
    kernel_package: str
    busybox_package: str
    summary: str


RECIPES: Final[dict[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="debian",
            architecture="amd64",
            bits=64,
            kernel_package="linux-image-cloud-amd64",
            busybox_package="busybox-static",
            summary="Debian's cloud kernel for amd64 and a busybox shell",
        ),
        Recipe(
            name="debian-i386",
            architecture="i386",
            bits=32,
            kernel_package="linux-image-686",
            busybox_package="busybox-static",
            summary="Debian's 686 kernel for i386 and a busybox shell",
        ),
    )
}


def find_recipe(kind: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ImageError: there is none.
    """
    recipe = RECIPES.get(kind)
    if recipe is None:
        raise ImageError(f"no recipe for an image {kind!r}: there are {', '.join(RECIPES)}")
    return recipe
