"""What the VNN-LIB standard wants of a solver beside verdicts: its capabilities, and assignments as ONNX tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from absdom.errors import UsageError
from absdom.frontends.onnx_file import OPSETS
from absdom.frontends.onnx_ops import HANDLERS
from absdom.frontends.vnnlib2_declare import NEWEST
from absdom.registry import register_service
from absdom.verdict import Witness

# On constants these are computed, and what they make is a constant.
CONSTANTS = ("Constant", "ConstantOfShape", "Shape", "Size")


@register_service("supports")
def supports(capability: str) -> list[str]:
    """The lines that answer `supports --<capability>`.

    Element types: an unsat speaks of the network over the real numbers, so only `real` is sound in the standard's
    sense. Disjunctions: flattened to disjunctive normal form, whose clauses are then bounded together.
    """
    answers = {
        "onnx-opset-versions": [str(OPSETS[0]), str(OPSETS[-1])],
        "onnx-element-types": ["real"],
        "onnx-operators": sorted({*HANDLERS, *CONSTANTS}),
        "vnnlib-versions": ["1.0", "{}.{}".format(*NEWEST)],
        "hidden-node-theories": ["NH", "H"],
        "multiple-input-output-theories": ["SIO", "MIO"],
        "multiple-network-theories": ["SNET"],
        "multiple-node-comparison-theories": ["SNC", "MNC"],
        "arithmetic-complexity-theories": ["BND", "OUTC", "LIN", "POLY"],
        "optimised-disjunctive-reasoning": ["false"],
        "serialise-assignments": ["true"],
    }
    if capability not in answers:
        raise UsageError(f"the capability {capability!r} is not one of {', '.join(answers)}")
    return answers[capability]


@register_service("serialise-assignments")
def serialise(witness: Witness, folder: str | Path) -> None:
    """Write each tensor of the witness to `folder`, made if need be, as a TensorProto: NAME.pb.

    A tensor declared as real has the element type that the model computed it in.
    """
    from onnx import numpy_helper

    if witness.interface is None:
        raise UsageError("--serialise-assignments: a VNN-LIB 1.0 property declares no tensors")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for variable, values in witness.tensors():
        dtype = values.dtype if variable.dtype == "real" else np.dtype(variable.dtype)
        tensor = numpy_helper.from_array(values.astype(dtype), variable.name)
        (target / f"{variable.name}.pb").write_bytes(tensor.SerializeToString())
