"""The stage of `dejavid train --method tcclip`: an open-vocabulary model, trained on videos, not TSEs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .config import Config, dump_config
from .fingerprints import fingerprint
from .stages import StageRecord, StageReport, file_digest, make_room

if TYPE_CHECKING:
    from .distributed import World
    from .extract.encoders.tcclip.training.videos import TrainingSet

# Keys of the section that do not decide what the model becomes, or that the facts tell in another way.
_TOLD_OTHERWISE = {"start", "classes", "split", "checkpoint_s"}


def tcclip_stage(config: Config, *, resume: bool = False, progress: bool = True) -> Iterator[StageReport]:
    """Trains the model of `tcclip.start`; yields its report, under torchrun in the first process only.

    Raises:
        ConfigError, ManifestError, MissingDependencyError: before any work.
        OutOfMemory, PartialResultError, Preempted: see `train_tcclip`.
    """
    from .checkpoint import FILE as CHECKPOINT_FILE
    from .devices import device_of
    from .distributed import joined
    from .extract.encoders.tcclip.training.loop import MODEL_FOLDER, train_tcclip
    from .extract.encoders.tcclip.training.protocols import resolve_protocol
    from .extract.encoders.tcclip.training.videos import read_training_set

    with joined(device_of(config.extract.device, "extract.device")) as world:
        videos = read_training_set(config, shots=resolve_protocol(config.tcclip).shots)
        facts = _facts(config, videos, world)
        folder = config.tcclip_path
        record = StageRecord(config.run.dir, "tcclip")
        if record.stale(facts) is None:
            if world.is_first:
                model = folder / MODEL_FOLDER
                yield StageReport("tcclip", True, "skipped, the model is up to date", (model,), record.data())
            return
        moved = make_room(folder, fingerprint(facts)) if world.is_first else None
        world.wait()
        report = train_tcclip(
            config,
            videos,
            world,
            facts,
            resume=resume and (folder / CHECKPOINT_FILE).exists(),
            progress=progress,
        )
        if not world.is_first:
            return
        kept = report.history[report.kept_epoch]
        data = {"epochs": len(report.history), "kept_epoch": report.kept_epoch, "metrics": kept}
        record.write(facts, [path for path in report.model.iterdir() if path.is_file()], data)
        summary = f"{len(report.history)} epochs on {len(videos.train.jobs)} videos"
        if "val_top1" in kept:
            right = f"{kept['val_correct']} / {kept['val_total']} videos of {config.tcclip.split!r}"
            summary += f", the best one is {report.kept_epoch + 1}: {right}"
        if failed := report.history[-1]["failed"]:
            summary += f"; {failed} could not be decoded: {report.failures}"
        yield StageReport("tcclip", False, summary + (f"; {moved}" if moved else ""), (report.model,), data)


def _facts(config: Config, videos: TrainingSet, world: World) -> dict[str, Any]:
    """What decides the model."""
    from .extract.decode import decoder_facts
    from .extract.encoders.tcclip.convert import MODEL_FILE, OPTIONS_FILE
    from .extract.encoders.tcclip.training.loop import start_of
    from .extract.encoders.tcclip.training.protocols import resolve_protocol

    section, start = dump_config(config)["tcclip"], start_of(config)
    own = {key: value for key, value in section.items() if key not in _TOLD_OTHERWISE}
    files = (start / MODEL_FILE, start / OPTIONS_FILE)
    return {
        "tcclip": {**own, **asdict(resolve_protocol(config.tcclip))},
        # A folder that is not whole is refused, with its reason, when it is loaded.
        "start": [file_digest(path) if path.is_file() else None for path in files],
        "classes": list(videos.classes.names),
        "train": videos.train.digest(),
        "val": videos.val.digest() if videos.val else None,
        "decoder": decoder_facts(config.extract.decoder),
        "folder_fps": config.extract.folder_fps,
        "precision": config.extract.precision,
        "seed": config.run.seed,
        # Every process blends its own micro-batches.
        "processes": world.size,
    }
