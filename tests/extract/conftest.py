"""Fixtures of the extraction tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_extraction import Content, extracted, run_config, write_numbered


@pytest.fixture(scope="session")
def video_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where videos that several tests read are made once."""
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of twelve videos."""
    return write_numbered(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def expected(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What extraction makes of them."""
    return extracted(run_config(manifest, tmp_path_factory.mktemp("expected")))
