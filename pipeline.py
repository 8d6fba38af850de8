"""The stages of `pipeline.yaml`, chained: manifest, extract, centroids, train, evaluate, report.

Each stage is a function of the configuration that returns a `StageReport`. A stage is skipped only when what
it was made from (its facts) is unchanged *and* every file it left is still what it wrote; the record of both
is `<run.dir>/stages/<name>.json`. Extraction needs no record: it resumes video by video from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .config import Config, dump_config
from .errors import ConfigError, MissingDependencyError, StoreVersionError
from .files import write_atomically
from .fingerprints import fingerprint
from .splits import TRAIN_SPLIT, SplitVideos, open_run_store, split_videos, training_videos
from .stages import StageRecord, StageReport, file_digest, make_room, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from .distributed import World
    from .evaluate.task import Task
    from .extract import ExtractReport
    from .store import Store
    from .train import DejaVidHead
    from .train.data import Samples

Say = Callable[[str], None]

CENTROIDS_FILE = "centroids.safetensors"
EXTRACT_FILE = "extract.json"


def manifest_stage(config: Config) -> StageReport:
    """Checks the manifest: every problem is listed before any work starts."""
    from .extract import check_manifest, read_manifest

    manifest = read_manifest(config.manifest.path, config.manifest.root)
    check_manifest(manifest)
    splits: dict[str, int] = {}
    for row in manifest.rows:
        splits[row.split] = splits.get(row.split, 0) + 1
    classes = len({row.label for row in manifest.rows})
    counts = ", ".join(f"{n} {split}" for split, n in sorted(splits.items()))
    return StageReport(
        "manifest",
        False,
        f"{counts} videos of {classes} classes",
        (config.manifest.path,),
        {"splits": splits},
    )


def extract_stage(
    config: Config, *, shard: str | None = None, retry_failed: bool = False, progress: bool = True
) -> StageReport:
    """Videos -> TSEs; only those that the store does not hold yet."""
    from .extract import extract_videos

    return _extract_report(
        config, extract_videos(config, shard=shard, retry_failed=retry_failed, progress=progress)
    )


def distributed_extract_stage(
    config: Config,
    *,
    executor: str,
    shards: int,
    parameters: Sequence[str] = (),
    retry_failed: bool = False,
    progress: bool = True,
) -> StageReport:
    """`extract_stage` as `shards` jobs of submitit ("submitit") or actors of Ray ("ray").

    Args:
        parameters: NAME=VALUE for the executor, values in YAML.
    """
    from .config import parse_assignments
    from .extract.cluster import extract_on_ray, extract_on_slurm

    given = parse_assignments(parameters, "--parameter")
    common: dict[str, Any] = {"retry_failed": retry_failed, "progress": progress}
    if executor == "ray":
        unknown = sorted(given.keys() - {"cpus", "gpus"})
        if unknown:
            raise ConfigError(
                f"Ray has no parameter {', '.join(unknown)}", where="--parameter", fix="cpus=2 or gpus=1"
            )
        return _extract_report(config, extract_on_ray(config, workers=shards, **given, **common))
    return _extract_report(config, extract_on_slurm(config, shards=shards, parameters=given, **common))


def _extract_report(config: Config, report: ExtractReport) -> StageReport:
    skipped = report.n_done == 0
    summary = f"{report.n_done} videos, {report.n_windows} windows, {report.n_skipped} were in the store"
    if skipped:
        summary = f"skipped, {report.n_skipped} of {report.n_videos} videos are in the store"
    if report.n_failed:
        summary += f", {report.n_failed} failed: {report.failures_path}"
    paths = (config.store_path,) + ((report.failures_path,) if report.n_failed else ())
    return StageReport("extract", skipped, summary, paths, asdict(report))


def head_stages(config: Config, *, resume: bool = False, progress: bool = True) -> Iterator[StageReport]:
    """Centroids, then the head; yields each report as its stage ends.

    Under torchrun by all its processes: the first one makes the centroids.
    """
    from .devices import device_of
    from .distributed import joined

    with joined(device_of(config.train.device)) as world:
        if world.is_first:
            yield centroids_stage(config, progress=progress)
        world.wait()
        report = train_stage(config, world, resume=resume, progress=progress)
        if world.is_first:
            yield report


def centroids_stage(config: Config, *, progress: bool = True) -> StageReport:
    """DBA: one centroid TSE per class of the training split."""
    store = open_run_store(config)
    videos = training_videos(config, store)
    facts = _centroid_facts(config, store, videos)
    path = config.run.dir / CENTROIDS_FILE
    record = StageRecord(config.run.dir, "centroids")
    why = record.stale(facts)
    if why is None:
        return StageReport("centroids", True, "skipped, they are up to date", (path,), record.data())

    from .train import fit_centroids
    from .train.data import read_stored
    from .train.dba import reservoir

    section, seed = config.centroids, config.run.seed
    # Only what DBA will read is loaded: at most `max_per_class` videos of each class.
    mine = _kept_and_held(config, videos)[0].numpy()
    kept = reservoir(videos.targets[mine], section.max_per_class, seed)
    chosen = [int(mine[position]) for positions in kept.values() for position in positions]
    values, offsets = read_stored(store, [videos.ids[i] for i in chosen])
    found = fit_centroids(
        values,
        offsets,
        videos.targets[chosen],
        class_names=videos.class_names,
        seed=seed,
        step_pattern=config.train.step_pattern,
        backend=config.train.backend,
        progress=progress,
        **section.model_dump(),
    )
    config.run.dir.mkdir(parents=True, exist_ok=True)
    found.save(path)
    data = {
        "class_names": list(videos.class_names),
        "n_updates": list(found.n_updates),
        "converged": list(found.converged),
    }
    record.write(facts, [path], data)
    summary = f"{len(kept)} classes x {section.length} steps from {len(chosen)} videos"
    if not all(found.converged):
        summary += (
            f"; {len(kept) - sum(found.converged)} classes had not converged after {section.max_iter} updates"
        )
    return StageReport("centroids", False, summary, (path,), data)


def train_stage(config: Config, world: World, *, resume: bool = False, progress: bool = True) -> StageReport:
    """The head, trained from the centroids."""
    from .train.loop import ELSEWHERE

    store = open_run_store(config)
    videos = training_videos(config, store)
    facts = {
        "centroids": _centroid_facts(config, store, videos),
        # Where and how fast a head is computed is no part of what it is.
        "train": config.train.model_dump(mode="json", exclude=ELSEWHERE),
        "seed": config.run.seed,
    }
    folder = config.head_path
    record = StageRecord(config.run.dir, "train")
    if record.stale(facts) is None:
        return StageReport("train", True, "skipped, the head is up to date", (folder,), record.data())

    import torch

    from .checkpoint import FILE as CHECKPOINT_FILE
    from .devices import device_of
    from .train import train_head
    from .train.centroids import load_centroids
    from .train.data import load_samples

    options = config.train
    moved = make_room(folder, fingerprint(facts)) if world.is_first else None
    world.wait()
    head = load_centroids(config.run.dir / CENTROIDS_FILE).head(
        step_pattern=options.step_pattern, logits=options.logits
    )
    head.fingerprints = {"extract_fp": store.fingerprint, "head_fp": fingerprint(facts)}
    targets = torch.from_numpy(videos.targets)
    kept, held = _kept_and_held(config, videos)

    def samples(positions: torch.Tensor) -> Samples:
        ids = [videos.ids[i] for i in positions.tolist()]
        return load_samples(
            store, ids, targets[positions], device=device_of(options.device), data=options.data
        )

    report = train_head(
        head,
        samples(kept),
        samples(held) if len(held) else None,
        options=options,
        seed=config.run.seed,
        out_dir=folder,
        resume=resume and (folder / CHECKPOINT_FILE).exists(),
        progress=progress,
    )
    last = report.history[report.kept_epoch] if report.kept_epoch is not None else {}
    data = {"epochs": len(report.history), "kept_epoch": report.kept_epoch, "metrics": last}
    if world.is_first:
        # What `dejavid predict` has to do to a video before this head can read it.
        write_json(
            folder / EXTRACT_FILE,
            {
                "extract": dump_config(config)["extract"],
                "facts": store.facts,
                "feature_dim": store.feature_dim,
                "dtype": store.dtype,
            },
        )
        outputs = [folder / name for name in ("head.safetensors", "head.json", EXTRACT_FILE)]
        record.write(facts, outputs, data)
    summary = f"{len(report.history)} epochs on {len(kept)} videos"
    if "train_accuracy" in last:
        summary += f", {100 * last['train_accuracy']:.1f} % of them right in the last"
    return StageReport("train", False, summary + (f"; {moved}" if moved else ""), (folder,), data)


def grid_stage(config: Config, items: Sequence[str], *, progress: bool = True) -> StageReport:
    """A head per combination of some keys, on the training split alone; writes <run.dir>/grid."""
    import torch

    from .devices import device_of
    from .train.data import load_samples
    from .train.grid import parse_grid, train_grid

    grid = parse_grid(items)
    store = open_run_store(config)
    videos = training_videos(config, store)
    samples = load_samples(
        store,
        videos.ids,
        torch.from_numpy(videos.targets),
        device=device_of(config.train.device),
        data=config.train.data,
    )
    folder = config.run.dir / "grid"
    points = train_grid(
        samples,
        videos.class_names,
        grid,
        config=config,
        out_dir=folder,
        fingerprints={"extract_fp": store.fingerprint, "videos": fingerprint({"ids": videos.ids})},
        progress=progress,
    )
    best = points[0]
    changes = ", ".join(f"{key}={value}" for key, value in best.changes.items())
    summary = f"best of {len(points)}: {changes}, {100 * best.val_accuracy:.1f} % of the held-out videos"
    return StageReport("grid", False, summary, (folder / "grid.csv",), {"points": len(points)})


def evaluate_stage(config: Config, *, progress: bool = False) -> StageReport:
    """The head and the baselines on the videos of `evaluate.split`; writes results.json and its tables."""
    from .evaluate.baselines import ALL, HEAD, chosen_methods
    from .evaluate.evaluation import evaluate, results, write_evaluation

    section = config.evaluate
    names = chosen_methods(section.baselines, ablation=section.ablation)
    task = evaluation_task(config, progress=progress)
    facts = {
        "head": file_digest(config.head_path / "head.safetensors"),
        "centroids": file_digest(config.run.dir / CENTROIDS_FILE),
        "extract_fp": task.store.fingerprint,
        "trained_on": fingerprint({"ids": task.train_ids, "targets": task.train_targets.tolist()}),
        "scored": fingerprint({"ids": list(task.split.ids), "targets": task.split.targets.tolist()}),
        "with_tse": fingerprint({"lengths": task.split.lengths.tolist()}),
        "evaluate": dump_config(config)["evaluate"],
    }
    record = StageRecord(config.run.dir, "evaluate")
    if record.stale(facts) is None:
        return StageReport(
            "evaluate", True, "skipped, the numbers are up to date", record.paths(), record.data()
        )
    evaluation = evaluate(task, names, missing=section.missing, optional=ALL in section.baselines)
    paths = write_evaluation(evaluation, config.run.dir, {"fingerprints": task.head.fingerprints})
    best = evaluation.summaries[HEAD]
    summary = f"top-1 {best.n_correct} / {best.n_denominator} videos of {section.split!r}"
    data = results(evaluation)
    record.write(facts, paths, data)
    return StageReport("evaluate", False, summary, tuple(paths), data)


def evaluation_task(config: Config, *, progress: bool = False) -> Task:
    """The head, the store and the videos of `evaluate.split`, checked to belong together."""
    from .evaluate.task import Task, make_split
    from .store.labels import read_labels
    from .train import DejaVidHead
    from .train.centroids import load_centroids

    section = config.evaluate
    store = open_run_store(config)
    head = DejaVidHead.load(config.head_path, backend=config.train.backend)
    _check_head(head, store, config)
    training = split_videos(config, store, TRAIN_SPLIT, head.class_names)
    videos = split_videos(config, store, section.split, head.class_names)
    labels = {
        i: row.label for i, row in read_labels(config.manifest.path).items() if row.split == section.split
    }
    lengths = dict(zip(videos.ids, store.lengths(videos.ids).tolist(), strict=True))
    return Task(
        config=config,
        store=store,
        split=make_split(section.split, head.class_names, labels, lengths),
        train_ids=training.ids,
        train_targets=training.targets,
        head=head,
        centroids=load_centroids(config.run.dir / CENTROIDS_FILE),
        progress=progress,
    )


def report_stage(config: Config, *, videos: Sequence[str] = (), progress: bool = True) -> StageReport:
    """The report of the last evaluation; writes report.html.

    Args:
        videos: ids to explain; none: some that were wrong or nearly so.
        progress: show a bar.
    """
    from .evaluate.evaluation import read_evaluation
    from .evaluate.predict import context_masks, frames_of_manifest
    from .evaluate.report import choose_videos, illustrate, load_history, render_report

    path = config.run.dir / "report.html"
    facts = {"results": file_digest(config.run.dir / "results.json"), "videos": list(videos)}
    record = StageRecord(config.run.dir, "report")
    if record.stale(facts) is None:
        return StageReport("report", True, "skipped, it is up to date", (path,), record.data())
    evaluation = read_evaluation(config.run.dir)
    task = evaluation_task(config)
    names = task.head.class_names
    training: dict[str, list[str]] = {name: [] for name in names}
    for video_id, target in zip(task.train_ids, task.train_targets.tolist(), strict=True):
        training[names[target]].append(video_id)
    frames = frames_of_manifest(config)
    masks, why_not = context_masks(config, task.store, frames.sources)
    explained = illustrate(
        task.head,
        task.store,
        list(videos) or choose_videos(evaluation),
        training=training,
        frames=frames,
        masks=masks,
        progress=progress,
    )
    about = [f"Head {config.head_path}, store {task.store.path}, {len(task.train_ids)} training videos."]
    about += [why_not] if why_not else []
    history = load_history(config.head_path)
    html = render_report(evaluation, history=history, explained=explained, about=about).encode()
    write_atomically(path, html)
    data = {"videos": [item.explanation.video_id for item in explained], "bytes": len(html)}
    record.write(facts, [path], data)
    summary = f"{len(explained)} videos explained, {len(html) / 1e6:.1f} MB"
    return StageReport("report", False, summary, (path,), data)


def run_pipeline(config: Config, *, progress: bool = True, say: Say = print) -> list[StageReport]:
    """All stages in order; `say` hears one line per stage as it ends."""
    reports = []
    stages: tuple[Callable[[], Iterable[StageReport]], ...] = (
        lambda: [manifest_stage(config)],
        lambda: [extract_stage(config, progress=progress)],
        lambda: head_stages(config, resume=True, progress=progress),
        lambda: [evaluate_stage(config, progress=progress)],
        lambda: [_report_if_possible(config, progress=progress)],
    )
    for stage in stages:
        for report in stage():
            say(f"{report.name}: {report.summary}")
            reports.append(report)
    return reports


def _report_if_possible(config: Config, *, progress: bool) -> StageReport:
    """The report is an extra: without its packages the run is still whole, and says what is missing."""
    try:
        return report_stage(config, progress=progress)
    except MissingDependencyError as error:
        return StageReport("report", True, f"left out, {error.what}: {error.fix}", (), {})


def _kept_and_held(config: Config, videos: SplitVideos) -> tuple[Tensor, Tensor]:
    """Positions of the training videos that are learned from, and of those the epoch is chosen on."""
    import torch

    from .train.data import hold_out

    if config.train.holdout == 0:
        return torch.arange(len(videos.ids)), torch.arange(0)
    return hold_out(torch.from_numpy(videos.targets), config.train.holdout, config.run.seed)


def _centroid_facts(config: Config, store: Store, videos: SplitVideos) -> dict[str, Any]:
    """What the centroids depend on."""
    return {
        "extract_fp": store.fingerprint,
        "videos": fingerprint({"ids": videos.ids, "targets": videos.targets.tolist()}),
        "class_names": list(videos.class_names),
        "centroids": dump_config(config)["centroids"],
        "step_pattern": config.train.step_pattern,
        "holdout": config.train.holdout,
        "seed": config.run.seed,
    }


def _check_head(head: DejaVidHead, store: Store, config: Config) -> None:
    made_for = head.fingerprints.get("extract_fp")
    if made_for != store.fingerprint:
        raise StoreVersionError(
            f"the head was trained on features {made_for}, the store holds {store.fingerprint}",
            where=f"{config.head_path} with {store.path}",
            fix="evaluate with the store the head was trained on, or train again: dejavid train",
        )
