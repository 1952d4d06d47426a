"""Solver jobs in processes of their own, a pool over the cores: what does not end in time is killed.

A worker is a fresh interpreter that imports the module of the job's function and nothing else, so such a module
should not import torch. A worker ends with its parent.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from inspect import isgenerator
from typing import Any, NamedTuple

POLL = 0.05  # seconds between two questions whether to stop
GRACE = 2.0  # seconds that a job gets beyond its limit to end by itself
COMMAND = "from absdom.solvers.workers import serve; serve()"


class Event(NamedTuple):
    """What became of job number `job`: "done" and its result, "progress" and a value that it yielded on its way,
    "stopped" (killed at its limit, or started after the deadline) or "failed" and the error's text."""

    job: int
    status: str
    value: Any = None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    function: Callable, jobs: Sequence[tuple], limit: float = math.inf, processes: int | None = None,
    grace: float = GRACE, stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Call function(*job) for each job in worker processes; events as they come, the last of each job not "progress".

    limit: seconds for each job, from its start; a job that is not done `grace` seconds later is killed. `function` is
    importable by name; where it is a generator, what it yields is progress and what it returns the result. Closing
    the iterator kills what still runs, and so does `stop`, asked now and then, when it says True.
    """
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for number in range(len(jobs)):
        waiting.put(number)
    events: queue.SimpleQueue = queue.SimpleQueue()
    count = min(processes or cores(), len(jobs))
    slots = [_Slot(function, jobs, waiting, events, limit + grace) for _ in range(count)]
    threads = [threading.Thread(target=slot.work, daemon=True) for slot in slots]
    for thread in threads:
        thread.start()
    try:
        left = len(jobs)
        while left:
            try:
                event = events.get(timeout=None if stop is None else POLL)
            except queue.Empty:
                if stop():
                    return
                continue
            left -= event.status != "progress"
            yield event
    finally:
        for slot in slots:
            slot.end()
        for thread in threads:
            thread.join()


class _Slot:
    """One thread that feeds one worker process at a time, and starts another where that one was killed."""

    def __init__(self, function, jobs, waiting, events, limit):
        self.function, self.jobs, self.waiting, self.events, self.limit = function, jobs, waiting, events, limit
        self.process: subprocess.Popen | None = None
        self.ended = False
        self.number: int | None = None  # of the job that runs
        self.lock = threading.RLock()

    def work(self) -> None:
        while not self.ended:
            try:
                number = self.waiting.get_nowait()
            except queue.Empty:
                break
            try:
                self.events.put(self._run(number))
            except Exception as error:  # the parent's iterator must not wait for this job for ever
                self.events.put(Event(number, "failed", f"{type(error).__name__}: {error}"))
        self.end()

    def _run(self, number: int) -> Event:
        late = threading.Event()

        def stop():
            with self.lock:
                if self.number == number:  # a timer that fires too late must not hit the next job
                    late.set()
                    self._kill()

        with self.lock:
            self.number = number

        timer = threading.Timer(max(self.limit, 0.0), stop) if math.isfinite(self.limit) else None
        if timer is not None:
            timer.start()
        try:
            process = self._process()
            if process is None:
                return Event(number, "stopped")
            _send(process.stdin, (self.function, self.jobs[number]))
            while True:
                status, value = _receive(process.stdout)
                if status != "progress":
                    return Event(number, status, value)
                self.events.put(Event(number, status, value))
        except (EOFError, OSError):
            self._kill()
            return Event(number, "stopped") if late.is_set() else Event(number, "failed", "the solver's process died")
        finally:
            with self.lock:
                self.number = None
            if timer is not None:
                timer.cancel()

    def _process(self) -> subprocess.Popen | None:
        with self.lock:
            if self.ended:
                return None
            if self.process is None:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
                    start_new_session=True,
                )  # fmt: skip
            return self.process

    def _kill(self) -> None:
        with self.lock:
            process, self.process = self.process, None
        if process is not None:
            _kill_group(process.pid)
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                try:
                    pipe.close()
                except OSError:  # what was not yet sent to the dead process
                    pass

    def end(self) -> None:
        self.ended = True
        self._kill()


def serve() -> None:
    """The worker's side: calls from the standard input, results to the standard output, until the parent ends."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what solvers print must not be taken for a result
    calls: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(source, calls), daemon=True).start()
    while True:
        packet = calls.get()
        try:
            function, arguments = pickle.loads(packet)  # noqa: S301 (from the parent process)
            result = function(*arguments)
            if isgenerator(result):
                result = _drain(result, sink)
            answer = ("done", result)
        except Exception as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        _send(sink, answer)


def _drain(generator, sink):
    while True:
        try:
            value = next(generator)
        except StopIteration as end:
            return end.value
        _send(sink, ("progress", value))


def _listen(source, calls) -> None:
    try:
        while True:
            calls.put(_packet(source))
    except EOFError:
        _kill_group(os.getpid())  # the parent is gone, whatever a solver is doing
        os._exit(0)


def _kill_group(process: int) -> None:
    """Kill a worker with the programs that its solver started (CBC is one), where the system has process groups."""
    try:
        os.killpg(process, signal.SIGKILL)
    except (AttributeError, ProcessLookupError):
        pass


def _send(stream, value) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def _packet(stream) -> bytes:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _receive(stream):
    return pickle.loads(_packet(stream))  # noqa: S301 (from a process of our own)
