"""A quarter of a million videos, and the page that describes the format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dejavid.store import compact, create_store, folder, open_store

DOCUMENT = Path(__file__).parents[2] / "docs" / "store-format.md"


@pytest.mark.slow
def test_240000_videos_in_1000_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_sync", lambda *paths: None)
    store = create_store(tmp_path, feature_dim=1, fingerprint_facts={})
    with store.writer(flush_rows=240) as writer:
        for number in range(240_000):
            name = f"class_{number % 400:03d}/video_{number:07d}.mp4"
            writer.append(name, [[number % 1000]], start_s=[0], end_s=[1], n_frames=1)
    code = (
        "import pathlib, re, sys; from dejavid.store import open_store; store = open_store(sys.argv[1]);"
        "status = pathlib.Path('/proc/self/status').read_text();"
        "print(len(store), store.get('class_399/video_0239999.mp4').values.item(),"
        "int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)"
    )
    for _ in range(2):  # without and with the index cache
        answer = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
        )
        n_videos, value, megabytes = map(float, answer.stdout.split())
        assert (n_videos, value) == (240_000, 999)
        assert megabytes <= 300
    rng = np.random.default_rng(0)
    ids = open_store(tmp_path).ids()
    chosen = [ids[i] for i in rng.permutation(240_000)[:5000]]
    expected = [int(video_id[-11:-4]) % 1000 for video_id in chosen]
    assert open_store(tmp_path).read(chosen).values[:, 0].tolist() == expected
    assert compact(tmp_path).n_parts_after == 1
    assert open_store(tmp_path).read(chosen).values[:, 0].tolist() == expected


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_the_reader_in_the_format_page_works(tmp_path, stores, format):
    store = create_store(tmp_path, feature_dim=700, fingerprint_facts={}, format=format)
    values = np.random.default_rng(0).standard_normal((1000, 700))
    with store.writer() as writer:
        writer.append("v", values, start_s=np.zeros(1000), end_s=np.ones(1000), n_frames=1)
    (example,) = re.findall(r"```python\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)
    (part,) = (tmp_path / "parts").iterdir()
    names = {"json": json, "np": np, "part": part}
    exec(example, names)
    np.testing.assert_array_equal(names["tse"], values.astype(np.float16))


def test_the_format_page_names_every_array_and_key(tmp_path, stores):
    store = stores.fill(tmp_path, range(3), 3)
    (part,) = (tmp_path / "parts").iterdir()
    text = DOCUMENT.read_text()
    for name in ("STORE.json", "COMMIT.json"):
        for key in json.loads(((tmp_path if name == "STORE.json" else part) / name).read_text()):
            assert f"`{key}`" in text or f'"{key}"' in text or f"`{key}." in text, key
    for name in json.loads((part / "COMMIT.json").read_text())["arrays"]:
        assert f"`{name.replace('logits', 'NAME')}`" in text, name
    assert all(f"`{key}`" in text for key in ("facts", "fingerprint")), store
