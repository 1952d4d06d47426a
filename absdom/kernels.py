"""What bounds spend their time in, with gradients written out: few passes over memory, forward and back."""

from __future__ import annotations

from functools import partial

import torch

threshold_backward = torch.ops.aten.threshold_backward  # (g, x, t): g where x > t, else 0; comparisons are slow


class _Kernel(torch.autograd.Function):
    """Base: works under torch.func; outside of it the arguments are not bound to a signature at each call, which costs
    more than the work on a small layer."""

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args):
        below = _Kernel if torch._C._are_functorch_transforms_active() else torch.autograd.Function
        return super(below, cls).apply(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class _Halves(_Kernel):
    @staticmethod
    def forward(lower, upper):
        centre = torch.lerp(lower, upper, 0.5)
        return centre, upper - centre

    @staticmethod
    def backward(ctx, centre, radius):
        lower = (centre - radius).mul_(0.5)
        return lower, centre - lower


class _Ends(_Kernel):
    @staticmethod
    def forward(centre, radius):
        return centre - radius, centre + radius

    @staticmethod
    def backward(ctx, lower, upper):
        return lower + upper, upper - lower


class _Contract(_Kernel):
    @staticmethod
    def forward(rows, value):
        return torch.bmm(value.unsqueeze(1), rows.mT).squeeze(1)  # four times faster than the matrix times the vector

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, sums):
        rows, value = ctx.saved_tensors
        of_rows = sums.unsqueeze(2) * value.unsqueeze(1) if ctx.needs_input_grad[0] else None
        return of_rows, torch.bmm(sums.unsqueeze(1), rows).squeeze(1) if ctx.needs_input_grad[1] else None


class _Relax(_Kernel):
    @staticmethod
    def forward(rows, lower, upper):
        low, negative = lower.unsqueeze(1), rows.clamp_max(0)
        return torch.addcmul(rows * low, negative, (upper - lower).unsqueeze(1))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, change):
        rows, lower, upper = ctx.saved_tensors
        of_rows = of_lower = of_upper = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.where(rows < 0, upper.unsqueeze(1), lower.unsqueeze(1)) * change
        if ctx.needs_input_grad[1]:
            of_lower = _over_rows(torch.relu(rows) * change, lower)
        if ctx.needs_input_grad[2]:
            of_upper = _over_rows(rows.clamp_max(0) * change, upper)
        return of_rows, of_lower, of_upper


class _RelaxRelu(_Kernel):
    """With the lines made before; a gradient that is itself differentiated makes them anew from the bounds.

    Temporaries are overwritten where they depend on all arguments (torch.func): it costs a fraction of a new tensor.
    """

    @staticmethod
    def forward(rows, lower, upper, below, width, slope, longer):
        through = rows.clamp_max(0) * slope
        out = _where_positive(rows, longer.expand_as(rows)).relu_().add_(through)
        return out, through.mul_(below).sum(2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, change, of_constant):
        rows, lower, upper, *lines = ctx.saved_tensors
        below, width, slope, longer = _relu_lines(lower, upper) if torch.is_grad_enabled() else lines
        of_constant = of_constant.unsqueeze(2)
        of_through = torch.addcmul(change, below, of_constant)
        of_rows = of_lower = of_upper = None
        if ctx.needs_input_grad[0]:
            steep = of_through * slope
            kept = _where_positive(change, longer.expand_as(rows)).sub_(steep)
            of_rows = threshold_backward(kept, rows, -torch.finfo(rows.dtype).tiny).add_(steep)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # With s = h / (h + p): ds/dh = (1 - s) / (h + p), ds/dp = -s / (h + p).
            negative = rows.clamp_max(0)
            per_width = (of_through / width).mul_(negative)
            of_lower = _over_rows(torch.addcmul(per_width, negative, of_constant, value=-1).mul_(slope), lower)
            of_upper = _over_rows(torch.addcmul(per_width, per_width, slope, value=-1), upper)
            of_lower = threshold_backward(of_lower, below.squeeze(1), _nought(lower))
            of_upper = _where_positive(of_upper, upper)
        return of_rows, of_lower, of_upper, None, None, None, None


def _nought(value: torch.Tensor) -> float:
    """A number as good as zero whose products with common numbers are no subnormal ones, which are slow."""
    return torch.finfo(value.dtype).tiny ** 0.5


def _relu_lines(lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The line above ReLU through (-p, 0) and (h, h), h = u+ and p = l-, or a number as good as zero, so that slopes of
    linear parts are 0 or 1 of themselves: p, h + p, h / (h + p), and h - p, positive where the line below has slope 1
    (else 0). Each "G 1 n"."""
    below, high = (-lower).clamp_min_(_nought(lower)), torch.relu(upper)
    width = (below + high).clamp_max_(torch.finfo(high.dtype).max)  # a line that is steeper lies above the chord
    return below.unsqueeze(1), width.unsqueeze(1), (high / width).unsqueeze(1), (high - below).unsqueeze(1)


def _over_rows(change: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Gradients "G r n" of what was broadcast to the rows (and, "1 n", to the boxes)."""
    change = change.squeeze(1) if change.shape[1] == 1 else change.sum(1)
    return change if len(value) == len(change) else change.sum(0, keepdim=True)


class _ReluChord(_Kernel):
    """Masks by threshold_backward(value, x, 0), which is value where x > 0 and else 0: comparisons are slow."""

    @staticmethod
    def forward(lower, upper):
        below, high = _below(lower), _above(upper)
        slope = high / _width(below, high)
        # The slope rounds twice and the product once: 3 units of roundoff of `high`, here 8; both may be subnormal.
        numbers = torch.finfo(high.dtype)
        slack = (high * (4 * numbers.eps)).add_(below, alpha=numbers.tiny).add_(numbers.tiny)
        bias = torch.addcmul(slack, slope, below)
        return slope, _where_positive(_where_positive(bias, below), high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx, of_slope, of_bias):
        lower, upper, slope = ctx.saved_tensors
        below, high, rest = _below(lower), _above(upper), 1 - slope
        steep = of_slope / _width(below, high)
        # With s = u / (u - l): ds/dl = s / (u - l), ds/du = (1 - s) / (u - l), db/dl = -s^2, db/du = (1 - s)^2.
        of_lower = torch.addcmul(steep, slope, of_bias, value=-1) * slope
        of_upper = torch.addcmul(steep, rest, of_bias) * rest
        return _where_positive(of_lower, below), _where_positive(of_upper, high)


_where_positive = partial(threshold_backward, threshold=0)


def _below(lower: torch.Tensor) -> torch.Tensor:
    return torch.relu(-lower)


def _above(upper: torch.Tensor) -> torch.Tensor:
    return upper.clamp(0, torch.finfo(upper.dtype).max)


def _width(below: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Their sum, never zero (the least number there is changes no other) and finite: a line that is too steep, and zero
    at the lower end, lies above the chord."""
    numbers = torch.finfo(high.dtype)
    return (below + high).clamp(numbers.tiny * numbers.eps, numbers.max)


def halves(lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and radius "B *n" of [lower, upper] "B *n", rounded."""
    return _Halves.apply(lower, upper)


def ends(centre: torch.Tensor, radius: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """centre -+ radius, all "B *n", rounded."""
    return _Ends.apply(centre, radius)


def contract(rows: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """<row, value> of rows "B k n" and one value "B n" per box: "B k"."""
    if rows.shape[1] == 1:
        return (rows.squeeze(1) * value).sum(1, keepdim=True)
    return _Contract.apply(rows, value)


def relax(rows: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """rows+ * lower + rows- * upper of rows "G r n" and slopes "G n" (or "1 n")."""
    return _Relax.apply(rows, lower, upper)


def relax_relu(rows: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows "G r n" and constants "G r" behind ReLU on [lower, upper] "G n" (or "1 n"): nu- takes the least line above
    it, nu+ the one of slope 0 or 1 below it that leaves less area (CROWN: Zhang et al. 2018). Rounded."""
    with torch.no_grad():
        lines = _relu_lines(lower, upper)
    return _RelaxRelu.apply(rows, lower, upper, *lines)


def relu_chord(lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and bias of the least line above ReLU on [lower, upper], widened by what rounding can do; exactly (0, 0) or
    (1, 0) where ReLU is linear there. All "B *n"."""
    return _ReluChord.apply(lower, upper)
