"""How each kind of op becomes rows of an Encoding: equalities, lines and planes, binaries, quadratic forms.

Lines and planes are those of the linear domain, at several values of their free slopes, so that a linear program knows
at least what any choice of slopes knows. Exact forms come from the facts `pieces`, `extremum`, `bilinear` and
`quadratic` of an op.
"""

from absdom.domain import Encoded
from absdom.domains.encoded.affine import AffineRows, MoveRows
from absdom.domains.encoded.elementwise import ElementwiseRows
from absdom.domains.encoded.multivariate import MultivariateRows
from absdom.ir.op import Affine, Elementwise, Multivariate
from absdom.ops.shape import Move
from absdom.registry import register_rule

register_rule(Encoded, Affine)(AffineRows())
register_rule(Encoded, Move)(MoveRows())
register_rule(Encoded, Elementwise)(ElementwiseRows())
register_rule(Encoded, Multivariate)(MultivariateRows())
