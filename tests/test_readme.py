"""README.md says what is so."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from absdom import api
from absdom.cli.commands import COMMANDS
from absdom.cli.main import main, parse

START = "<!-- coverage: written by `pytest tests/test_readme.py --update-readme` -->\n\n"
END = "\n<!-- end of coverage -->\n"


def test_the_coverage_table_is_current(root, request):
    """`pytest tests/test_readme.py --update-readme` writes it."""
    readme = root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    table, after = rest.split(END)
    now = "".join(f"{line.rstrip()}\n" for line in api.coverage().splitlines())
    if request.config.getoption("--update-readme"):
        readme.write_text(before + START + now + END + after, encoding="utf-8")
        return
    assert table == now, "run `pytest tests/test_readme.py --update-readme`"
    assert str(root) not in table


def commands(root: Path) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## On the command line\n\n```\n(.*?)```", text, re.S)
    return [line.split("  #")[0].strip() for line in block.splitlines()]


def test_the_commands_parse(root):
    found = commands(root)
    assert len(found) == 24
    for command in found:
        arguments = shlex.split(command)[1:]
        if "--help" not in arguments:
            parse(arguments)
    assert {command.split()[1] for command in found} == set(COMMANDS)


def test_the_example_of_programs_prints_what_it_says(root, small, tmp_path, monkeypatch, capsys):
    shutil.copy(small.model, tmp_path / "network.onnx")
    shutil.copy(small.fails, tmp_path / "fails.vnnlib")
    monkeypatch.chdir(tmp_path)
    text = (root / "README.md").read_text(encoding="utf-8")
    command, size, head, *rows = re.search(r"```\n\$ absdom (bound .*?)```", text, re.S).group(1).splitlines()
    assert main(shlex.split(command)) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [size] and out.splitlines()[0] == head and out.splitlines()[-2] == size
    for said, row in zip(rows, out.splitlines()[1:], strict=False):
        assert [float(v) for v in said.split()] == pytest.approx([float(v) for v in row.split()], rel=1e-5)


def test_the_train_commands_run(root, digits, tmp_path, monkeypatch, capsys):
    """The example's own run is the fixture's."""
    shutil.copy(digits.data, tmp_path / "digits.npz")
    monkeypatch.chdir(tmp_path)
    text = (root / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Train\n.*?```\n(.*?)```", text, re.S)
    example, *commands = block.splitlines()
    assert example == "python examples/08_train_and_certify.py ." and len(commands) == 3
    for command in commands:
        assert main(shlex.split(command.split(" > ")[0])[1:]) == 0
    out = capsys.readouterr().out
    assert f"  {commands[1]}\n" in out, "the command that `train` prints is the one that README shows"
    errors = [float(e) for e in re.findall(r"certified error +([\d.]+) %", out)]
    assert len(errors) == 2 and errors[1] <= errors[0] < 30


def test_the_python_blocks_run(root, small, tmp_path, monkeypatch, capsys):
    shutil.copy(small.model, tmp_path / "net.onnx")
    shutil.copy(small.fails, tmp_path / "prop.vnnlib")
    monkeypatch.chdir(tmp_path)
    text = (root / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith("sat ") and "(declare-const X_0 Real)" in out
