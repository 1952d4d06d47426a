"""In which numbers a plan runs, and what their rounding can do.

For a sum of n products in any order, fused or not: |fl(sum) - sum| <= gamma_n sum |a_i b_i|, gamma_n = n u / (1 - n u)
(Higham 2002, section 3.1). A *charged* run subtracts this wherever it rounds, so that its bounds hold over the reals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Arithmetic:
    """guarded: bounds that became NaN (infinity minus infinity) are replaced by infinities, which claim nothing; False
    only for uncharged runs in which infinities come from nothing but overflow, where a NaN shall be noticed."""

    dtype: torch.dtype = torch.float32
    charged: bool = False
    device: str = "cpu"
    guarded: bool = True

    @property
    def unit(self) -> float:
        """Unit roundoff u."""
        return torch.finfo(self.dtype).eps / 2

    def gamma(self, n: int) -> float:
        """gamma_n, with a small surplus for the roundings made while the charge itself is computed."""
        n = n + 8
        return n * self.unit / (1 - n * self.unit) * 1.001

    @property
    def tiny(self) -> float:
        """More than what underflow can lose in one result of any network of less than 1e9 operations."""
        return torch.finfo(self.dtype).tiny

    def tensor(self, array) -> torch.Tensor:
        return torch.as_tensor(array).to(device=self.device, dtype=self.dtype)


SEARCH = Arithmetic(torch.float32, charged=False)
PROOF = Arithmetic(torch.float64, charged=True)


def numbers(t: torch.Tensor) -> np.ndarray:
    """A tensor as flat float64 numbers on the CPU, without gradients."""
    return t.detach().double().cpu().numpy().ravel()


def precise_backends() -> dict:
    """Switch TF32 and reduced-precision sums off, once per process; give back the flags for the record."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    return {
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
