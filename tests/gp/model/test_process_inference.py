"""What every inference of a single process does before and after its own part."""

from dataclasses import dataclass

import pytest
import torch
from gpytorch.kernels import RBFKernel
from gpytorch.means import ConstantMean

from bayeskit.core import operators
from bayeskit.core.inference import Evidence, Fit
from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.types import Data
from bayeskit.gp import GaussianProcess
from bayeskit.gp.model.process_inference import ProcessInference


@dataclass(eq=False, repr=False)
class Looks(ProcessInference):
    """Fits nothing: keeps what it was given to see."""

    bad: bool = False
    learn: bool = True

    def _validate(self):
        if self.bad:
            raise ValueError("`bad` must be False")

    def _fit(self, model, rows, generator):
        operators.note("seen", len(rows))
        mean = float(model.mean.constant.detach())
        evidence = Evidence(mean, "exact")
        return Fit(model.process(), model.frozen_likelihood(), evidence, diagnostics={"own": 1})


def prior():
    return GaussianProcess(ConstantMean(), RBFKernel())


def data(n=4):
    x = torch.arange(float(n), dtype=torch.float64).unsqueeze(-1)
    return Data(torch.cat([x, x]), torch.cat([x, x]) + 3)


def test_equal_rows_become_one_and_what_was_noted_reaches_the_fit():
    fit = Looks().infer(prior(), Gaussian(), data(), generator=torch.Generator())
    assert fit.diagnostics == {"seen": 4, "own": 1}


def test_a_learned_mean_starts_at_the_targets_own_where_the_likelihood_is_conjugate():
    fit = Looks().infer(prior(), Gaussian(), data(), generator=torch.Generator())
    assert float(fit.log_evidence) == pytest.approx(4.5)
    kept = Looks(learn=False).infer(prior(), Gaussian(), data(), generator=torch.Generator())
    assert float(kept.log_evidence) == 0


def test_no_rows_give_the_prior_back():
    before, x = prior(), torch.zeros(0, 1, dtype=torch.float64)
    fit = Looks().infer(before, Bernoulli(), Data(x, torch.zeros(0, dtype=torch.long)), generator=torch.Generator())
    assert fit.posterior is before
    assert (float(fit.log_evidence), fit.log_evidence.kind) == (0.0, "exact")


def test_settings_are_looked_at_before_the_data():
    with pytest.raises(ValueError, match="`bad` must be False"):
        Looks(bad=True).infer(prior(), Gaussian(), data(), generator=torch.Generator())
