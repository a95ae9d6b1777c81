"""The native core: the one thing about the build that pyproject.toml cannot say."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup

# By way of the link, so that a source distribution (which holds no links) builds as well.
CORE = Path("rayvisor/vmm/core")

WARNINGS = ["-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]


def unicorn_headers() -> str:
    """The folder of Unicorn's headers, which its wheel carries.

    Raises:
        SystemExit: the build environment has no Unicorn.
    """
    spec = find_spec("unicorn")
    for folder in spec.submodule_search_locations or [] if spec else []:
        headers = Path(folder) / "include"
        if (headers / "unicorn" / "unicorn.h").is_file():
            return str(headers)
    raise SystemExit("no Unicorn headers in the build environment: pip install unicorn==2.1.4")


def native_core() -> list[Extension]:
    """`rayvisor.vmm.core._native`, from every C file of the core.

    Unicorn is opened by dlopen at run time (docs/adr/0002), so it is not linked.
    RAYVISOR_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer.
    """
    sources = sorted(str(path) for path in CORE.glob("*.c"))
    if not sources:
        return []
    sanitize = os.environ.get("RAYVISOR_SANITIZE") == "1"
    optimize = ["-O1", "-g", *SANITIZERS] if sanitize else ["-O2"]
    return [
        Extension(
            "rayvisor.vmm.core._native",
            sources=sources,
            depends=sorted(str(path) for path in CORE.glob("*.h")),
            include_dirs=[str(CORE), unicorn_headers()],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=c17", *WARNINGS, "-fvisibility=hidden", *optimize],
            extra_link_args=SANITIZERS[:1] if sanitize else [],
            libraries=["dl", "pthread"],
            py_limited_api=True,
        )
    ]


setup(
    ext_modules=native_core(),
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
