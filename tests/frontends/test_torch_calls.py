"""Every kind of ATen call that the torch front end translates gives what torch gives, in float64."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_nets import Calls, assert_agrees, ready

import absdom

INF = float("inf")

ACTIVATIONS = {
    "relu": nn.ReLU(), "relu6": nn.ReLU6(), "leaky": nn.LeakyReLU(0.2), "prelu": nn.PReLU(2), "prelu_one": nn.PReLU(),
    "rrelu": nn.RReLU(), "elu": nn.ELU(0.7), "celu": nn.CELU(0.5), "selu": nn.SELU(), "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "mish": nn.Mish(), "softplus": nn.Softplus(),
    "softplus_steep": nn.Softplus(2.0), "softsign": nn.Softsign(), "log_sigmoid": nn.LogSigmoid(), "tanh": nn.Tanh(),
    "hardsigmoid": nn.Hardsigmoid(), "hardswish": nn.Hardswish(), "hardtanh": nn.Hardtanh(-2, 1), "glu": nn.GLU(1),
    "softshrink": nn.Softshrink(), "threshold": nn.Threshold(0.1, 0.1), "jump": nn.Threshold(0.1, 2.0), "hardshrink": nn.Hardshrink(), "sigmoid": nn.Sigmoid(), "shrink": nn.Tanhshrink(),
    "softmax": nn.Softmax(-1), "log_softmax": nn.LogSoftmax(-1), "softmin": nn.Softmin(-1), "dropout": nn.Dropout(0.5),
}  # fmt: skip
LAYERS = {
    "layer_norm": nn.LayerNorm(6), "layer_norms": nn.LayerNorm((2, 6), bias=False), "rms": nn.RMSNorm(6),
    "group_norm": nn.GroupNorm(2, 2), "instance_norm": nn.InstanceNorm1d(2, affine=True), "batch_norm": nn.BatchNorm1d(2),
    "instance_running": nn.InstanceNorm1d(2, track_running_stats=True), "local": nn.LocalResponseNorm(2),
    "max_pool": nn.MaxPool1d(2), "avg_pool": nn.AvgPool1d(3, 1, 1), "adaptive": nn.AdaptiveAvgPool1d(4),
    "adaptive_max": nn.AdaptiveMaxPool1d(4), "adaptive_even": nn.AdaptiveMaxPool1d(3), "highest": nn.AdaptiveMaxPool1d(1),
    "pad": nn.ConstantPad1d((1, 2), 0.5), "reflect": nn.ReflectionPad1d(2), "replicate": nn.ReplicationPad1d(1),
    "circular": nn.CircularPad1d(2), "crop": nn.ZeroPad1d((1, -1)), "unfold": nn.Flatten(), "norm_pool": nn.LPPool1d(2, 2),
    "conv": nn.Conv1d(2, 4, 3, padding=1, padding_mode="reflect"), "transposed": nn.ConvTranspose1d(2, 3, 3, 2, 1, 1),
    "nearest": nn.Upsample(scale_factor=2), "linear": nn.Upsample(scale_factor=2, mode="linear"),
    "corners": nn.Upsample(7, mode="linear", align_corners=True), "shuffle": nn.ChannelShuffle(2),
    "weighted": nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)),
    "spectral": nn.utils.parametrizations.spectral_norm(nn.Linear(6, 2)),
}  # fmt: skip
IMAGE_LAYERS = {
    "grouped": nn.Conv2d(4, 6, 3, 2, "valid", groups=2), "dilated": nn.Conv2d(4, 2, 3, padding="same", dilation=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), "shuffle": nn.PixelShuffle(2),
    "unshuffle": nn.PixelUnshuffle(2), "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "corners": nn.Upsample((5, 7), mode="bilinear", align_corners=True), "bicubic": nn.Upsample(scale_factor=1.5, mode="bicubic"),
    "exact": nn.Upsample(scale_factor=1.7, mode="nearest-exact"), "nearest": nn.Upsample(size=(7, 3)),
    "adaptive": nn.AdaptiveAvgPool2d((3, 4)), "adaptive_half": nn.AdaptiveAvgPool2d((None, 3)), "unfold": nn.Unfold(2, padding=1),
    "adaptive_max": nn.AdaptiveMaxPool2d((3, 4)), "max_pool": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "avg_pool": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), "divided": nn.AvgPool2d(2, divisor_override=3),
    "places": nn.MaxPool2d(2, dilation=2, stride=1), "reflect": nn.ReflectionPad2d((1, 2, 1, 0)), "average": nn.AdaptiveAvgPool2d(1),
}  # fmt: skip
ARITHMETIC = {
    "scaled": lambda x: torch.add(x, x, alpha=2) - torch.rsub(x, 1.0) / 3, "quotient": lambda x: x / (x.abs() + 1),
    "inverse": lambda x: 2 / (x.abs() + 1), "powers": lambda x: (x.abs() + 1) ** 1.5 + x**2 + x**3 + x * x + x.square() + x**0 + 2.0**x,
    "roots": lambda x: (x.abs() + 1).rsqrt() + (x.abs() + 2).reciprocal() + (x.abs() + 1).sqrt() + (x.abs() + 0.1).log(),
    "smooth": lambda x: x.sin() + x.cos() + x.exp() + x.atan() + x.erf() + (x / 9).tan(), "lerp": lambda x: torch.lerp(x, 2 * x, 0.3),
    "fused": lambda x: torch.addcmul(x, x, x, value=0.5) + x.remainder(1.0) + x.floor_divide(0.7),
    "clamp": lambda x: x.clamp(-0.1, 0.3) + x.clamp(min=0.0) + x.clamp(max=x * 0.5) + x.clamp_min(0.1) + F.relu6(x),
    "logs": lambda x: (x.abs() + 1).log2() + (x.abs() + 1).log10() + x.abs().log1p() + x.exp2() + x.expm1() + x.sinh() + x.cosh(),
    "crossed": lambda x: x.clamp(1.0, 0.5) + torch.where(torch.arange(4) > 1, x, torch.ones(4) / 3),
    "extremes": lambda x: torch.minimum(x, x.flip(1)) + torch.maximum(x, 0.3 * x) + torch.maximum(x, torch.tensor(0.2)),
    "steps": lambda x: x.floor() + x.ceil() + (3 * x).round() + x.trunc() + x.sign() + x.abs().long() + x.bool().double(),
    "compare": lambda x: (x > 0.1).double() + (x <= 0.2).double() + (x >= 0) * 1.0 + (x != 0).double() + (x == 0.0).double(),
    "logic": lambda x: ((x > 0) & (x < 0.5)).double() + ((x > 1) | ~(x > 0.2)).double() + ((x > 0) ^ (x < 1)).double() + (x > 0).any(1) * 1.0,
    "where": lambda x: torch.where(torch.arange(4) > 1, x, 0.5) + torch.where(x > 0, x, 2 * x) + torch.where(torch.arange(4) > 2, x, x * x),
    "filled": lambda x: x.masked_fill(torch.arange(4) > 1, 2.0) + torch.full_like(x, 2.0), "triangles": lambda x: x.tril() + 2 * x.triu(1),
    "constants": lambda x: x + torch.arange(4) / 3 + torch.linspace(0, 1, 4) * torch.ones(4).cumsum(0),
    "in_place": lambda x: F.relu_(x * 1).add_(x).mul_(2), "written": lambda x: written(x), "written_part": lambda x: written_part(x),
    "no_grad": lambda x: without_gradient(x), "chosen": lambda x: torch.where(x > 0, torch.tensor(1.0), torch.tensor(0.5)),
}  # fmt: skip
MATRICES = {
    "products": lambda x: x @ x.mT @ torch.ones(2), "outer": lambda x: torch.outer(x[0, 0], x[0, 1]), "dot": lambda x: torch.dot(x[0, 0], x[0, 1]),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x), "turned": lambda x: torch.einsum("...ij->...ji", x),
    "three": lambda x: torch.einsum("bij,jk,bik->b", x, torch.ones(4, 4), x), "batched": lambda x: torch.bmm(x, x.mT),
    "baddbmm": lambda x: torch.baddbmm(torch.ones(2), x, x.mT, beta=0.5, alpha=2.0), "addmm": lambda x: torch.addmm(torch.ones(2), x[0], x[0].T),
    "bilinear": lambda x: F.bilinear(x, x, torch.ones(3, 4, 4)), "cosine": lambda x: F.cosine_similarity(x, x * x, dim=1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x), "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "bool_mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.tensor([[True, False], [True, True]])),
    "float_mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.tensor([[0.3, -INF], [0.1, 0.2]]), scale=0.7),
    "live_mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT),
    "filled": lambda x: (x @ x.mT / 2).masked_fill(torch.ones(2, 2).tril() == 0, -INF).softmax(-1),
    "shaped": lambda x: (x @ x.mT + torch.full((2, 2), -INF).triu(1)).view(1, 1, 2, 2).softmax(3),
    "first_axis": lambda x: (x @ x.mT + torch.full((2, 2), -INF).triu(1)).transpose(1, 2).softmax(1),
}  # fmt: skip
REDUCTIONS = {
    "sums": lambda x: x.mean() + x.sum(1) + x.mean((1, 2), keepdim=True) + x.sum(), "amax": lambda x: x.amax(1) + x.amin((1,)) + x.amax((1, 2)),
    "max": lambda x: x.max(1)[0] + x.min(1, keepdim=True).values.squeeze(1) + x.max() + x.min(), "places": lambda x: x.max(1)[1] + x.argmin(1),
    "var": lambda x: x.var(1) + x.std(1) + x.var((1, 2), unbiased=False) + x.var(), "norms": lambda x: x.norm(1, dim=1) + x.norm(dim=1) + x.norm(INF, dim=1),
    "normalize": lambda x: F.normalize(x, dim=1), "cumsum": lambda x: x.cumsum(2), "prod": lambda x: x.prod(2), "log_sum": lambda x: x.logsumexp(1),
    "topk": lambda x: x.topk(2)[0] + x.sort(-1, descending=True)[0][..., :2], "softmaxes": lambda x: x.softmax(1) + x.log_softmax(2),
}  # fmt: skip
MOVES = {
    "chunk": lambda x: torch.cat([i * c for i, c in enumerate(x.chunk(2, -1))], 1), "split": lambda x: torch.stack(x.split([1, 3], -1)[1].unbind(1), 0),
    "slices": lambda x: x[..., 1::2] + x[:, ::2, :2], "ends": lambda x: x[:, -1:, -2], "select": lambda x: x.index_select(2, torch.tensor([3, 0])),
    "index": lambda x: x[:, [1, 0, 1]], "indices": lambda x: x[:, [1, 0], [2, 3]], "flip": lambda x: x.flip(1, 2),
    "roll": lambda x: x.roll((1, -1), (1, 2)) + x.roll(3), "expand": lambda x: x[:, :1].expand(1, 3, 4) + x.new_zeros(3, 1) + x[:, :1].expand(-1, 3, -1),
    "repeat": lambda x: x.repeat(1, 2, 1) + x.tile(2, 1), "interleave": lambda x: x.repeat_interleave(2, 1), "pad": lambda x: F.pad(x, (1, 1), value=2.0),
    "gather": lambda x: x.gather(2, torch.tensor([[[0, 1], [3, 2]]])), "diagonal": lambda x: x.diagonal(dim1=1, dim2=2), "unfold": lambda x: x.unfold(2, 2, 1),
    "movedim": lambda x: x.movedim(1, 2), "view": lambda x: x.view(x.size(0), -1).unsqueeze(-1).squeeze(), "narrow": lambda x: x.narrow(1, 1, 1),
    "grid": lambda x: x + torch.meshgrid(torch.arange(2), torch.arange(4), indexing="ij")[0], "sections": lambda x: x.tensor_split(2, 2)[1],
    "flatten": lambda x: x.unflatten(2, (2, 2)).flatten(1, 2).swapaxes(1, 2), "same": lambda x: x.double().clone().contiguous(),
    "stacks": lambda x: torch.hstack([x, x]) + torch.vstack([x, x]).sum(0).repeat(2, 1), "rot": lambda x: x.rot90(1, (1, 2)),
}  # fmt: skip


def written(x):
    y = x * 2
    y[:, 0] = 1.0
    return y


def written_part(x):
    y = x * 2
    y[:, :1].relu_()
    y[:, 1, 2:] = x[:, 0, :2]
    return y


def without_gradient(x):
    with torch.no_grad():
        factor = torch.ones(4, dtype=torch.float64).cumsum(0)
    return x * factor


GROUPS = {
    "activations": (lambda: Calls({}, ACTIVATIONS), (1, 2, 5)),
    "layers": (lambda: Calls({}, LAYERS), (1, 2, 6)),
    "image layers": (lambda: Calls({}, IMAGE_LAYERS), (1, 4, 6, 6)),
    "arithmetic": (lambda: Calls(ARITHMETIC), (1, 4, 4)),
    "matrices": (lambda: Calls(MATRICES), (1, 2, 4)),
    "reductions": (lambda: Calls(REDUCTIONS), (1, 3, 4)),
    "moves": (lambda: Calls(MOVES), (1, 2, 4)),
}


@pytest.fixture(autouse=True)
def double():
    """Constants inside the functions are float64, as the networks are."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("group", GROUPS)
def test_agrees_with_torch(group):
    torch.manual_seed(0)
    make, shape = GROUPS[group]
    module = ready(make())
    example = torch.randn(shape)
    assert_agrees(module, absdom.load(module, example), example)


@pytest.mark.parametrize("layer", [nn.Conv3d(1, 2, 2, padding=1), nn.ConvTranspose3d(1, 2, 2, 2), nn.MaxPool3d(2),
                                   nn.Upsample(scale_factor=2, mode="trilinear"), nn.AdaptiveAvgPool3d((1, 3, 2))])  # fmt: skip
def test_three_spatial_axes(layer):
    example = torch.randn(1, 1, 2, 3, 4)
    assert_agrees(ready(layer), absdom.load(ready(layer), example), example)


class Attention(nn.Module):
    """The three ways through nn.MultiheadAttention, one with a mask, one over another sequence."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)

    def forward(self, x):
        mask = torch.ones(3, 3).triu(1).bool()
        quick, _ = self.attention(x, x, x, need_weights=False, attn_mask=mask)
        slow, weights = self.attention(x, x[:, :2], x[:, :2])
        return quick, slow, weights


def test_multihead_attention():
    torch.manual_seed(0)
    module, example = ready(Attention()), torch.randn(1, 3, 4)
    assert_agrees(module, absdom.load(module, example), example)


def test_multihead_attention_with_frozen_weights():
    """Without gradients torch would take its own fused attention, which no front end can read."""
    module, example = (
        ready(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)).requires_grad_(False),
        torch.randn(1, 3, 4),
    )
    with torch.no_grad():
        graph = absdom.load(module, example)
    assert torch.backends.mha.get_fastpath_enabled()
    assert_agrees(module, graph, example)


class Decoder(nn.Module):
    """A decoder layer under torch's own causal mask, and heads that share their keys."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(4, 2, 6, batch_first=True)

    def forward(self, x):
        x = self.layer(x, 2 * x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(3), tgt_is_causal=True)
        heads = x.view(1, 3, 2, 2).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads[:, :1], heads[:, :1], enable_gqa=True)


def test_decoder_layers():
    torch.manual_seed(0)
    module, example = ready(Decoder()), torch.randn(1, 3, 4)
    assert_agrees(module, absdom.load(module, example), example)


class Positions(nn.Module):
    """Positions looked up in a table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, x):
        return x + self.table(torch.arange(x.shape[1], device=x.device))


def test_positions_from_a_table():
    module, example = ready(Positions()), torch.randn(1, 3, 4)
    graph = absdom.load(module, example)
    assert graph.params["table.weight"] is module.table.weight
    assert_agrees(module, graph, example)


def test_recurrent_layers_unroll():
    torch.manual_seed(0)
    module, example = ready(nn.GRU(2, 3, batch_first=True)), torch.randn(1, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = absdom.load(module, example)
    assert_agrees(module, graph, example)
