"""Fixtures of the extraction tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def video_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where videos that several tests read are made once."""
    return tmp_path_factory.mktemp("videos")
