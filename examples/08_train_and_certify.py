"""Train a small network on scikit-learn's digits, export it, and certify that very file: under a minute on a CPU.

Run: python examples/08_train_and_certify.py [FOLDER]        (needs scikit-learn: pip install scikit-learn)
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from absdom.certification import certify
from absdom.train.bounds import IBP
from absdom.train.export import export_onnx
from absdom.train.task import Classification

folder, eps = Path(sys.argv[1] if len(sys.argv) > 1 else "."), 0.1
digits = load_digits()
x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
torch.manual_seed(0)
train, test = torch.randperm(len(x)).split([1400, len(x) - 1400])

net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimiser, loss = torch.optim.Adam(net.parameters(), 3e-3), IBP(net, Classification(), eps=0.0, kappa=0.5)
for epoch in range(40):
    loss.eps = eps * min(1.0, epoch / 20)
    for batch in train[torch.randperm(len(train))].split(100):
        optimiser.zero_grad()
        loss(x[batch], y[batch]).total.backward()
        optimiser.step()

export_onnx(net, x[:1], folder / "model.onnx")
np.savez(folder / "digits.npz", x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
print(certify(str(folder / "model.onnx"), str(folder / "digits.npz"), method="bab", eps=eps).text())
