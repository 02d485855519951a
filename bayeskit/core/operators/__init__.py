"""Covariance operators and the algebra on them: matrix-free where they can be, exact where they are solved.

`factorize` is the one owner of Cholesky factors and jitter. `solve`, `logdet`, `quadratic`, `draw`, `block_diagonal`
and `half_product` work on any `linear_operator.LinearOperator`, by closed form where its type has one. The operators:
`Linearized` (J S J'), `Inverse` (of a precision), `KroneckerInverse`, `KernelOperator`,
`Scaled` (a change of units), `Mixed` (outputs W g of independent functions g), `Masked`, `MaskedDiagonal`,
`low_rank_plus_diagonal`, `from_samples`.
"""

from bayeskit.core.operators import closed_forms as closed_forms  # registers the closed forms
from bayeskit.core.operators.algebra import block_diagonal as block_diagonal
from bayeskit.core.operators.algebra import draw as draw
from bayeskit.core.operators.algebra import half_product as half_product
from bayeskit.core.operators.algebra import logdet as logdet
from bayeskit.core.operators.algebra import quadratic as quadratic
from bayeskit.core.operators.algebra import solve as solve
from bayeskit.core.operators.chunking import CHUNK_ELEMENTS as CHUNK_ELEMENTS
from bayeskit.core.operators.chunking import chunks as chunks
from bayeskit.core.operators.chunking import pieces as pieces
from bayeskit.core.operators.diagnostics_log import note as note
from bayeskit.core.operators.diagnostics_log import recording as recording
from bayeskit.core.operators.factor import Factor as Factor
from bayeskit.core.operators.factor import LinAlgError as LinAlgError
from bayeskit.core.operators.factor import factorize as factorize
from bayeskit.core.operators.factor import semidefinite_root as semidefinite_root
from bayeskit.core.operators.inverse import Inverse as Inverse
from bayeskit.core.operators.kernel_operator import KernelOperator as KernelOperator
from bayeskit.core.operators.kronecker_operator import KroneckerInverse as KroneckerInverse
from bayeskit.core.operators.linearized import Linearized as Linearized
from bayeskit.core.operators.low_rank import from_samples as from_samples
from bayeskit.core.operators.low_rank import low_rank_plus_diagonal as low_rank_plus_diagonal
from bayeskit.core.operators.masked import Masked as Masked
from bayeskit.core.operators.masked import MaskedDiagonal as MaskedDiagonal
from bayeskit.core.operators.masked import masked_diagonal as masked_diagonal
from bayeskit.core.operators.mixed_outputs import Mixed as Mixed
from bayeskit.core.operators.scaled_operator import Scaled as Scaled
