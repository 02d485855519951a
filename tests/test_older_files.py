"""Files of released formats are read for good: each gives the predictions that were stored when it was written."""

from pathlib import Path

import numpy as np
import pytest

from bayeskit import load, registry
from bayeskit.persistence.moved_classes import MODULES

FOLDER = Path(__file__).parent / "data" / "format_1"
STORED = np.load(FOLDER / "predictions.npz")
FILES = sorted(FOLDER.glob("*.bayeskit"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_predictions_of_a_file_of_format_1(path):
    """Equal up to rounding: the processor that wrote them may sum float32 products in another order."""
    model = load(path)
    if f"{path.stem}.probabilities" in STORED:
        np.testing.assert_allclose(
            model.predict_proba(STORED["X"]), STORED[f"{path.stem}.probabilities"], rtol=1e-4, atol=1e-6
        )
    else:
        predictive = model.predictive(STORED["X"])
        np.testing.assert_allclose(model.predict(STORED["X"]), STORED[f"{path.stem}.mean"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(predictive.variance, STORED[f"{path.stem}.variance"], rtol=1e-4, atol=1e-8)


def test_every_class_of_method_has_a_file():
    """Samplers share one class and one kind of posterior; a few of them stand for all."""
    classes = {registry.inference_class(name) for name in registry.names()}
    kept = {registry.inference_class(path.stem) for path in FILES if path.stem in registry.METHODS}
    assert kept == classes


@pytest.mark.parametrize("module", MODULES.values())
def test_every_moved_module_is_where_the_table_says(module):
    __import__(f"bayeskit.{module}")
