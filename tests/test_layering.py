"""Who may import whom: read from the source, so that a forbidden import fails before it is ever run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AREAS = ("extract", "store", "kernels", "train", "evaluate")

# area -> the areas it may import; the root's config.py and errors.py are open to all.
ALLOWED = {
    "store": set(),
    "kernels": set(),
    "extract": {"store"},
    "train": {"store", "kernels"},
    "evaluate": {"store", "kernels", "train"},
}
# The only files of evaluate/ that meet videos.
EVALUATE_MEETS_VIDEOS = {"predict.py", "zero_shot.py"}
# third-party module -> the only place it may be imported in
ONLY_IN = {
    "zarr": "store/",
    "h5py": "store/",
    "tensorstore": "store/",
    "obstore": "store/",
    "cupy": "kernels/cuda.py",
    "numba": "kernels/",
    "llvmlite": "kernels/",
}
SOURCES = sorted([*ROOT.glob("*.py"), *(f for area in AREAS for f in (ROOT / area).rglob("*.py"))])


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import; level 0 is absolute, else counted from the package root down."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" if node.module else a.name for a in node.names]
            yield from ((node.level, name) for name in names)


def _area_of(path: Path) -> str | None:
    first = path.relative_to(ROOT).parts[0]
    return first if first in AREAS else None


def _inner_areas(path: Path) -> Iterator[str]:
    """The areas of the package that a file imports from."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for level, name in _imports(path):
        if level:
            target = package[: len(package) - (level - 1)] + name.split(".")
            if target[0] in AREAS:
                yield target[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_the_right_way(path: Path) -> None:
    area = _area_of(path)
    if area is None:
        return  # the root's modules chain the stages and may use all of them
    allowed = ALLOWED[area] | {area}
    if area == "evaluate" and path.name in EVALUATE_MEETS_VIDEOS:
        allowed = allowed | {"extract"}
    assert set(_inner_areas(path)) <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_package_imports_itself_relatively(path: Path) -> None:
    assert not [name for level, name in _imports(path) if level == 0 and name.split(".")[0] == "dejavid"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_third_party_modules_stay_where_they_belong(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for level, name in _imports(path):
        home = ONLY_IN.get(name.split(".")[0]) if level == 0 else None
        assert home is None or place.startswith(home), f"{place} imports {name}, which belongs in {home}"


def test_config_and_errors_import_no_area() -> None:
    for name in ("config.py", "errors.py"):
        assert not set(_inner_areas(ROOT / name))
