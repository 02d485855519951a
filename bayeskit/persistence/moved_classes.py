"""Where the classes of older files are today, and their fields: names change, files stay readable."""

from typing import Any

MODULES = {
    "gp.gram": "gp.kernels.evaluate",
    "gp.stationary": "gp.kernels.stationary",
    "gp.deep_kernel": "gp.kernels.deep",
    "gp.output_kernel": "gp.kernels.coregionalization",
    "gp.process": "gp.process.gaussian_process",
    "gp.mixture": "gp.process.process_mixture",
    "gp.conditioned": "gp.process.conditioned_kernel",
    "gp.cg": "gp.process.cg_kernel",
    "gp.neighbors": "gp.process.nearest_neighbor_kernel",
    "gp.pathwise": "gp.process.pathwise",
    "gp.hyperparameters": "gp.model.hyperparameters",
    "gp.observations": "gp.model.gaussian_observations",
    "gp.stacked": "gp.model.multitask",
    "gp.inference": "gp.model.process_inference",
    "gp.sites": "gp.variational.whitened_gaussian",
    "gp.variational": "gp.variational.whitened_posterior",
    "gp.collapsed": "gp.variational.collapsed_bound",
    "gp.dual_bound": "gp.variational.elbo_fixed_sites",
    "gp.row_sites": "gp.variational.per_datum_sites",
    "gp.dual_process": "gp.variational.site_posterior",
    "gp.memory_process": "gp.variational.streaming_posterior",
    "gp.earlier": "gp.variational.past_data",
    "gp.pseudo_observations": "gp.variational.pseudo_data",
    "gp.exact": "gp.methods.exact",
    "gp.sgpr": "gp.methods.sgpr",
    "gp.svgp": "gp.methods.svgp",
    "gp.dual": "gp.methods.dual_svgp",
    "gp.memory": "gp.methods.memory_dual_gp",
    "gp.fully_bayesian": "gp.methods.fully_bayesian",
    "gp.coreset": "gp.methods.coreset",
    "gp.orthogonal": "gp.methods.orthogonal_svgp",
    "gp.swsgp": "gp.methods.swsgp",
    "gp.calibration": "gp.methods.loo_output_scale",
    "gp.hyperposterior": "gp.methods.hyperparameter_posterior",
    "gp.cavities": "gp.analysis.leave_one_out",
    "gp.export": "gp.analysis.export",
    "gp.traced_kernel": "gp.analysis.export_kernels",
    "gp.gpytorch_model": "gp.gpytorch.model_conversion",
    "gp.gpytorch_prior": "gp.gpytorch.prior_conversion",
    "gp.gpytorch_strategy": "gp.gpytorch.strategy_conversion",
    "bnn.network": "bnn.networks.functional",
    "bnn.head": "bnn.networks.last_layer",
    "bnn.weights": "bnn.weights.weight_posterior",
    "bnn.blocks": "bnn.weights.layer_block_covariance",
    "bnn.conditioned": "bnn.weights.low_rank_update",
    "bnn.curvature": "bnn.curvature.ggn",
    "bnn.basis": "bnn.curvature.eigenbasis",
    "bnn.kronecker_curvature": "bnn.curvature.kfac",
    "bnn.kernel": "bnn.curvature.ntk_curvature",
    "bnn.evidence": "bnn.curvature.linearized_evidence",
    "bnn.prior_precision": "bnn.curvature.prior_precision",
    "bnn.posterior": "bnn.pushforward.bayes_net",
    "bnn.kronecker_values": "bnn.pushforward.kfac_function_covariance",
    "bnn.conditioned_values": "bnn.pushforward.low_rank_function_covariance",
    "bnn.values_by_weights": "bnn.pushforward.function_covariance_base",
    "bnn.training": "bnn.training.map_training",
    "bnn.search": "bnn.training.validation_search",
    "bnn.log_posterior": "bnn.training.log_posterior",
    "bnn.laplace": "bnn.laplace_approximation.laplace",
    "bnn.refit": "bnn.laplace_approximation.evidence_refit",
    "bnn.problem": "bnn.laplace_approximation.log_joint",
    "bnn.evidence_bound": "bnn.laplace_approximation.evidence_bound",
    "bnn.subnetwork": "bnn.laplace_approximation.subnetwork",
    "bnn.ivon": "bnn.ivon.ivon",
    "bnn.mean_field": "bnn.variational_inference.mean_field",
    "bnn.ssvi": "bnn.variational_inference.ssvi",
    "bnn.variational.passes": "bnn.variational_inference.stochastic_forward",
    "bnn.variational.push_forward": "bnn.variational_inference.sparse_pushforward",
    "bnn.variational.training": "bnn.variational_inference.elbo_training",
    "bnn.variational.network": "bnn.variational_inference.variational_module",
    "bnn.variational.sparse_weights": "bnn.variational_inference.sparse_weights",
    "bnn.variational.support": "bnn.variational_inference.sparse_support",
    "bnn.heads.classification": "bnn.vbll.classification_head",
    "bnn.heads.generative": "bnn.vbll.generative_head",
    "bnn.heads.heteroscedastic": "bnn.vbll.heteroscedastic_head",
    "bnn.heads.inverse_wishart": "bnn.vbll.inverse_wishart",
    "bnn.heads.last_layer": "bnn.vbll.bayesian_head",
    "bnn.heads.likelihood_layer": "bnn.vbll.likelihood_layer",
    "bnn.heads.natural": "bnn.vbll.likelihood_layer",
    "bnn.heads.regression": "bnn.vbll.regression_head",
    "bnn.heads.row_prior": "bnn.vbll.row_prior",
    "bnn.heads.rows": "bnn.vbll.row_gaussians",
    "bnn.heads.student_t": "bnn.vbll.student_t_head",
    "bnn.heads.training": "bnn.vbll.joint_training",
    "bnn.vbll": "bnn.vbll.vbll",
    "bnn.map": "bnn.methods.map",
    "bnn.ensemble": "bnn.methods.deep_ensemble",
    "bnn.swag": "bnn.methods.swag",
    "bnn.averager": "bnn.methods.swag_averager",
    "bnn.mc_dropout": "bnn.methods.mc_dropout",
    "bnn.dropout": "bnn.methods.dropout_masks",
    "bnn.mcmc": "bnn.methods.mcmc",
    "mcmc.history": "mcmc.base.position_history",
    "mcmc.schedules": "mcmc.base.schedules",
    "mcmc.hmc": "mcmc.hamiltonian.hmc",
    "mcmc.nuts": "mcmc.hamiltonian.nuts",
    "mcmc.tuning": "mcmc.hamiltonian.warmup_adaptation",
    "mcmc.momentum": "mcmc.sgmcmc.momentum",
    "mcmc.sgld": "mcmc.sgmcmc.sgld",
    "mcmc.sghmc": "mcmc.sgmcmc.sghmc",
    "mcmc.sgnht": "mcmc.sgmcmc.sgnht",
    "mcmc.baoab": "mcmc.sgmcmc.baoab",
    "mcmc.psgld": "mcmc.sgmcmc.psgld",
    "mcmc.adaptive_sghmc": "mcmc.sgmcmc.adaptive_sghmc",
    "mcmc.entropy": "mcmc.sgmcmc.entropy_sgld",
    "mcmc.control_variate": "mcmc.sgmcmc.control_variate",
    "mcmc.structured": "mcmc.sgmcmc.structured_sgld",
    "mcmc.svgd": "mcmc.sgmcmc.svgd",
    "mcmc.run": "mcmc.sampling.run",
    "mcmc.federated": "mcmc.federated.federated_sgld",
    "mcmc.federation": "mcmc.federated.federated_density",
    "mcmc.surrogates": "mcmc.federated.shard_surrogates",
    "core.likelihood.base": "core.likelihood.likelihood",
    "core.likelihood.drawn": "core.likelihood.parameter_mixture",
    "core.likelihood.marginals": "core.likelihood.noise_marginals",
    "core.likelihood.missing": "core.likelihood.missing_targets",
    "core.predictive.views": "core.predictive.predictive",
    "core.predictive.categorical": "core.predictive.categorical_predictive",
    "core.predictive.gaussian": "core.predictive.gaussian_predictive",
    "core.predictive.student_t": "core.predictive.student_t_predictive",
    "core.predictive.mixture": "core.predictive.mixture_predictive",
    "core.operators.kernel": "core.operators.kernel_operator",
    "core.operators.kronecker": "core.operators.kronecker_operator",
    "core.operators.mixed": "core.operators.mixed_outputs",
    "core.operators.scaled": "core.operators.scaled_operator",
    "core.optimize.training": "core.optimize.training_settings",
    "core.deferred": "core.lazy_moments",
    "estimators.around": "estimators.post_hoc",
    "estimators.tasks": "estimators.regression_classification",
    "estimators.base": "estimators.estimator",
    "estimators.bnn": "estimators.bnn_estimators",
    "estimators.gp": "estimators.gp_estimators",
}
"""Module that a file of format 1 names -> module that holds its classes now, both without the leading `bayeskit.`."""

RENAMED = {
    "gp.variational.past_data:Rest": "PastData",
}
"""Class that a file names, in its module of today -> what the class is called now."""


def current_path(path: str) -> str:
    """The "module:name" today of a class that a file calls `path`.

    >>> current_path("bayeskit.gp.earlier:Rest")
    'bayeskit.gp.variational.past_data:PastData'
    """
    module, name = path.split(":")
    module = current_module(module)
    inner = module.removeprefix("bayeskit.")
    return f"{module}:{RENAMED.get(f'{inner}:{name}', name)}"


def current_module(module: str) -> str:
    """The module that holds today what `module` held when the file was written.

    >>> current_module("bayeskit.gp.mixture")
    'bayeskit.gp.process.process_mixture'
    >>> current_module("torch.nn.modules.linear")
    'torch.nn.modules.linear'
    """
    root, _, inner = module.partition(".")
    return f"bayeskit.{MODULES[inner]}" if root == "bayeskit" and inner in MODULES else module


FIELDS = {
    "mcmc.sgmcmc": {"scale": "preconditioner", "max_kick": "gradient_clip"},
}
"""Package of today -> names of its dataclasses' fields in files of format 1 -> their names now."""


def current_fields(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass by the names that they have today.

    >>> from bayeskit.mcmc import SGLD
    >>> current_fields(SGLD, {"lr": 0.1, "max_kick": None})
    {'lr': 0.1, 'gradient_clip': None}
    """
    package = cls.__module__.removeprefix("bayeskit.").rpartition(".")[0]
    return {FIELDS.get(package, {}).get(name, name): value for name, value in fields.items()}
