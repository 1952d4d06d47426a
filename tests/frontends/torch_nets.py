"""Small torch networks of the kinds that people verify, and what the tests of the torch front end share."""

from __future__ import annotations

import torch
from graph_evaluate import evaluate
from torch import nn
from torch.nn import functional as F

from absdom.ir.graph import Graph
from absdom.passes import lower


class Calls(nn.Module):
    """Functions of one input as one module with one output each: {name: function}; `layers` are modules."""

    def __init__(self, functions: dict, layers: dict | None = None):
        super().__init__()
        self.functions, self.layers = functions, nn.ModuleDict(layers or {})

    def forward(self, x):
        return {name: f(x) for name, f in self.functions.items()} | {name: m(x) for name, m in self.layers.items()}


def ready(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with running statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(1)
    module = module.double().eval()
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
    return module


def differences(module: nn.Module, graph: Graph, *inputs: torch.Tensor) -> dict[str, float]:
    """Per output of the module the largest difference from the graph at a point, as a share of 1 + its size."""
    with torch.no_grad():
        expected = [y for y in torch.utils._pytree.tree_leaves(module(*inputs)) if y is not None]
        flat = torch.cat([x.reshape(1, -1) for x in inputs], 1)
        found = torch.from_numpy(evaluate(lower(graph), flat.numpy()))[0]
    sizes = [e.numel() for e in expected]
    assert sum(sizes) == len(found)
    names = [
        next(name for name, node in graph.names.items() if node == i and name.startswith("output"))
        for i in graph.outputs
    ]
    return {
        name: float(((part - e.reshape(-1)).abs() / (1 + e.reshape(-1).abs())).max())
        for name, e, part in zip(names, expected, found.split(sizes), strict=True)
    }


def assert_agrees(module: nn.Module, graph: Graph, *examples: torch.Tensor, points: int = 2) -> None:
    for _ in range(points):
        inputs = [torch.randn_like(e) for e in examples]
        found = differences(module, graph, *inputs)
        wrong = {name: value for name, value in found.items() if not value < 1e-10}
        assert not wrong, wrong


def conv_block(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Sequential:
    activation = options.pop("activation", nn.ReLU)
    padding = options.pop("padding", kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation(inplace=True))


class BasicBlock(nn.Module):
    """He et al. 2016."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.first = conv_block(inputs, outputs, stride=stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.second(self.first(x))
        out += self.skip(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """One by one, three by three in groups, one by one (ResNeXt)."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            conv_block(channels, 4, 1), conv_block(4, 4, 3, groups=2), nn.Conv2d(4, channels, 1), nn.BatchNorm2d(channels)
        )  # fmt: skip

    def forward(self, x):
        return F.relu(x + self.body(x), inplace=True)


class DenseLayer(nn.Module):
    """Norm, activation, convolution, and everything so far side by side (DenseNet)."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x), inplace=True))], 1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels, gate=nn.Sigmoid):
        super().__init__()
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1), gate()
        )

    def forward(self, x):
        return x * self.body(x)


class InvertedResidual(nn.Module):
    """MobileNet v2 (ReLU6), v3 (hardswish, squeeze and excite) and EfficientNet (SiLU)."""

    def __init__(self, channels, activation, excite=None):
        super().__init__()
        wide = 2 * channels
        self.body = nn.Sequential(
            conv_block(channels, wide, 1, activation=activation),
            conv_block(wide, wide, 3, groups=wide, activation=activation),
            SqueezeExcite(wide, excite) if excite else nn.Identity(),
            nn.Conv2d(wide, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.body(x)


class Inception(nn.Module):
    """Branches side by side; a Fire module (SqueezeNet) is one without pooling."""

    def __init__(self, inputs):
        super().__init__()
        self.one = conv_block(inputs, 2, 1)
        self.three = nn.Sequential(conv_block(inputs, 2, 1), conv_block(2, 3, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_block(inputs, 2, 1))

    def forward(self, x):
        return torch.cat([self.one(x), self.three(x), self.pool(x), F.avg_pool2d(x, 3, 1, 1)], 1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = conv_block(1, 3), conv_block(3, 4)
        self.up, self.out = nn.ConvTranspose2d(4, 3, 2, 2), nn.Conv2d(9, 2, 1)

    def forward(self, x):
        skip = self.down(x)
        deep = self.deep(F.max_pool2d(skip, 2))
        smooth = F.interpolate(skip[:, :, ::2, ::2], size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(torch.cat([self.up(deep), skip, smooth], 1))


class ViT(nn.Module):
    """Patches, a class token, positions, encoder layers, a head on the token (Dosovitskiy et al. 2021)."""

    def __init__(self, width=8, depth=1, pool="token", **options):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) / 4)
        self.positions = nn.Parameter(torch.randn(1, 5, width) / 4)
        options = {"dim_feedforward": 12, "activation": "gelu", "batch_first": True, "norm_first": True} | options
        layer = nn.TransformerEncoderLayer(width, 2, dropout=0.1, **options)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head, self.pool = nn.LayerNorm(width), nn.Linear(width, 3), pool

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1) + self.positions
        tokens = self.norm(self.encoder(tokens))
        return self.head(tokens[:, 0] if self.pool == "token" else tokens.mean(1))


class Windows(nn.Module):
    """Attention with a learnt table of relative positions, a constant mask and cyclic shifts (Swin)."""

    def __init__(self, width=4, tokens=4):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1))
        place = torch.arange(tokens)
        self.register_buffer("places", place[:, None] - place[None] + tokens - 1)
        self.register_buffer(
            "mask", torch.zeros(tokens, tokens).masked_fill(place[:, None] // 2 != place // 2, -torch.inf)
        )

    def forward(self, x):
        q, k, v = self.qkv(torch.roll(x, 1, 1)).reshape(1, x.shape[1], 3, -1).unbind(2)
        scores = q * q.shape[-1] ** -0.5 @ k.mT + self.table[self.places.view(-1)].view(self.places.shape) + self.mask
        return torch.roll(self.out(scores.softmax(-1) @ v), -1, 1)


def body(*layers, channels: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 3))


def vgg() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), conv_block(4, 4, 5, stride=2), nn.MaxPool2d(2, 2),
        nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Dropout(), nn.Linear(24, 8), nn.ReLU(True), nn.Linear(8, 3),
    )  # fmt: skip


# name -> (module, shapes of its inputs)
NETWORKS = {
    "vgg": lambda: (vgg(), (1, 1, 16, 16)),
    "resnet": lambda: (body(BasicBlock(1, 4, 2), BasicBlock(4, 4), channels=4), (1, 1, 6, 6)),
    "bottleneck": lambda: (body(conv_block(1, 6), Bottleneck(6), channels=6), (1, 1, 5, 5)),
    "densenet": lambda: (body(DenseLayer(2, 2), DenseLayer(4, 2), nn.AvgPool2d(2), channels=6), (1, 2, 4, 4)),
    "mobilenet_v2": lambda: (body(conv_block(1, 4), InvertedResidual(4, nn.ReLU6), channels=4), (1, 1, 4, 4)),
    "mobilenet_v3": lambda: (body(InvertedResidual(2, nn.Hardswish, nn.Hardsigmoid), channels=2), (1, 2, 4, 4)),
    "efficientnet": lambda: (body(InvertedResidual(2, nn.SiLU, nn.Sigmoid), channels=2), (1, 2, 4, 4)),
    "inception": lambda: (body(Inception(2), channels=9), (1, 2, 5, 5)),
    "unet": lambda: (UNet(), (1, 1, 4, 4)),
    "vit": lambda: (ViT(), (1, 1, 8, 8)),
    "vit_mean": lambda: (ViT(pool="mean", depth=2, norm_first=False, activation="relu"), (1, 1, 8, 8)),
    "windows": lambda: (Windows(), (1, 4, 4)),
    "controller": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Softplus(), nn.Linear(6, 6), nn.ELU(),
                      nn.Linear(6, 2), nn.Sigmoid()), (1, 4)
    ),
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network in evaluation mode, and an example input."""
    torch.manual_seed(3)
    module, shape = NETWORKS[name]()
    return ready(module), torch.rand(shape, dtype=torch.float64)
