"""Jobs in processes of their own: results, progress, and what is killed."""

from __future__ import annotations

import os
import signal
import time

import worker_jobs

from absdom.solvers.workers import run_all


def by_job(events) -> dict:
    return {e.job: (e.status, e.value) for e in events}


def test_results_come_with_their_jobs_number():
    found = by_job(run_all(worker_jobs.double, [(k,) for k in range(5)]))
    assert found == {k: ("done", 2 * k) for k in range(5)}
    assert list(run_all(worker_jobs.double, [])) == []


def test_progress_comes_before_the_result_and_prints_are_no_results():
    events = list(run_all(worker_jobs.count, [(2,)]))
    assert [(e.status, e.value) for e in events] == [("progress", 0), ("progress", 1), ("done", "end")]


def test_jobs_beyond_their_limit_are_killed_and_the_others_go_on():
    start = time.monotonic()
    found = by_job(run_all(worker_jobs.sleep, [(0.05,), (60,), (0.05,)], limit=0.3, processes=2, grace=0.3))
    assert found == {0: ("done", 0.05), 1: ("stopped", None), 2: ("done", 0.05)}
    assert time.monotonic() - start < 10


def test_errors_and_deaths_are_told():
    assert by_job(run_all(worker_jobs.fail, [()])) == {0: ("failed", "ValueError: no")}
    found = by_job(run_all(worker_jobs.die_if, [(True,), (False,)], processes=1))
    assert found == {0: ("failed", "the solver's process died"), 1: ("done", "alive")}


def test_what_cannot_be_sent_is_a_failure_and_no_hang():
    assert by_job(run_all(lambda: 1, [()]))[0][0] == "failed"


def test_closing_the_iterator_kills_what_runs():
    events = run_all(worker_jobs.own_number_then_sleep, [()])
    number = next(events).value
    os.kill(number, 0)
    events.close()
    for _ in range(100):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("the worker lives on")


def test_a_worker_that_is_killed_from_outside_fails_its_job():
    events = run_all(worker_jobs.own_number_then_sleep, [()])
    os.kill(next(events).value, signal.SIGKILL)
    assert next(events).status == "failed"


def test_workers_load_no_torch():
    assert by_job(run_all(worker_jobs.loaded, [("absdom.solvers.lp.bounds", "torch")])) == {0: ("done", False)}
