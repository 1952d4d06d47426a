"""Rigorous upper bounds of spectral norms: how far an affine op can stretch an l2 ball.

All is computed in float64 with its rounding charged, whatever the numbers of the run: once per set of weights.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch

from absdom.arithmetic import PROOF
from absdom.ir.op import Affine, At
from absdom.ops.affine import Conv, Linear, LinearLeft
from absdom.ops.transposed import ConvTranspose

GRAM = 1024  # the smaller side up to which a matrix is written out
SQUARINGS = 7  # the bound is above the norm by at most the factor n^(1/512) for a matrix whose smaller side is n
BLOCK_WORK = 2e10  # operations that the blocks of a convolution may take


def operator_norm(op: Affine, at: At, index: int, errors: tuple) -> torch.Tensor:
    """An upper bound of the spectral norm of the linear part for varying input `index`, a float64 number.

    `errors`, per input: "1 *n" error of a rounded parameter, or None; the bound holds for every op within them.
    """
    at = at._replace(params=tuple(None if p is None else p.double() for p in at.params))
    errors = tuple(None if e is None else e.double() for e in errors)
    crude = _schur(lambda x: op.absolute(at, _at_index(at, index, x)), at, index)
    best = crude
    sides = at.inputs[index].numel, at.output.numel
    if isinstance(op, (Linear, LinearLeft)) and min(sides) <= GRAM:
        every = torch.eye(min(sides), dtype=torch.float64, device=crude.device)
        if sides[1] <= sides[0]:
            matrix = op.transpose(every.reshape(-1, *at.output.shape), at, index)
        else:
            matrix = op.linear(at, _at_index(at, index, every.reshape(-1, *at.inputs[index].shape)))
        # Weights that meet in one entry were summed.
        best = matrix_norm(matrix.flatten(1)) + crude * PROOF.gamma(op.terms(at))
    elif isinstance(op, (Conv, ConvTranspose)):
        best = torch.minimum(best, _convolution_norm(op, at, crude))
    if any(e is not None and not op.is_additive(i, at) for i, e in enumerate(errors)):
        best = best + _schur(lambda x: op.error_weight(at, errors, _at_index(at, index, x)), at, index)
    return best * (1 + PROOF.gamma(4))


def _at_index(at: At, index: int, x: torch.Tensor) -> list:
    """Operands of the linear part: x "k *n" at `index`, zeros at the other varying ones."""
    zeros = (x.new_zeros((len(x), *t.shape)) if v else None for t, v in zip(at.inputs, at.varying, strict=True))
    return [x if i == index else z for i, z in enumerate(zeros)]


def _schur(absolute, at: At, index: int) -> torch.Tensor:
    """sqrt(|A|_1 |A|_inf) of the linear map with the absolute values `absolute` (Schur's test).

    It is the norm itself where no row or no column has more than one entry, and where all entries are one number.
    """
    device = next((p.device for p in at.params if p is not None), None)
    ones = torch.ones((1, *at.inputs[index].shape), dtype=torch.float64, device=device)
    live = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in at.params)
    rows = absolute(ones)
    with torch.enable_grad():
        x = ones.clone().requires_grad_()
        (columns,) = torch.autograd.grad(absolute(x).sum(), x, create_graph=live)
    return (rows.amax() * columns.amax()).sqrt() * (1 + PROOF.gamma(at.inputs[index].numel + at.output.numel))


def matrix_norm(matrix: torch.Tensor, squarings: int = SQUARINGS) -> torch.Tensor:
    """An upper bound of the largest spectral norm of a batch of float64 matrices "... m n", a number.

    |A|^2 = |A^T A|, again and again, and at last the norm is below that of Frobenius (Gelfand's formula as bounds; the
    Gram iteration of Delattre et al. 2023). The rounding of each product is charged: it is below gamma |A|_F^2.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT
    scales, charges = [], []
    for _ in range(squarings + 1):
        size = torch.linalg.matrix_norm(matrix).amax()
        scale = torch.exp2(size.detach().clamp(min=1e-150).log2().round())  # a power of two: dividing is exact
        matrix = matrix / scale
        square = torch.linalg.matrix_norm(matrix).square().amax()
        scales.append(scale)
        charges.append(square * PROOF.gamma(2 * matrix.shape[-2]) + 1e-300)
        matrix = matrix.mT @ matrix
    last = torch.minimum(
        torch.linalg.matrix_norm(matrix).amax(),
        (matrix.abs().sum(-1).amax(-1) * matrix.abs().sum(-2).amax(-1)).sqrt().amax(),
    ) * (1 + PROOF.gamma(matrix.shape[-1] ** 2))
    for scale, charge in zip(reversed(scales), reversed(charges), strict=True):
        last = scale * (last + charge).sqrt() * (1 + PROOF.gamma(4))
    return last


def _convolution_norm(op: Conv | ConvTranspose, at: At, crude: torch.Tensor) -> torch.Tensor:
    """Through the Fourier transform of the strided convolution over a circle that is as long as the padded input.

    A convolution that does not reach around the circle is a part of the one on the circle, which falls into one block
    per frequency: output channels x (input channels and phases of the stride). A transposed one is the adjoint.
    """
    weights = at.params[1][0]
    kernel, strides, dilations = weights.shape[2:], op.strides, op.dilations
    if isinstance(op, Conv):
        padded = [n + p + q for n, p, q in zip(at.inputs[0].shape[2:], op.before, op.after, strict=True)]
    else:
        sizes = zip(at.inputs[0].shape[2:], strides, dilations, kernel, strict=True)
        padded = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in sizes]
    circle = [-(-n // s) for n, s in zip(padded, strides, strict=True)]  # in steps of the stride
    groups = weights.reshape(op.groups, -1, *weights.shape[1:])
    phases, small = prod(strides), min(groups.shape[1], groups.shape[2] * prod(strides))
    frequencies = (prod(circle) + prod(circle[1:])) // 2 + 1
    if frequencies * op.groups * (2 * small) ** 3 * 2 * SQUARINGS > BLOCK_WORK:
        return crude
    taps = list(product(*(range(k) for k in kernel)))
    table = torch.tensor(taps, device=weights.device) * torch.tensor(dilations, device=weights.device)
    stride = torch.tensor(strides, device=weights.device)
    shift, phase = table // stride, table % stride
    slot = torch.zeros(len(taps), dtype=torch.long, device=weights.device)
    for axis, s in enumerate(strides):
        slot = slot * s + phase[:, axis]
    half = [range(n if axis else n // 2 + 1) for axis, n in enumerate(circle)]  # the others are conjugate
    wave = torch.tensor(list(product(*half)), device=weights.device)
    length = torch.tensor(circle, device=weights.device)
    turns = ((wave[:, None] * shift[None]) % length).double() / length
    angle = 2 * torch.pi * turns.sum(-1)  # "F taps"
    flat = groups.flatten(3)  # "G m c taps"
    spread = torch.zeros((len(taps), phases), dtype=torch.float64, device=weights.device)
    spread[torch.arange(len(taps)), slot] = 1
    cosine, sine = (
        torch.einsum("gmct,ft,tp->gfmcp", flat, wave_of, spread).flatten(3) for wave_of in (angle.cos(), angle.sin())
    )
    blocks = torch.cat([torch.cat([cosine, -sine], -1), torch.cat([sine, cosine], -1)], -2)
    # An entry errs by a few roundings of the angle (below 2 pi times the axes), and by its sum.
    sizes = torch.einsum("gmct,tp->gmcp", flat.abs(), spread)
    wrong = 2 * torch.linalg.vector_norm(sizes.flatten(1), dim=1).amax() * PROOF.gamma(len(taps) + 64)
    return torch.minimum(crude, matrix_norm(blocks) + wrong)
