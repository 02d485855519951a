"""Classification by regression on transformed labels."""

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.likelihood.conjugate import Conjugate


class Dirichlet(Conjugate):
    r"""c classes on c latents by regression on transformed labels: classification with a closed-form GP posterior.

    Given a label, the class probabilities are Dirichlet with parameters alpha_j = concentration + 1[y = j], that is,
    independent gamma variables of these shapes divided by their sum. The logarithm of each is approximated by a normal
    variable with its first two moments matched on the scale of the gamma variable:

        v_j = log alpha_j - s_j / 2,    s_j = log(1 + 1 / alpha_j),    v_j = f_j + N(0, s_j).

    Predictions are class probabilities E softmax(f), by fixed Sobol draws of f.

    `log_prob`, `expected_log_prob` and every evidence built on them are densities of the transformed targets v, not of
    the labels: they compare kernels and hyperparameters at one `concentration`, and are not to be compared with the
    evidence of another likelihood or another `concentration`.

    Args:
        num_classes: c, two or more.
        concentration: Added for every class to the single observation of each data point. Smaller separates the
            latents of the classes more; choose it by the held-out log probability of labels.

    References:
        Milios, Camoriano, Michiardi, Rosasco & Filippone (2018), Dirichlet-based Gaussian processes for large-scale
        calibrated classification, NeurIPS 31, section 4.

    Examples:
        >>> likelihood = Dirichlet(2, concentration=1.0)  # alpha = 2 for the class seen, 1 for the other
        >>> values, noise = likelihood.observations(torch.tensor([0]))
        >>> noise.exp()
        tensor([[1.5000, 2.0000]], dtype=torch.float64)
    """

    target = "classes"

    def __init__(self, num_classes: int, concentration: float = 0.01):
        super().__init__()
        checks.positive(num_classes, name="num_classes", integer=True)
        checks.positive(concentration, name="concentration")
        self.num_classes = num_classes
        self.concentration = float(concentration)

    def num_latents(self, y: Tensor) -> int:
        """One per class."""
        return self.num_classes

    def distribution(self, f: Tensor) -> td.Distribution:
        """Categorical distribution of each label, batch (*b, n)."""
        return td.Categorical(logits=f, validate_args=False)

    def observations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Values and noise variances of the logarithms of the gamma variables, each (*b, n, c), in float64.

        Args:
            y: Class codes (*b, n).
        """
        alpha = self.concentration + torch.nn.functional.one_hot(y.long(), self.num_classes).double()
        noise = alpha.reciprocal().log1p()
        return alpha.log() - noise / 2, noise

    def extra_repr(self) -> str:
        """The number of classes and the concentration, for printing."""
        return f"{self.num_classes}, concentration={self.concentration}"
