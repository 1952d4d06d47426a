"""Training by the linear program's dual: convex adversarial polytopes (Wong and Kolter 2018; Wong et al. 2018)."""

from __future__ import annotations

import torch

from absdom.train.bounds import Certified
from absdom.train.live import Live
from absdom.train.task import Specification


class CAP(Certified):
    """The loss of lower bounds by the dual network J, whose bounds of all layers are its own, layer by layer.

    Which ReLUs are unstable is taken as given; their slopes u / (u - l) are differentiated. Bounds are met with those
    of intervals, which are the tighter ones in some networks, and l_1 and l_2 balls are exact at the first layer.

    projections: estimate all norms by medians of so many Cauchy projections (Wong et al. 2018, section 3.2), in time
    that grows with the number of elements and no faster; draws are fresh at each call, from torch's default generator.
    Estimates are no bounds: such a loss has no margins, and certificates need another one (None: exact).
    """

    def __init__(
        self,
        module: torch.nn.Module | Live,
        spec: Specification,
        *,
        eps: float,
        projections: int | None = None,
        kappa: float = 0.0,
        **more,
    ):
        recipe = "cap" if projections is None else f"projected(projections={projections}, seed=None)"
        super().__init__(module, spec, eps=eps, recipe=recipe, kappa=kappa, **more)
