"""One verification, one process: started, timed, killed with all it started, and read back as a row."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

from absdom.cli.records import Instance, Row
from absdom.verdict import EXIT_CODE

NOTE_LENGTH = 1000


class Runner:
    """Called from several threads, each call one verification in its own process; can stop them all."""

    def __init__(self, command: Sequence[str], grace: float, threads: int | None):
        self._command, self._grace = list(command), grace
        self._environment = dict(os.environ)
        if threads is not None:
            self._environment.setdefault("OMP_NUM_THREADS", str(threads))
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Kill what runs; nothing starts any more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)

    def __call__(self, instance: Instance, timeout: float) -> Row:
        with tempfile.TemporaryDirectory(prefix="absdom-campaign-") as folder:
            return self._run(instance, timeout, Path(folder))

    def _run(self, instance: Instance, timeout: float, folder: Path) -> Row:
        files = [instance.file(instance.onnx), instance.file(instance.vnnlib)]
        limit = [] if math.isinf(timeout) else ["--timeout", f"{timeout:g}"]
        command = [*self._command, *files, *limit, "--json", str(folder / "result.json")]
        start = time.monotonic()
        # Output goes to files: a process that prints a lot must not wait for a pipe.
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            with self._lock:
                if self._stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self._environment,
                    start_new_session=True,
                )
                self._running.add(process)
            killed = False
            try:
                process.wait(None if math.isinf(timeout) else timeout + self._grace)
            except subprocess.TimeoutExpired:
                killed = True
            finally:
                with self._lock:
                    self._running.discard(process)
                _kill(process)  # also what it started and left behind
                process.wait()
        seconds = time.monotonic() - start
        if self._stopped:
            raise KeyboardInterrupt
        if killed:
            verdict, method, note = (
                "timeout",
                "",
                f"killed {self._grace:g} s after its timeout: it did not stop by itself",
            )
        else:
            verdict, method, note = _outcome(process.returncode, folder)
        return Row(
            instance.benchmark, instance.onnx, instance.vnnlib, timeout, verdict, seconds, method, instance.consensus,
            " ".join(note.split())[:NOTE_LENGTH],
        )  # fmt: skip


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _outcome(code: int, folder: Path) -> tuple[str, str, str]:
    """Verdict, method and note of a process that ended. The printed word, the exit code and the JSON have to agree."""
    lines = (folder / "err").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    if code < 0:
        with contextlib.suppress(ValueError):
            return "error", "", f"ended by {signal.Signals(-code).name}; last line: {last}"
        return "error", "", f"ended by signal {-code}; last line: {last}"
    word = (folder / "out").read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
    if code == EXIT_CODE["error"]:
        errors = [line for line in lines if line.startswith("absdom: error: ")]
        return "error", "", errors[-1].removeprefix("absdom: error: ") if errors else f"exit code 2: {last}"
    if word not in EXIT_CODE or EXIT_CODE[word] != code:
        return "error", "", f"exit code {code} with the first line {word[:40]!r}; last line of stderr: {last}"
    try:
        report = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if report["verdict"] != word:
            return "error", "", f"printed {word}, but its JSON says {report['verdict']}"
        return word, str(report.get("method") or ""), str(report.get("reason") or "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "error", "", f"printed {word}, but its JSON cannot be read: {type(error).__name__}: {error}"


def run_all(runner: Runner, todo: Sequence[tuple[Instance, float]], jobs: int) -> Iterator[Row]:
    """Rows as they come. When the consumer stops, for an interrupt too, every process is killed first."""
    queue = iter(todo)
    with ThreadPoolExecutor(jobs) as pool, _sigterm_interrupts():
        try:
            pending = {pool.submit(runner, *item) for item in islice(queue, jobs)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(runner, *item) for item in islice(queue, len(done))}
                for future in done:
                    yield future.result()
        finally:
            runner.stop()


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt, so that children are killed: they have sessions of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
