"""Finder of `fastndsm.kernels` and `fastndsm.csrc` in a source checkout, where they stand beside the package.

Installed, they lie inside it and nothing is needed. Nothing else of the checkout becomes a part of the package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

FOLDERS = {f"{__package__}.{name}": name for name in ("csrc", "kernels")}


class CheckoutFinder(MetaPathFinder):
    """Finder of the two folders, as namespace packages."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in FOLDERS:
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(self.root / FOLDERS[fullname])]
        return spec


def expose_kernels_and_sources() -> None:
    """Register the finder, once, if this package lies in a source checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file() or not (root / "csrc").is_dir():
        return
    if not any(type(finder).__qualname__ == CheckoutFinder.__qualname__ for finder in sys.meta_path):
        sys.meta_path.insert(0, CheckoutFinder(root))  # before an editable install of another checkout
