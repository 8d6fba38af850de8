"""What the store's tests share: stores with contents that are known from the video's number."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dejavid.store import Store, StoreWriter, create_store, open_store


class Stores:
    """Makes stores of videos v0, v1, ... whose features follow from their number, and checks what is read."""

    dim = 5

    def values(self, number: int) -> np.ndarray:
        """Integers that every stored dtype can hold; 1 to 9 steps."""
        rng = np.random.default_rng(number)
        return rng.integers(-128, 128, (number % 9 + 1, self.dim)).astype(np.float32)

    def create(self, path: Path, format: str = "zarr", dtype: str = "float16") -> Store:
        return create_store(
            path, feature_dim=self.dim, fingerprint_facts={"encoder": "e"}, format=format, dtype=dtype
        )

    def append(self, writer: StoreWriter, number: int) -> None:
        values = self.values(number)
        steps = np.arange(len(values))
        extras = {"logits": values[:, :2]}
        writer.append(f"v{number}", values, start_s=steps, end_s=steps + 2, n_frames=number, extras=extras)

    def fill(self, path: Path, numbers: range, per_part: int, format: str = "zarr") -> Store:
        """A store with these videos, `per_part` in each part."""
        store = self.create(path, format)
        with store.writer() as writer:
            for count, number in enumerate(numbers, 1):
                self.append(writer, number)
                if count % per_part == 0:
                    writer.flush()
        store.refresh()
        return store

    def check(self, path: Path, numbers: range | set[int]) -> None:
        """Asserts that a store holds exactly these videos, bit for bit."""
        store = open_store(path)
        assert set(store.ids()) == {f"v{n}" for n in numbers}
        for number in numbers:
            self.check_video(store, number)

    def check_video(self, store: Store, number: int) -> None:
        tse, values = store.get(f"v{number}"), self.values(number)
        np.testing.assert_array_equal(tse.values, values)
        np.testing.assert_array_equal(tse.extras["logits"], values[:, :2])
        np.testing.assert_array_equal(tse.end_s, np.arange(len(values)) + 2)
        assert (tse.n_frames, tse.status) == (number, "ok")

    def in_child(self, action: Callable[[], object]) -> int:
        """Runs `action` in a forked process; its exit code, or minus the signal that killed it."""
        child = os.fork()
        if child == 0:
            try:
                action()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def killing(self, point: str, after: int = 0) -> Callable[[str], None]:
        """A failpoint that kills the process at the `after`-th time it reaches `point`."""
        left = after

        def failpoint(name: str) -> None:
            nonlocal left
            if name == point:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        return failpoint


@pytest.fixture
def stores() -> Stores:
    return Stores()
