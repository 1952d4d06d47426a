"""A layer dual of your own: hardtanh, a Clip between -1 and 1 (Wong 2020, equations 3.62 and 3.63), corrected: in print
D and d have changed places where l < -1 and u > 1, and max(u, -l) reads max(u, l). `slope=adaptive` asks for nu's sign.
Run: absdom verify MODEL PROPERTY --plugin examples/06_own_layer_dual.py --method 'hardtanh(slope=parallel)'
"""

from dataclasses import dataclass

import torch

from absdom.domains.linear import Linear
from absdom.domains.linear.duals import ElementwiseDual
from absdom.ir.op import Lines
from absdom.ops import Clip
from absdom.ops.piecewise import margin
from absdom.registry import register_recipe, register_rule


@register_recipe("hardtanh")
@dataclass(frozen=True)
class Hardtanh(Linear):
    name = "hardtanh"


class HardtanhDual(ElementwiseDual):
    def lines(self, place, recipe):
        if place.op != Clip(-1.0, 1.0) or recipe.slope == "flat" or place.knobs:
            return super().lines(place, recipe)
        low, high = place.inputs[0].lower, place.inputs[0].upper
        f_low, left, right, parallel = low.clamp(-1, 1), low < -1, high > 1, recipe.slope == "parallel"
        chord = (high.clamp(-1, 1) - f_low) / (high - low).where(high > low, f_low.new_ones(()))
        wide = 2 / (1 + torch.maximum(high, -low))
        above = torch.where(left & right, wide if parallel else 2 / (1 - low), chord)
        below = torch.where(left & right, wide if parallel else 2 / (1 + high), chord)
        top = torch.where(right, 1 - above, f_low - chord * low) + margin(above, low, high, f_low)
        bottom = torch.where(left, below - 1, f_low - chord * low) - margin(below, low, high, f_low)
        return Lines(below, bottom, above, top)


register_rule(Hardtanh, Clip)(HardtanhDual())
