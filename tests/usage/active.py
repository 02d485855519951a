from sklearn.datasets import load_digits

from bayeskit import BNNClassifier, active, bnn

X, y = load_digits(return_X_y=True)
rounds = active.run(
    BNNClassifier(inference=bnn.VBLL(), random_state=0),
    X[:1200],
    y[:1200],
    acquisition="bald",
    initial=50,
    batch_size=50,
    rounds=3,
    random_state=0,
)
for r in rounds:
    print(r.num_labels, r.estimator.score(X[1200:], y[1200:]))
