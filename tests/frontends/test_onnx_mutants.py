"""Damaged models: a file gives a graph or an error of absdom, never a traceback."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx_backend
import pytest
from onnx import AttributeProto, numpy_helper

from absdom.errors import AbsdomError
from absdom.frontends.onnx import load_onnx
from absdom.passes import lower

CASES, _ = onnx_backend.collect()
WHOLE = (0, 1, -1, 2, 3, 7, -5, 100, 10**6, 2**40)
QUICK, NIGHTLY = 40, 1000  # models per seed


def mutate(dice: random.Random, model: onnx.ModelProto) -> None:
    """Change one attribute, input, stored tensor or stated shape."""
    node = dice.choice(model.graph.node)
    kind = dice.choice(["attribute", "attribute", "drop", "absent", "fewer", "stored", "shape"])
    if kind == "attribute" and node.attribute:
        change_attribute(dice, dice.choice(node.attribute))
    elif kind == "drop" and node.attribute:
        node.attribute.remove(dice.choice(node.attribute))
    elif kind == "absent" and node.input:
        node.input[dice.randrange(len(node.input))] = ""
    elif kind == "fewer" and node.input:
        node.input.pop()
    elif kind == "stored" and model.graph.initializer:
        tensor = dice.choice(model.graph.initializer)
        changed = change_array(dice, numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(np.array(changed, order="C"), tensor.name))
    else:
        shape = dice.choice(model.graph.input).type.tensor_type.shape
        if not shape.dim or dice.random() < 0.3:
            shape.dim.add().dim_value = 2
        elif dice.random() < 0.3:
            del shape.dim[-1]
        else:
            dice.choice(shape.dim).dim_value = dice.choice([1, 2, 3, 5])


def change_attribute(dice: random.Random, attribute: AttributeProto) -> None:
    match attribute.type:
        case AttributeProto.INT:
            attribute.i = dice.choice(WHOLE)
        case AttributeProto.FLOAT:
            attribute.f = dice.choice([0, -1, 0.5, 1e30, float("nan"), float("inf")])
        case AttributeProto.STRING:
            attribute.s = dice.choice([b"x", b"linear", b"", b"ij->ji", b"\xff"])
        case AttributeProto.INTS:
            action = dice.choice(["more", "fewer", "other"])
            if action == "more" or not attribute.ints:
                attribute.ints.append(dice.choice(WHOLE))
            elif action == "fewer":
                attribute.ints.pop()
            else:
                attribute.ints[dice.randrange(len(attribute.ints))] = dice.choice(WHOLE)


def change_array(dice: random.Random, array: np.ndarray) -> np.ndarray:
    if not array.size or array.dtype.kind not in "iuf":
        return array
    match dice.choice(["element", "element", "shorter", "deeper", "number"]):
        case "shorter":
            return array[:-1] if array.ndim else array
        case "deeper":
            return array[None]
        case "number":
            return array.reshape(-1)[0]
    changed = array.copy()
    changed.reshape(-1)[dice.randrange(array.size)] = np.array(dice.choice(WHOLE[:8])).astype(array.dtype)
    return changed


def try_mutants(seed: int, count: int) -> None:
    dice, names = random.Random(seed), list(CASES)
    loaded = 0
    for number in range(count):
        case = CASES[dice.choice(names)]
        inputs = onnx_backend.varying_names(case)
        vary = set(inputs) if dice.random() < 0.5 else {dice.choice(inputs)}
        model = onnx.load_from_string(onnx_backend.freeze(case, case.data_sets[0][0], vary)[0])
        for _ in range(dice.choice([1, 1, 2])):
            mutate(dice, model)
        try:
            lower(load_onnx(data=model.SerializeToString()))
            loaded += 1
        except AbsdomError:
            continue
        except Exception as error:
            raise AssertionError(f"{case.name}, seed {seed}, mutant {number}: {error!r}") from error
    assert loaded > count // 5, "nearly all are refused: the mutants show nothing"


@pytest.mark.parametrize("seed", range(8))
def test_damaged_models(seed):
    try_mutants(seed, QUICK)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_damaged_models(seed):
    try_mutants(seed, NIGHTLY)
