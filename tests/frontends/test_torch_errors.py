"""What the torch front end says about modules that it cannot capture: the line, the layer, and everything at once."""

import pytest
import torch
from torch import nn

import absdom
from absdom.errors import ModelError, UnsupportedOp


def line_of(text: str) -> str:
    """`file, line N` of the line of this file that holds `text`."""
    with open(__file__) as file:
        number = next(i for i, line in enumerate(file, 1) if text in line)
    return f"{__file__}, line {number}"


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x  # branches


class Loops(nn.Module):
    def forward(self, x):
        while x.norm() > 1:  # loops
            x = x / 2
        return x


class Strange(nn.Module):
    def forward(self, x):
        return torch.erfinv(torch.digamma(x)).relu()  # strange


class Nested(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), inner)

    def forward(self, x):
        return torch.lgamma(self.block(x)) + torch.digamma(x)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def refused(module, kind, example=None):
    with pytest.raises(kind) as caught:
        absdom.load(module, torch.rand(1, 3) if example is None else example)
    return str(caught.value), caught.value


@pytest.mark.parametrize("inner,mark", [(Branches(), "# branches"), (Loops(), "# loops")])
def test_control_flow_on_data(inner, mark):
    text, _ = refused(Nested(inner), ModelError)
    assert "control flow depends on data" in text
    assert line_of(mark) in text and "'block.1'" in text
    assert "\n" not in text


def test_unsupported_calls_are_listed_at_once():
    text, error = refused(Nested(Strange()), UnsupportedOp)
    assert error.ops == ("digamma", "erfinv", "lgamma")
    assert text.startswith("4 calls of the module")
    first = next(line for line in text.splitlines() if "erfinv" in line)
    assert line_of("# strange") in first and "in layer 'block.1'" in first


FUNCTIONS = {
    "a number from data": (lambda x: x * x.max().item(), "from data"),
    "a shape from data": (lambda x: x[x > 0], "depends on data: .*whole numbers"),
    "half precision": (lambda x: x.half().float(), "torch.float16"),
    "complex numbers": (lambda x: torch.fft.fft(x).abs(), "complex"),
    "a branch of torch": (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "control flow"),
    "noise": (lambda x: x + torch.rand(3), "random"),
    "functional dropout": (lambda x: nn.functional.dropout(x, 0.5, True), "dropout in training mode"),
    "division by zero": (lambda x: x / torch.tensor([0.0, 1.0, 2.0]), "zero somewhere"),
    "an exponent from data": (lambda x: x.abs() ** x, "exponent"),
    "a blocked row": (lambda x: (x + torch.full((3,), -torch.inf)).softmax(1), "blocks everything"),
    "infinity": (lambda x: x * torch.tensor([1.0, torch.inf, 2.0]), "NaN or infinity"),
    "an argument out of range": (lambda x: nn.functional.softplus(x, threshold=2), "threshold=2"),
    "a sum at places": (lambda x: x.index_add(1, torch.tensor([0]), x[:, :1]), "adds up"),
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_calls_with_a_reason(what):
    function, reason = FUNCTIONS[what]
    with pytest.raises(UnsupportedOp, match=reason) as caught:
        absdom.load(Function(function), torch.rand(1, 3))
    assert f"{__file__}, line" in str(caught.value)


def test_minus_infinity_as_an_output():
    with pytest.raises(ModelError, match="softmax"):
        absdom.load(Function(lambda x: x + torch.tensor([0.0, -torch.inf, 0.0])), torch.rand(1, 3))


def test_an_error_of_the_module_itself():
    text, _ = refused(nn.Sequential(nn.Identity(), nn.Linear(3, 4), nn.Linear(5, 3)), ModelError)
    assert "in layer '2'" in text


WRONG = {
    "half": (lambda: nn.Linear(3, 3).half(), torch.rand(1, 3).half(), "float16"),
    "half weights": (lambda: nn.Linear(3, 3).bfloat16(), torch.rand(1, 3), r"'weight', 'bias'.*bfloat16.*module.float\(\)"),
    "complex weights": (lambda: nn.Linear(3, 3, dtype=torch.complex64), torch.rand(1, 3), "complex64"),
    "whole numbers": (lambda: nn.Linear(3, 3), torch.ones(1, 3, dtype=torch.long), "int64"),
    "a batch": (lambda: nn.Linear(3, 3), torch.rand(2, 3), "batch size 2"),
    "no tensor": (lambda: nn.Linear(3, 3), (), "no tensor"),
    "no shape yet": (lambda: nn.LazyLinear(3), torch.rand(1, 3), "run the module once"),
    "no result": (lambda: Function(lambda x: 3), torch.rand(1, 3), "returns no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_bad_arguments(what):
    make, example, reason = WRONG[what]
    with pytest.raises(ModelError, match=reason):
        absdom.load(make(), example)


def test_no_example():
    with pytest.raises(ModelError, match=r"load\(module, example\)"):
        absdom.load(nn.Linear(3, 3))


def test_weights_that_are_no_numbers():
    module = nn.Linear(3, 3)
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="'weight'.*NaN"):
        absdom.load(module, torch.rand(1, 3))


def test_capture_prints_nothing(capfd):
    refused(Nested(Branches()), ModelError)
    done = capfd.readouterr()
    assert done.out == done.err == ""
