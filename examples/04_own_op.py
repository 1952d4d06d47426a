"""An op of your own: HardSwish, x min(max(x + 3, 0), 6) / 6, as facts. Every domain and `absdom verify` then have it.

Run: absdom verify MODEL PROPERTY --plugin examples/04_own_op.py
(absdom ships a HardSwish; this one takes its place where ONNX files are read.)
"""

from dataclasses import dataclass

import torch

from absdom.frontends.onnx_ops import translates
from absdom.ops.smooth import Smooth
from absdom.registry import register_op


@register_op
@dataclass(frozen=True)
class MyHardSwish(Smooth):
    breaks = (-3.0, 3.0)  # where the curvature changes
    curvature = (0, 1, 0)  # affine, convex, affine
    extrema = (-3.0, -1.5)  # where it turns

    def eval(self, x):
        return x * (x + 3).clamp(0, 6) / 6

    def derivative(self, x):
        return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x / 3 + 0.5)).to(x.dtype)


@translates("HardSwish", replace=True)
def hard_swish(translation, call):
    return translation.add(MyHardSwish(), translation.node(call, 0))
