"""The ops that come with absdom, as facts; importing this package registers them."""

from absdom.ops.affine import Add, Conv, Div, Divide, Linear, LinearLeft, MatMul, Mul, Neg, ReduceSum, Scale, Sub
from absdom.ops.composite import AveragePool, BatchNorm, MaxPool, ReduceMean
from absdom.ops.multivariate import MatrixProduct, Product, Quotient, ReduceMax, Softmax
from absdom.ops.piecewise import Abs, Clip, LeakyRelu, Relu, Sign
from absdom.ops.shape import Concat, Expand, Pad, Permute, Reshape, Slice, Take
from absdom.ops.smooth import Sigmoid, Sqrt, Tanh

__all__ = [
    "Abs", "Add", "AveragePool", "BatchNorm", "Clip", "Concat", "Conv", "Div", "Divide", "Expand", "LeakyRelu",
    "Linear", "LinearLeft", "MatMul", "MatrixProduct", "MaxPool", "Mul", "Neg", "Pad", "Permute", "Product",
    "Quotient", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Scale", "Sigmoid", "Sign", "Slice",
    "Softmax", "Sqrt", "Sub", "Take", "Tanh",
]  # fmt: skip
