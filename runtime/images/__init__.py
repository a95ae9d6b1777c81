"""Bootable images: made from Debian's packages, kept by content, verified when used."""

from __future__ import annotations

from rayvisor.runtime.images.cmdline import exec_argument, run_argument, terminal_argument
from rayvisor.runtime.images.cpio import append_files
from rayvisor.runtime.images.guest_init import BANNER_PREFIX
from rayvisor.runtime.images.image import Image
from rayvisor.runtime.images.recipe import RECIPES, Recipe
from rayvisor.runtime.images.store import KINDS, ImageStore

__all__ = [
    "BANNER_PREFIX",
    "KINDS",
    "RECIPES",
    "Image",
    "ImageStore",
    "Recipe",
    "append_files",
    "exec_argument",
    "run_argument",
    "terminal_argument",
]
