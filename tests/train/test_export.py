"""ONNX files of modules: batch norm folded, equal to the module, read back and certified; whole or not there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from absdom import certification
from absdom.api import load
from absdom.errors import ModelError, UnsupportedOp
from absdom.train.export import export_onnx
from absdom.train.zoo import ZOO, cnn7, mlp


def settled(network: nn.Module, shape) -> nn.Module:
    """In evaluation mode, with batch norms that do something."""
    network.train()
    with torch.no_grad():
        for m in network.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.weight.uniform_(0.5, 2)
                m.bias.normal_()
        network(torch.rand(16, *shape))
    return network.eval()


def node_types(path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run(path, x: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[None].numpy()})[0] for one in x])


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"mlp", "dm_large"}))
def test_every_network_of_the_zoo(name, tmp_path):
    torch.manual_seed(0)
    small = {"cnn7": {"width": 2}, "cnn5": {"bn": True}}.get(name, {})
    shape = (1, 16, 16)
    network = settled(ZOO[name](shape, 3, mean=0.4, std=0.3, **small), shape)
    path = tmp_path / "net.onnx"
    export_onnx(network, torch.zeros(1, *shape), path)
    kinds = set(node_types(path))
    assert kinds <= {"Sub", "Div", "Conv", "Relu", "Add", "Flatten", "Gemm"}, kinds
    x = torch.rand(5, *shape)
    np.testing.assert_allclose(run(path, x), network(x).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_batch_norm_is_folded_as_by_hand(tmp_path):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    settled(network, (2, 4, 4)).train()
    path = tmp_path / "net.onnx"
    export_onnx(network, torch.zeros(1, 2, 4, 4), path)
    assert network.training and node_types(path) == ["Conv", "Flatten", "Gemm"]
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    norm = network[1]
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    np.testing.assert_allclose(
        stored["0.weight"], network[0].weight.detach().numpy() * factor[:, None, None, None], rtol=1e-6
    )
    shift = norm.bias.detach().numpy() - norm.running_mean.numpy() * factor
    np.testing.assert_allclose(stored["0.bias"], shift, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(stored["3.weight"], network[3].weight.detach().numpy())


def test_batch_norm_with_nothing_to_fold_into_stays(tmp_path):
    network = settled(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)), (4,))
    export_onnx(network, torch.zeros(1, 4), tmp_path / "net.onnx")
    assert node_types(tmp_path / "net.onnx") == ["Gemm", "Relu", "BatchNormalization", "Gemm"]


def test_other_layers(tmp_path):
    torch.manual_seed(2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=(1, 0), groups=1), nn.Linear(8, 5, bias=False)

        def forward(self, x):
            h = nn.functional.avg_pool2d(nn.functional.leaky_relu(self.conv(x), 0.1), 2, padding=1)
            h = nn.functional.pad(nn.functional.max_pool2d(h, 2, 1), (1, 0, 0, 1))
            h = torch.cat([h.mean((2, 3)), torch.sigmoid(h)[:, :, 0, 1]], 1)
            return 2 * torch.tanh(self.fc(h)).clamp(-0.5, 0.7) - self.fc(h).abs()

    network, path = Net().eval(), tmp_path / "net.onnx"
    export_onnx(network, torch.zeros(1, 1, 7, 6), path)
    x = torch.randn(6, 1, 7, 6)
    np.testing.assert_allclose(run(path, x), network(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    load(path)


def test_double_precision(tmp_path):
    torch.manual_seed(3)
    network = nn.Sequential(mlp((5,), 4, hidden=[6], mean=0.5), nn.BatchNorm1d(4))
    network = settled(network, (5,)).double()
    export_onnx(network, torch.zeros(1, 5, dtype=torch.float64), tmp_path / "net.onnx")
    assert node_types(tmp_path / "net.onnx") == ["Sub", "Div", "Gemm", "Relu", "Gemm"]
    x = torch.rand(4, 5, dtype=torch.float64)
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x), network(x).detach().numpy(), rtol=1e-12)


def test_the_file_is_certified(tmp_path):
    torch.manual_seed(4)
    shape = (1, 8, 8)
    network = settled(cnn7(shape, 3, width=2), shape)
    path = tmp_path / "net.onnx"
    export_onnx(network, torch.zeros(1, *shape), path)
    x = torch.rand(6, *shape)
    y = network(x).argmax(1).numpy()
    found = certification.certify(
        str(path), {"x": x.numpy(), "y": y}, method="crown-ibp", eps=1e-4, device="cpu", jobs=1
    )
    assert found.clean_error == 0 and found.certified_error == 0


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("the old one")
    with pytest.raises(UnsupportedOp, match=r"Mish \(mish '1'\), Gelu \(gelu '2'\)"):
        export_onnx(nn.Sequential(nn.Linear(3, 3), nn.Mish(), nn.GELU()), torch.zeros(1, 3), path)
    broken = mlp((3,), 2, hidden=[4])
    with torch.no_grad():
        broken.fc1.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        export_onnx(broken, torch.zeros(1, 3), path)
    assert path.read_text() == "the old one" and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_onnxruntime_reads_otherwise_is_refused(tmp_path):
    """It takes a padding with zeros in front of a max pool for the pool's own, which is of -infinity."""
    torch.manual_seed(0)
    pad = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ZeroPad2d(1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))
    with pytest.raises(ModelError, match="padding with zeros in front of a max pool"):
        export_onnx(pad, torch.rand(1, 1, 6, 6), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    pad[1], pad[2] = nn.Identity(), nn.MaxPool2d(2, padding=1)
    export_onnx(pad, torch.rand(1, 1, 6, 6), tmp_path / "model.onnx")
