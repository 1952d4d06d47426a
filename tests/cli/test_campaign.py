"""Campaigns over a stand-in for `absdom verify`, a script that does what the model's name says."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from absdom.cli.campaign import run_campaign
from absdom.cli.main import main
from absdom.cli.records import COLUMNS, Outcome, Row, read_instances
from absdom.errors import UsageError

FAKE = """
import json, os, pathlib, signal, subprocess, sys, time
model, prop, out = sys.argv[1], sys.argv[2], sys.argv[sys.argv.index("--json") + 1]
word = pathlib.Path(model).name.split(".")[0].split("_")[0]
with open(os.environ["FAKE_LOG"], "a") as log:
    print(pathlib.Path(model).name, sys.argv[3:5], os.environ.get("OMP_NUM_THREADS"), file=log)
print("chatter", file=sys.stderr)
if word == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if word == "hang":
    child = subprocess.Popen(["sleep", "600"])
    with open(os.environ["FAKE_LOG"] + ".child", "w") as file:
        file.write(str(child.pid))
    time.sleep(600)
if word == "fail":
    print("absdom: error: net.onnx: the op Sinh is not supported", file=sys.stderr)
    sys.exit(2)
if word == "traceback":
    raise RuntimeError("boom")
if word == "liar":
    print("unsat")
    sys.exit(1)
pathlib.Path(out).write_text(json.dumps({"verdict": word, "method": "crown", "reason": ""}))
print(word)
sys.exit({"unsat": 0, "sat": 1, "unknown": 3, "timeout": 4}[word])
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Writes an instances file and runs a campaign on it with the stand-in."""

    class Bench:
        folder, out, log = tmp_path, tmp_path / "results.csv", tmp_path / "log"
        script = tmp_path / "fake.py"
        command = (sys.executable, str(script))

        def instances(self, *lines: str, header: str = "onnx,vnnlib,timeout,consensus") -> str:
            file = tmp_path / "instances.csv"
            file.write_text("\n".join([*([header] if header else []), *lines]) + "\n")
            return str(file)

        def run(self, *lines: str, **options):
            header = options.pop("header", "onnx,vnnlib,timeout,consensus")
            file = self.instances(*lines, header=header)
            return run_campaign(file, str(self.out), command=self.command, **options)

        def started(self) -> list[str]:
            return self.log.read_text().splitlines() if self.log.exists() else []

    Bench.script.write_text(FAKE)
    monkeypatch.setenv("FAKE_LOG", str(Bench.log))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return Bench()


def by_model(outcome: Outcome) -> dict[str, Row]:
    return {row.onnx: row for row in outcome.rows}


def test_every_kind_of_end_is_a_row(bench):
    names = ["unsat", "sat", "unknown", "timeout", "crash", "fail", "traceback", "liar"]
    outcome = bench.run(*(f"a/{n}.onnx,p.vnnlib,30,unknown" for n in names))
    rows = by_model(outcome)
    verdicts = {n: rows[f"a/{n}.onnx"].verdict for n in names}
    assert verdicts == {
        "unsat": "unsat", "sat": "sat", "unknown": "unknown", "timeout": "timeout",
        "crash": "error", "fail": "error", "traceback": "error", "liar": "error",
    }  # fmt: skip
    assert "SIGSEGV" in rows["a/crash.onnx"].note
    assert rows["a/fail.onnx"].note == "net.onnx: the op Sinh is not supported"
    assert "RuntimeError: boom" in rows["a/traceback.onnx"].note
    assert "exit code 1" in rows["a/liar.onnx"].note
    assert rows["a/unsat.onnx"].method == "crown" and rows["a/unsat.onnx"].benchmark == "a"
    with bench.out.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == COLUMNS and [r["onnx"] for r in written] == [r.onnx for r in outcome.rows]
    assert outcome.wrong == []


def test_a_process_that_hangs_is_killed_with_its_children(bench):
    start = time.monotonic()
    (row,) = bench.run("hang.onnx,p.vnnlib,0.5,unsat", grace=0.5).rows
    assert time.monotonic() - start < 20
    assert row.verdict == "timeout" and "killed" in row.note and row.seconds >= 1.0
    child = int((bench.folder / "log.child").read_text())
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_resumes_where_it_stopped(bench):
    lines = [f"{n}.onnx,p{i}.vnnlib,30,unknown" for i, n in enumerate(["unsat", "sat", "unsat", "unknown"])]
    assert len(bench.run(*lines, limit=2).rows) == 2
    with bench.out.open("a") as file:
        file.write("x,unsat.onnx,p2.vnn")  # a kill in the middle of a row
    chat = []
    outcome = bench.run(*lines, chat=chat.append)
    assert [row.vnnlib for row in outcome.rows] == ["p0.vnnlib", "p1.vnnlib", "p2.vnnlib", "p3.vnnlib"]
    assert len(bench.started()) == 4
    assert "2 of 4" in chat[0]
    assert len(bench.out.read_text().splitlines()) == 5
    bench.run(*lines)
    assert len(bench.started()) == 4


def test_an_instance_listed_twice_runs_twice(bench):
    line = "unsat.onnx,p.vnnlib,30,unsat"
    assert len(bench.run(line, line).rows) == 2
    assert len(bench.run(line, line).rows) == 2
    assert len(bench.started()) == 2


def test_wrong_verdicts_are_counted_and_unknown_consensus_is_not(bench):
    outcome = bench.run(
        "a/sat.onnx,p.vnnlib,30,unsat", "a/unsat.onnx,p.vnnlib,30,unsat", "b/unsat_1.onnx,p.vnnlib,30,unknown",
        "b/unknown.onnx,p.vnnlib,30,sat",
    )  # fmt: skip
    assert [row.onnx for row in outcome.wrong] == ["a/sat.onnx"]
    table = outcome.table().splitlines()
    assert table[0].split() == [
        "benchmark", "instances", "solved", "sat", "unsat", "unknown", "timeout", "error", "WRONG", "median", "s",
    ]  # fmt: skip
    assert table[1].split()[:9] == ["a", "2", "2", "1", "1", "0", "0", "0", "1"]
    assert table[2].split()[:9] == ["b", "2", "1", "0", "1", "1", "0", "0", "0"]
    assert table[3].split()[:9] == ["all", "4", "3", "1", "2", "1", "0", "0", "1"]
    assert "a/sat.onnx" in table[4]


def test_a_corrected_consensus_counts_for_old_rows(bench):
    assert bench.run("sat.onnx,p.vnnlib,30,unsat").wrong
    assert not bench.run("sat.onnx,p.vnnlib,30,sat").wrong


def test_timeout_cap_and_threads(bench):
    outcome = bench.run("unsat.onnx,p.vnnlib,30,", "sat.onnx,p.vnnlib,3,", timeout_cap=7, jobs=2)
    assert sorted(row.timeout for row in outcome.rows) == [3, 7]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert sorted(bench.started()) == [
        f"sat.onnx ['--timeout', '3'] {threads}",
        f"unsat.onnx ['--timeout', '7'] {threads}",
    ]


def test_files_without_header_as_in_the_competition(bench):
    outcome = bench.run("onnx/unsat.onnx,vnnlib/p.vnnlib,30", "./onnx/sat.onnx, vnnlib/p.vnnlib ,30.0", header="")
    assert [row.verdict for row in outcome.rows] == ["unsat", "sat"]
    assert outcome.rows[0].benchmark == "onnx" and outcome.rows[1].consensus == ""


def test_paths_relative_to_the_file_absolute_and_packed(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "net.onnx.gz").touch()
    file = tmp_path / "i.csv"
    file.write_text(f"benchmark,onnx,vnnlib,timeout\nmine,b/net.onnx,/abs/p.vnnlib,1\n,{tmp_path}/q.onnx,p.vnnlib,1\n")
    first, second = read_instances(str(file))
    assert first.file(first.onnx) == str(tmp_path / "b" / "net.onnx.gz")
    assert first.file(first.vnnlib) == "/abs/p.vnnlib"
    assert first.benchmark == "mine" and second.benchmark == tmp_path.name
    assert second.file(second.onnx) == f"{tmp_path}/q.onnx"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no instances"),
        ("a.onnx,p.vnnlib\n", "line 1: the column timeout is empty"),
        ("a.onnx,p.vnnlib,1\nb.onnx,p.vnnlib,never\n", "line 2: the timeout 'never'"),
        ("a.onnx,p.vnnlib,0\n", "line 1: the timeout '0'"),
        ("onnx,vnnlib\na,b\n", "no column `timeout`"),
    ],
)
def test_bad_instances_files(tmp_path, text, words):
    file = tmp_path / "i.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_instances(str(file))


def test_a_file_that_is_no_results_file_is_left_alone(bench):
    bench.out.write_text("my,own,data\n")
    with pytest.raises(UsageError, match="no results file"):
        bench.run("unsat.onnx,p.vnnlib,30,unsat")
    assert bench.out.read_text() == "my,own,data\n" and bench.started() == []


def test_exit_code_of_the_command(bench, monkeypatch, capsys):
    monkeypatch.setattr("absdom.cli.campaign.run_campaign", lambda *a, **k: Outcome([row("sat", "unsat")]))
    assert main(["campaign", bench.instances("a,b,1"), "--out", str(bench.out)]) == 1
    monkeypatch.setattr("absdom.cli.campaign.run_campaign", lambda *a, **k: Outcome([row("error", "unsat")]))
    assert main(["campaign", bench.instances("a,b,1"), "--out", str(bench.out)]) == 0
    assert capsys.readouterr().err == ""


def row(verdict: str, consensus: str) -> Row:
    return Row("b", "m.onnx", "p.vnnlib", 1.0, verdict, 0.5, "crown", consensus, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_running_processes(bench, number):
    file = bench.instances("unsat.onnx,p.vnnlib,30,unsat", "hang.onnx,p.vnnlib,600,unsat", "sat.onnx,p.vnnlib,3,sat")
    code = (
        "import sys; from absdom.cli import campaign; from absdom.cli.main import main; "
        "run = campaign.run_campaign; "
        f"campaign.run_campaign = lambda *a, **k: run(*a, command={bench.command!r}, **k); "
        f"sys.exit(main(['campaign', {file!r}, '--out', {str(bench.out)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child = bench.folder / "log.child"
    for _ in range(200):
        if child.exists() and child.read_text():
            break
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and out == "" and "interrupted" in err and "Traceback" not in err
    for _ in range(100):
        if not alive(int(child.read_text())):
            break
        time.sleep(0.05)
    assert not alive(int(child.read_text()))
    assert [line.split(",")[1] for line in bench.out.read_text().splitlines()] == ["onnx", "unsat.onnx"]
