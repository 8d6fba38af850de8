"""Shared set-up of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from command import Command, make_command


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One torch thread: small tensors gain nothing from more, and several test runs may share the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `dejavid` in this process."""
    return make_command(monkeypatch, capfd)
