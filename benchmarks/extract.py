"""Extraction end to end against the bare encoder: does the encoder wait for anything?

    python -m benchmarks.extract [--encoder URI] [--videos 120] [--workers 1]
                                 [--out benchmarks/results/extract.json]

Makes its own videos, extracts them, then encodes the same number of batches alone in the same process. The
ratio is what counts: both parts see the same machine. `--giant` times VideoMAE V2-g's forward instead, random
weights at full size, for several batch sizes, with and without torch.compile; it needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from dejavid.config import load_config
from dejavid.extract import Row, extract_videos, load_encoder, write_manifest
from dejavid.extract.encoders import ClipEncoder, Options
from dejavid.extract.encoders.base import ClipSpec, TorchEncoder
from dejavid.extract.encoders.videomae2 import build_model, embed

GFLOP_PER_CLIP = 5085.6  # V2-g, 16 x 224 x 224, two per multiply-add
FRAMES, SIZE = 75, (176, 144)


def make_videos(folder: Path, count: int) -> Path:
    """Clips like the demo's: small, three seconds, moving texture."""
    rows = []
    width, height = SIZE
    for number in range(count):
        texture = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        picture = np.kron(texture, np.ones((8, 8, 1), np.uint8))
        path = folder / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for shift in range(FRAMES):
                image = np.ascontiguousarray(np.roll(picture, 2 * shift, axis=1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        rows.append(Row(str(number), path.name, "x", "train"))
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def time_encoder(encoder: ClipEncoder, batch_size: int, batches: int) -> float:
    """Seconds for encoding one random batch again and again, results brought to the CPU."""
    spec = encoder.spec
    shape = (batch_size, spec.frames, spec.height, spec.width, 3)
    batch = torch.randint(0, 256, shape, dtype=torch.uint8, device=encoder.device)
    encoder.encode(batch).features.cpu()
    begin = time.perf_counter()
    for _ in range(batches):
        encoder.encode(batch).features.cpu()
    return time.perf_counter() - begin


def end_to_end(arguments: argparse.Namespace) -> dict[str, Any]:
    """Extraction, then the bare encoder on as many batches."""
    folder = Path(tempfile.mkdtemp(prefix="dejavid-bench-"))
    try:
        manifest = make_videos(folder, arguments.videos)
        overrides = [
            f"manifest.path={manifest}",
            f"run.dir={folder / 'run'}",
            f"extract.encoder='{arguments.encoder}'",
            f"extract.workers={arguments.workers}",
            f"extract.batch_size={arguments.batch_size}",
        ]
        config = load_config(None, overrides)
        encoder = load_encoder(arguments.encoder)
        time_encoder(encoder, arguments.batch_size, 2)
        begin = time.perf_counter()
        report = extract_videos(config, progress=False)
        total_s = time.perf_counter() - begin
    finally:
        shutil.rmtree(folder)
    bare_s = time_encoder(encoder, arguments.batch_size, report.n_batches)
    loop_s = sum(report.stage_s[stage] for stage in ("wait", "gather", "encode", "write"))
    return {
        "encoder": arguments.encoder,
        "workers": arguments.workers,
        "videos": report.n_done,
        "windows": report.n_windows,
        "batches": report.n_batches,
        "batch_size": arguments.batch_size,
        "total_s": total_s,
        "stage_s": report.stage_s,
        "clips_per_s": report.n_batches * arguments.batch_size / loop_s,
        # The time inside the encoder over the time from the first frame to the end: both under the same load.
        "encoder_share_of_loop": report.stage_s["encode"] / loop_s,
        # The same batches alone, afterwards: means something on a quiet machine.
        "bare_over_loop": bare_s / loop_s,
    }


def giant(batch_sizes: list[int]) -> list[dict[str, Any]]:
    """Clips per second and share of the peak of VideoMAE V2-g in bfloat16, for each batch size."""
    device = torch.device("cuda")
    peak = measured_peak(device)
    results = []
    for compile in (False, True):
        encoder = make_giant(Options(device, torch.bfloat16, compile, {}))
        for batch_size in batch_sizes:
            time_encoder(encoder, batch_size, 3)
            rate = 10 * batch_size / time_encoder(encoder, batch_size, 10)
            flops = rate * GFLOP_PER_CLIP * 1e9
            results.append(
                {
                    "batch_size": batch_size,
                    "compile": compile,
                    "clips_per_s": rate,
                    "tflops": flops / 1e12,
                    "of_measured_matmul_peak": flops / peak,
                }
            )
            print(results[-1], flush=True)
    return results


def make_giant(options: Options, *, width: int = 1408, depth: int = 40, heads: int = 16) -> TorchEncoder:
    """VideoMAE V2 with random weights, 6144 / 1408 of the width in the MLP."""
    hidden = width * 48 // 11
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (width, 3, 2, 14, 14)}
    for block in (f"blocks.{k}." for k in range(depth)):
        for name in (
            "norm1.weight",
            "norm1.bias",
            "norm2.weight",
            "norm2.bias",
            "attn.q_bias",
            "attn.v_bias",
        ):
            shapes[block + name] = (width,)
        shapes[block + "attn.qkv.weight"] = (3 * width, width)
        shapes |= {block + "attn.proj.weight": (width, width), block + "attn.proj.bias": (width,)}
        shapes |= {block + "mlp.fc1.weight": (hidden, width), block + "mlp.fc1.bias": (hidden,)}
        shapes |= {block + "mlp.fc2.weight": (width, hidden), block + "mlp.fc2.bias": (width,)}
    for name in ("patch_embed.proj.bias", "fc_norm.weight", "fc_norm.bias"):
        shapes[name] = (width,)
    state = {name: 0.02 * torch.randn(shape, dtype=options.dtype) for name, shape in shapes.items()}
    spec = ClipSpec(16, 224, 224)
    model = build_model(state, spec, heads, Path("random"))
    table = model.videomae.embeddings.position_embeddings
    model.videomae.embeddings.position_embeddings = table.to(options.device, options.dtype)
    return TorchEncoder(
        family="videomae2-random",
        model=model,
        head=None,
        spec=spec,
        feature_dim=width,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        layout="BTCHW",
        embed=embed,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
    )


def measured_peak(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a large bfloat16 matrix product: what this device really reaches."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        left @ right
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        left @ right
    torch.cuda.synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="demo:efficientnet-lite0?size=128")
    parser.add_argument("--videos", type=int, default=120)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--giant", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/extract.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
            "threads": arguments.threads,
        }
    }
    if arguments.giant:
        result["giant"] = giant([8, 16, 32, 64])
    else:
        result["end_to_end"] = end_to_end(arguments)
    print(json.dumps(result, indent=2))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
