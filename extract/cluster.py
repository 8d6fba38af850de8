"""The same shards on many machines: submitit starts them on Slurm, Ray as actors.

Nothing here schedules: shards share nothing, each skips what the store holds, and a lost one is run again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from ..config import Config
from ..errors import DejaVidError, MissingDependencyError, StoreError
from ..store import open_store
from .ledger import FailureLedger
from .manifest import read_manifest
from .run import ExtractReport, check_failures, extract_videos

_POLL_S = 2.0


class ShardJob:
    """One shard as a picklable call; submitit sends it again when Slurm takes the machine away."""

    def __init__(self, config: Config, index: int, count: int, retry_failed: bool) -> None:
        # Failures are judged over all shards together.
        self._config = _with_extract(config, max_failed=float("inf"))
        self._shard = f"{index}/{count}"
        self._retry_failed = retry_failed

    def __call__(self) -> ExtractReport:
        return extract_videos(
            self._config, shard=self._shard, retry_failed=self._retry_failed, progress=False
        )

    def checkpoint(self) -> Any:
        """What submitit asks for before a preempted or timed-out job is queued again: the same call."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def extract_on_slurm(
    config: Config,
    *,
    shards: int,
    parameters: Mapping[str, Any] | None = None,
    cluster: str | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> ExtractReport:
    """Runs `shards` array jobs through submitit and waits for them.

    Args:
        config: of the run; its store must be on a file system that all nodes see.
        shards: array tasks.
        parameters: for submitit's `update_parameters`, such as timeout_min, slurm_partition, gpus_per_node.
        cluster: "slurm", "local" (processes here) or None: Slurm where there is one, else local.
        retry_failed, progress: as in `extract_videos`.

    Raises:
        MissingDependencyError: submitit is not installed.
        DejaVidError: as `extract_videos`, or a job was lost for good.
    """
    try:
        import submitit
    except ImportError:
        raise MissingDependencyError(
            "submitit is not installed", where="--executor submitit", fix="pip install 'dejavid[slurm]'"
        ) from None
    executor = submitit.AutoExecutor(folder=config.run.dir / "jobs", cluster=cluster)
    executor.update_parameters(name="dejavid-extract", **(parameters or {}))
    with executor.batch():
        jobs = [executor.submit(ShardJob(config, index, shards, retry_failed)) for index in range(shards)]
    _watch(config, jobs, lambda job: bool(job.done()), progress)
    reports = []
    for job in jobs:
        try:
            reports.append(job.result())
        except submitit.core.utils.UncompletedJobError as error:
            raise DejaVidError(
                f"a job ended without a result: {str(error).splitlines()[0]}",
                where=f"job {job.job_id}, logs in {job.paths.folder}",
                fix="run the same command again; finished videos are skipped",
            ) from None
    return merge_reports(config, reports)


def extract_on_ray(
    config: Config,
    *,
    workers: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    retry_failed: bool = False,
    progress: bool = True,
) -> ExtractReport:
    """Runs one shard per Ray actor; an actor that is lost is restarted and does the rest of its shard.

    Args:
        config: of the run; its store must be on a file system that all nodes see.
        workers: actors, and shards.
        cpus, gpus: what each actor reserves.
        retry_failed, progress: as in `extract_videos`.

    Raises:
        MissingDependencyError: Ray is not installed.
        DejaVidError: as `extract_videos`, or an actor was lost too often.
    """
    try:
        import ray
    except ImportError:
        raise MissingDependencyError(
            "Ray is not installed", where="--executor ray", fix="pip install 'dejavid[ray]'"
        ) from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_Actor)
    actors = [actor.remote() for _ in range(workers)]
    calls = [
        each.run.remote(ShardJob(config, index, workers, retry_failed)) for index, each in enumerate(actors)
    ]
    try:
        _watch(config, calls, lambda call: bool(ray.wait([call], timeout=0)[0]), progress)
        return merge_reports(config, ray.get(calls))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DejaVidError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise DejaVidError(
            f"an actor was lost: {str(error).splitlines()[0]}",
            where=str(config.store_path),
            fix="run the same command again; finished videos are skipped",
        ) from None
    finally:
        for each in actors:
            ray.kill(each)


class _Actor:
    """What Ray keeps alive: runs the call that it is sent."""

    def run(self, job: ShardJob) -> ExtractReport:
        return job()


def merge_reports(config: Config, reports: Sequence[ExtractReport]) -> ExtractReport:
    """The sum of the shards' reports.

    Raises:
        PartialResultError: more videos failed, over all shards, than `extract.max_failed` allows.
    """
    total = ExtractReport(reports[0].store_path, reports[0].failures_path)
    for report in reports:
        for name in ("n_videos", "n_done", "n_skipped", "n_failed", "n_windows", "n_batches"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        for stage, seconds in report.stage_s.items():
            total.stage_s[stage] += seconds
    check_failures(total.n_failed, total.n_videos, config.extract.max_failed, total.failures_path)
    return total


def _watch(config: Config, tasks: Sequence[Any], done: Any, progress: bool) -> None:
    """Shows what all shards together have committed, until every task is done."""
    manifest = read_manifest(config.manifest.path, config.manifest.root, check_files=False)
    ids = {row.video_id for row in manifest.rows}
    ledger = FailureLedger(config.store_path)
    with tqdm(total=len(ids), unit="video", disable=not progress) as bar:
        while True:
            finished = sum(done(task) for task in tasks)
            stored = _stored(config) & ids
            failed = len((ledger.read().keys() & ids) - stored)
            bar.set_postfix({"failed": failed, "shards done": f"{finished}/{len(tasks)}"}, refresh=False)
            bar.update(len(stored) + failed - bar.n)
            if finished == len(tasks):
                return
            time.sleep(_POLL_S)


def _stored(config: Config) -> set[str]:
    try:
        return set(open_store(config.store_path).ids())
    except StoreError:  # no shard has created it yet
        return set()


def _with_extract(config: Config, **values: Any) -> Config:
    return config.model_copy(update={"extract": config.extract.model_copy(update=values)})
