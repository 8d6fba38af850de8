"""Decode processes beside the encoder: they can hang or die without taking the run along.

Videos are handed out one by one and their events are consumed in the order of the list, whatever the number
of processes, so that batches (and with them every bit of the result) do not depend on it.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from types import TracebackType
from typing import Any

from .worker import DecodeSettings, End, Event, Failed, Job, decode_events, receive_event, work

_EVENTS_AHEAD = 8  # of one video, waiting to be encoded; chunks of 4 MB each
_JOBS_AHEAD = 2  # videos per process that may be decoded before they are needed
_RECYCLE_AFTER = 500  # videos; a fresh process forgets whatever the libraries have leaked
_TICK_S = 0.2  # how often blocked threads look whether the run has ended


def warm_up() -> None:
    """Starts the server that decode processes are forked from; it imports torch while the encoder loads."""
    forkserver.set_forkserver_preload([f"{__package__}.worker"])
    forkserver.ensure_running()


class DecodePool:
    """Decodes `jobs` in `workers` processes; 0 decodes in the calling thread, without a time limit.

    Use as a context manager; leaving it kills the processes. Once `stop` is set, `events` ends early.
    """

    def __init__(
        self, jobs: Sequence[Job], settings: DecodeSettings, workers: int, stop: threading.Event
    ) -> None:
        self._jobs = jobs
        self._stop = stop
        self._settings = settings
        self._queues: dict[int, queue.Queue[Event]] = {}
        self._lock = threading.Condition()
        self._next_job = 0
        self._consuming = 0
        self._ahead = workers * (1 + _JOBS_AHEAD)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._supervise, name=f"decode-{i}", daemon=True) for i in range(workers)
        ]

    def __enter__(self) -> DecodePool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()

    def events(self, number: int) -> Iterator[Event]:
        """The events of job `number`, up to its `End` or `Failed`. Ask for the jobs in order."""
        if not self._threads:
            for event in decode_events(self._jobs[number], self._settings):
                if self._stop.is_set():
                    return
                yield event
            return
        with self._lock:
            self._consuming = number
            self._lock.notify_all()
            waiting = self._queues.setdefault(number, queue.Queue(_EVENTS_AHEAD))
        while not self._stop.is_set():
            with suppress(queue.Empty):
                event = waiting.get(timeout=_TICK_S)
                yield event
                if isinstance(event, End | Failed):
                    break
        with self._lock:
            del self._queues[number]

    def _supervise(self) -> None:
        """One thread per process: hands out jobs, forwards events, enforces the time limit, restarts."""
        worker: _Worker | None = None
        served = 0
        try:
            while (number := self._take()) is not None:
                try:
                    if worker is None:
                        worker, served = _Worker(self._settings), 0
                    alive = self._serve(worker, number)
                except OSError as error:  # no memory, or no file handles, for one more process
                    self._forward(number, Failed(f"no decode process could be started: {error}"))
                    alive = False
                served += 1
                if worker is not None and (not alive or served >= _RECYCLE_AFTER):
                    worker.stop()
                    worker = None
        finally:
            if worker is not None:
                worker.stop()

    def _take(self) -> int | None:
        with self._lock:
            while not self._closed:
                if self._next_job >= len(self._jobs):
                    return None
                if self._next_job < self._consuming + self._ahead:
                    number = self._next_job
                    self._next_job += 1
                    self._queues.setdefault(number, queue.Queue(_EVENTS_AHEAD))
                    return number
                self._lock.wait(_TICK_S)
        return None

    def _serve(self, worker: _Worker, number: int) -> bool:
        """Runs one job; False when the process is not usable any more."""
        left_s = self._settings.timeout_s
        worker.begin(self._jobs[number])
        while True:
            since = time.monotonic()
            event = worker.next_event(min(left_s, _TICK_S))
            left_s -= time.monotonic() - since  # only waiting counts, not a queue that is full
            if self._closed:
                return False
            if event is None and left_s > 0:
                continue
            if event is None:
                event = Failed(f"not decoded within {self._settings.timeout_s:g} s")
                worker.stop()
            if not self._forward(number, event) or (isinstance(event, Failed) and not worker.alive):
                return False
            if isinstance(event, End | Failed):
                return True

    def _forward(self, number: int, event: Event) -> bool:
        while not self._closed:
            with suppress(queue.Full):
                self._queues[number].put(event, timeout=_TICK_S)
                return True
        return False


class _Worker:
    """A decode process and the pipe to it."""

    def __init__(self, settings: DecodeSettings) -> None:
        # Forked from a server without threads that has imported the heavy modules once for all.
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process: Any = context.Process(target=work, args=(theirs, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.alive = True

    def begin(self, job: Job) -> None:
        with suppress(BrokenPipeError):  # a dead process shows at the first event
            self._connection.send(job)

    def next_event(self, wait_s: float) -> Event | None:
        """The next event, None if there is none in time; a dead process is a `Failed`."""
        try:
            return receive_event(self._connection) if self._connection.poll(wait_s) else None
        except (EOFError, OSError):
            self._process.join(1)
            self.alive = False
            return Failed(f"the decoder's process died (exit code {self._process.exitcode})")

    def stop(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.join()
        self._connection.close()
