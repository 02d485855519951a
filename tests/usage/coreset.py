from sklearn.datasets import load_diabetes

from bayeskit import GPRegressor, gp

X, y = load_diabetes(return_X_y=True, as_frame=True)
model = GPRegressor(inference=gp.CoresetGP(num_points=20), random_state=0).fit(X, y)
print(model.coreset())  # pseudo inputs, outputs and weights, in original units
f = model.sample_functions(3, random_state=0)
assert f(X).shape == (3, len(X)) and abs(f(X)[:, :5] - f(X[:5])).max() < 1e-8
