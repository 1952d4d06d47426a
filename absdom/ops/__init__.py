"""The ops that come with absdom, as facts; importing this package registers them."""

from absdom.ops.activations import Celu, Elu, Gelu, HardSwish, Mish, Selu, Silu, Softplus
from absdom.ops.affine import Add, Conv, Div, Divide, Linear, LinearLeft, MatMul, Mul, Neg, ReduceSum, Scale, Sub
from absdom.ops.composite import AveragePool, BatchNorm, MaxPool, ReduceMean
from absdom.ops.discrete import Ceil, Floor, Round, Sign, Step, Truncate
from absdom.ops.functions import Atan, Erf, Exp, Log, Power, Sigmoid, Softsign, Sqrt, Tanh
from absdom.ops.indexing import Lookup, Scatter, TopIndices, TopValues, Window
from absdom.ops.multivariate import ReduceMax
from absdom.ops.normalise import Rescale, RmsNorm, Standardise
from absdom.ops.periodic import Cos, Sin, Tan
from absdom.ops.piecewise import Abs, Clip, LeakyRelu, Relu
from absdom.ops.products import MatrixProduct, Product, Quotient
from absdom.ops.selection import ArgMax, Equal, Maximum, ReduceMin, Select, Where
from absdom.ops.shape import Concat, Expand, Pad, Permute, Reshape, Slice, Take
from absdom.ops.softmax import LogSoftmax, LogSumExp, Softmax
from absdom.ops.transposed import ConvTranspose

__all__ = [
    "Abs", "Add", "ArgMax", "Atan", "AveragePool", "BatchNorm", "Ceil", "Celu", "Clip", "Concat", "Conv",
    "ConvTranspose", "Cos", "Div", "Divide", "Elu", "Equal", "Erf", "Exp", "Expand", "Floor", "Gelu", "HardSwish",
    "LeakyRelu", "Linear", "LinearLeft", "Log", "LogSoftmax", "LogSumExp", "Lookup", "MatMul", "MatrixProduct",
    "MaxPool", "Maximum", "Mish", "Mul", "Neg", "Pad", "Permute", "Power", "Product", "Quotient", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Rescale", "Reshape", "RmsNorm", "Round", "Scale", "Scatter",
    "Select", "Selu", "Sigmoid", "Sign", "Silu", "Sin", "Slice", "Softmax", "Softplus", "Softsign", "Sqrt",
    "Standardise", "Step", "Sub", "Take", "Tan", "Tanh", "TopIndices", "TopValues", "Truncate", "Where", "Window",
]  # fmt: skip
