"""Predictive distributions of the observations: exact where they can be, quadrature or mixtures elsewhere."""

from bayeskit.core.predictive.categorical_predictive import CategoricalPredictive as CategoricalPredictive
from bayeskit.core.predictive.gaussian_predictive import GaussianPredictive as GaussianPredictive
from bayeskit.core.predictive.integral import IntegralPredictive as IntegralPredictive
from bayeskit.core.predictive.mixture_predictive import MixturePredictive as MixturePredictive
from bayeskit.core.predictive.noisy_student_t import NoisyStudentTPredictive as NoisyStudentTPredictive
from bayeskit.core.predictive.pooled import PooledPredictive as PooledPredictive
from bayeskit.core.predictive.pooled import pool as pool
from bayeskit.core.predictive.predictive import AffinePredictive as AffinePredictive
from bayeskit.core.predictive.predictive import ContinuousPredictive as ContinuousPredictive
from bayeskit.core.predictive.predictive import Predictive as Predictive
from bayeskit.core.predictive.predictive import SqueezedPredictive as SqueezedPredictive
from bayeskit.core.predictive.recalibrated import RecalibratedPredictive as RecalibratedPredictive
from bayeskit.core.predictive.student_t_predictive import StudentTPredictive as StudentTPredictive
