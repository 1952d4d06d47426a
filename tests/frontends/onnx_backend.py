"""onnx's own backend node tests: which of them load, and do the graphs compute what onnx says?

    make onnx-backend                                 # the table, and why the others do not load
    python tests/frontends/onnx_backend.py --failed   # only the cases with wrong numbers

A case takes part if it has a float32 or float64 input and only numbers as inputs and outputs. Inputs of other types
(axes, shapes, indices, masks) become constants with the case's own data. The float inputs vary: all of them, or, where
that does not load (weights of a convolution, sizes of a Resize), the first one for which it does, alone.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
NUMBERS = (
    *FLOATS, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8,
    TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL,
)  # fmt: skip
NOISE = 2.0**-21  # of the largest output: four units of float32 roundoff
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
AGREES, ONE, NOT_LOADED, WRONG = "agrees", "agrees, one input varies", "does not load", "wrong"


@dataclass(frozen=True)
class Outcome:
    """`state`: one of the four above; `reason`: the message of what did not load, or the difference."""

    state: str
    reason: str = ""


@cache
def collect() -> tuple[dict, Counter]:
    """The cases that take part, by name, and how many do not, by reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        every = load_model_tests(kind="node")
    cases, outside = {}, Counter()
    for case in every:
        reason = out_of_scope(case)
        if reason:
            outside[reason] += 1
        else:
            cases[case.name] = case
    return cases, outside


def out_of_scope(case) -> str:
    """Why a case takes no part; '' if it does."""
    graph = case.model.graph
    if any(o.domain not in ("", "ai.onnx") for o in case.model.opset_import):
        return "another operator set (ai.onnx.ml, training, preview)"
    values = [*graph.input, *graph.output]
    if any(v.type.WhichOneof("value") != "tensor_type" for v in values):
        return "sequences, optional values, sparse tensors"
    kinds = [v.type.tensor_type.elem_type for v in values]
    if TensorProto.STRING in kinds:
        return "text"
    if any(k in HALF for k in kinds):
        return "half precision"
    if any(k not in NUMBERS for k in kinds):
        return "complex numbers, or fewer than 8 bits, or 8-bit floats"
    if any(n.op_type in RANDOM for n in graph.node) or case.name.startswith("test_training_dropout"):
        return "random numbers"
    if not any(i.type.tensor_type.elem_type in FLOATS for i in graph.input):
        return "no float32 or float64 input"
    if any(as_array(x).size == 0 for inputs, _ in case.data_sets for x in inputs):
        return "inputs without elements"
    if not varying_names(case):
        return "inputs that hold NaN or infinity"
    return ""


def as_array(value) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def freeze(case, inputs, vary: set[str]) -> tuple[bytes, list[np.ndarray]]:
    """The model with shapes as in the data, in which the inputs `vary` vary; and the data of those."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph, kept = model.graph, []
    infos, data = list(graph.input), []
    del graph.input[:]
    for info, value in zip(infos, inputs, strict=True):
        value = as_array(value)
        kind = info.type.tensor_type.elem_type
        if info.name in vary:
            kept.append(helper.make_tensor_value_info(info.name, kind, value.shape))
            data.append(value)
        else:
            graph.initializer.append(numpy_helper.from_array(value, info.name))
    graph.input.extend(kept)
    return model.SerializeToString(), data


def compare(case, vary: set[str]) -> str:
    """Load and evaluate in float64; '' or the largest difference from onnx's outputs. Raises what the loader raises."""
    from graph_evaluate import evaluate

    from absdom.frontends.onnx import load_onnx
    from absdom.ir.check import check
    from absdom.passes import lower

    for inputs, outputs in case.data_sets:
        data, varying = freeze(case, inputs, vary)
        graph = check(load_onnx(data=data))
        point = np.concatenate([v.astype(np.float64).ravel() for v in varying])
        with np.errstate(all="ignore"):
            found = evaluate(lower(graph), point)[0]
        expected = [as_array(o) for o in outputs]
        shapes = [graph.nodes[i].type.shape for i in graph.outputs]
        if shapes != [e.shape for e in expected]:
            return f"shapes {shapes}, onnx has {[e.shape for e in expected]}"
        wanted = np.concatenate([e.astype(np.float64).ravel() for e in expected])
        # onnx computes what it expects in float32: beside large values it errs by more than its atol.
        noise = NOISE * np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        if not np.allclose(found, wanted, case.rtol, case.atol + noise, equal_nan=True):
            worst = np.nanargmax(np.abs(found - wanted))
            return f"{found[worst]:.9g} at place {worst}, onnx has {wanted[worst]:.9g}"
    return ""


def attempt(case) -> Outcome:
    """Load and compare, first with all float inputs varying, then with one at a time."""
    from absdom.errors import ModelError, UnsupportedOp

    names = varying_names(case)
    refusals = []
    for state, vary in ((AGREES, set(names)), *((ONE, {n}) for n in names if len(names) > 1)):
        try:
            difference = compare(case, vary)
        except (UnsupportedOp, ModelError) as error:
            lines = [line.strip() for line in str(error).removeprefix("the model: ").splitlines()]
            refusals.append("; ".join(lines[1:] or lines))
            continue
        return Outcome(WRONG, difference) if difference else Outcome(state)
    return Outcome(NOT_LOADED, refusals[0])


def loaded(case, largest: int):
    """(graph, flat point) of a case that loads and takes no more than `largest` numbers, else None."""
    from absdom.errors import ModelError, UnsupportedOp
    from absdom.frontends.onnx import load_onnx

    names = varying_names(case)
    for vary in (set(names), *({n} for n in names if len(names) > 1)):
        data, varying = freeze(case, case.data_sets[0][0], vary)
        point = np.concatenate([v.astype(np.float64).ravel() for v in varying])
        if len(point) > largest:
            return None
        try:
            return load_onnx(data=data), point
        except (UnsupportedOp, ModelError):
            continue
    return None


def varying_names(case) -> list[str]:
    """The float inputs whose data are finite numbers."""
    return [
        info.name
        for k, info in enumerate(case.model.graph.input)
        if info.type.tensor_type.elem_type in FLOATS
        and all(np.isfinite(as_array(inputs[k])).all() for inputs, _ in case.data_sets)
    ]


def run_all() -> tuple[dict[str, Outcome], Counter]:
    """The outcome of each case that takes part, and how many take none, by reason."""
    cases, outside = collect()
    found = {}
    for name, case in cases.items():
        try:
            found[name] = attempt(case)
        except Exception as error:  # a traceback counts as a wrong answer, and the others are still wanted
            found[name] = Outcome(WRONG, f"{type(error).__name__}: {error}")
    return found, outside


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description="Run onnx's backend node tests through absdom's front end.")
    parser.add_argument("--failed", action="store_true", help="print only the cases with wrong numbers")
    options = parser.parse_args(arguments)
    found, outside = run_all()
    states = Counter(o.state for o in found.values())
    wrong = {name: o.reason for name, o in found.items() if o.state == WRONG}
    if not options.failed:
        good = states[AGREES] + states[ONE]
        print(f"onnx {onnx.__version__}: {len(found) + outside.total()} node tests, {len(found)} take part\n")
        print("| outcome | cases |\n|---|---|")
        for state in (AGREES, ONE, NOT_LOADED, WRONG):
            print(f"| {state} | {states[state]} |")
        print(f"| **load and agree** | **{good} of {len(found)} ({100 * good / len(found):.1f} %)** |")
        print("\n| takes no part | cases |\n|---|---|")
        for reason, count in outside.most_common():
            print(f"| {reason} | {count} |")
        reasons: dict[str, list[str]] = {}
        for name, outcome in found.items():
            if outcome.state == NOT_LOADED:
                reasons.setdefault(short(outcome.reason), []).append(name.removeprefix("test_"))
        print("\n| does not load because of | cases |\n|---|---|")
        for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
            print(f"| {reason} | {len(names)}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} |")
    for name, reason in wrong.items():
        print(f"WRONG {name}: {reason}")
    return 1 if wrong else 0


def short(reason: str) -> str:
    """A reason without the names of the nodes."""
    return "; ".join(part.split(": '")[0] for part in reason.split("; "))[:160]


if __name__ == "__main__":
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
