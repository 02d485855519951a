import pytest

from bayeskit import registry
from bayeskit.core.inference import Inference
from bayeskit.core.likelihood import Gaussian, Poisson, StudentT


def test_every_entry_is_an_inference_with_a_kind():
    for name in registry.names():
        cls = registry.inference_class(name)
        assert issubclass(cls, Inference)
        assert cls.kind in ("conditioning", "weights", "draws", "point")
        assert registry.tasks(name)
        assert isinstance(registry.get(name)(), cls)
        assert isinstance(registry.quick(name), cls)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'laplace'"):
        registry.get("laplase")


def test_defaults_by_task_and_size():
    assert registry.default("gp", "regression", 500) == "exact"
    assert registry.default("gp", "regression", 50_000) == "sgpr"
    assert registry.default("gp", "regression", 1_000_000) == "dual_svgp"
    assert registry.default("gp", "regression", 500, stream=True) == "memory_dual_gp"
    assert registry.default("gp", "regression", 500, Gaussian()) == "exact"
    assert registry.default("gp", "regression", 500, StudentT()) == "dual_svgp"
    assert registry.default("gp", "regression", 50_000, Poisson()) == "dual_svgp"
    assert registry.default("gp", "regression", 500, num_correlated=3) == "exact"
    assert registry.default("gp", "regression", 5_000, num_correlated=3) == "dual_svgp"
    assert registry.default("gp", "regression", 500, StudentT(), num_correlated=3) == "dual_svgp"
    assert registry.default("gp", "classification", 50) == "dual_svgp"
    assert registry.default("bnn", "regression", 50) == "laplace"
