"""TC-CLIP against plain frame-wise CLIP (ViFi-CLIP), both in this library, at the size of ViT-B/16.

    python -m benchmarks.tcclip [--frames 8 16] [--videos 1] [--classes 100] [--repeats 5] [--device cpu]
                                [--out benchmarks/results/tcclip.json]

Weights are random: the arithmetic does not depend on them. The two models take turns, so both see the same
machine, and the ratio is what counts. On a CPU the time is CPU time of one thread (several would count how
long they wait for each other), on a GPU that of events.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dejavid.extract.encoders.tcclip.model import TcClip, build_clip
from dejavid.extract.encoders.tcclip.options import ModelOptions

VIT_B16 = {
    "projection_dim": 512,
    "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
    "vision_config": {"patch_size": 16},
}


def build(method: Any, device: torch.device, dtype: torch.dtype) -> TcClip:
    torch.manual_seed(0)
    model = TcClip(build_clip(VIT_B16), ModelOptions(method=method))
    model.initialise(torch.tensor([320, 1125, 539, 320]))
    return model.to(device, dtype).eval()


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    if device.type != "cuda":
        begin = time.process_time()
        found = call()
        return found, time.process_time() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    found = call()
    end.record()
    torch.cuda.synchronize()
    return found, start.elapsed_time(end) / 1000


@torch.inference_mode()
def measure(
    models: dict[str, TcClip], n_frames: int, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    dtype = next(iter(models["tcclip"].parameters())).dtype
    pixels = torch.randn(arguments.videos, n_frames, 3, 224, 224, device=device, dtype=dtype)
    tokens = torch.zeros(arguments.classes, 30, dtype=torch.long, device=device)
    tokens[:, :9] = torch.tensor([49406, 320, 1125, 539, 320, 2368, 2225, 269, 49407])
    prompts = {name: model.encode_prompts(tokens) for name, model in models.items()}
    times: dict[str, list[float]] = {}

    def take(part: str, name: str, call: Callable[[], Any]) -> Any:
        found, took = timed(call, device)
        times.setdefault(f"{name} {part}", []).append(took)
        return found

    for _ in range(arguments.repeats + 1):
        for name, model in models.items():
            video = take("video", name, lambda m=model: m.encode_video(pixels))
            take("text", name, lambda m=model, v=video, p=prompts[name]: m.logits(v, p))
    medians = {key: statistics.median(values[1:]) for key, values in times.items()}  # the first warms up
    whole = [medians[f"{name} video"] + medians[f"{name} text"] for name in ("tcclip", "vifi_clip")]
    return {
        "frames": n_frames,
        "seconds": {key: round(value, 5) for key, value in medians.items()},
        "ratio_video": round(medians["tcclip video"] / medians["vifi_clip video"], 3),
        "ratio_whole": round(whole[0] / whole[1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--videos", type=int, default=1)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = {name: build(name, device, dtype) for name in ("tcclip", "vifi_clip")}
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "dtype": str(dtype),
        "videos": arguments.videos,
        "classes": arguments.classes,
        "runs": [measure(models, n_frames, arguments, device) for n_frames in arguments.frames],
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
