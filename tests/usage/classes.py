import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from bayeskit import BNNClassifier, GPClassifier, bnn, metrics

data = load_breast_cancer()
X_train, X_test, y_train, y_test = train_test_split(data.data, data.target_names[data.target], random_state=0)
for model in (
    GPClassifier(random_state=0),
    BNNClassifier(inference=bnn.Laplace(), random_state=0),
    BNNClassifier(inference="deep_ensemble", random_state=0),
):
    model.fit(X_train, y_train)
    p = model.predict_proba(X_test)
    labels = np.searchsorted(model.classes_, y_test)
    parts = model.predictive(X_test)
    print(
        type(model.inference_).__name__,
        metrics.expected_calibration_error(p, labels),
        metrics.negative_log_likelihood(p, labels),
        float(parts.epistemic.mean()),
    )
    assert set(model.predict(X_test)) <= {"malignant", "benign"}
