"""Likelihoods: distributions of the observations given the function."""

from bayeskit.core.likelihood.bernoulli import Bernoulli as Bernoulli
from bayeskit.core.likelihood.categorical import Categorical as Categorical
from bayeskit.core.likelihood.conjugate import Conjugate as Conjugate
from bayeskit.core.likelihood.dirichlet import Dirichlet as Dirichlet
from bayeskit.core.likelihood.gaussian import Gaussian as Gaussian
from bayeskit.core.likelihood.heteroscedastic import Heteroscedastic as Heteroscedastic
from bayeskit.core.likelihood.known_noise import KnownNoise as KnownNoise
from bayeskit.core.likelihood.likelihood import Likelihood as Likelihood
from bayeskit.core.likelihood.parameter_mixture import Drawn as Drawn
from bayeskit.core.likelihood.poisson import Poisson as Poisson
from bayeskit.core.likelihood.student_t import StudentT as StudentT
