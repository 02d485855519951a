from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayeskit import GPRegressor, gp

X, y = load_diabetes(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = GPRegressor(random_state=0).fit(X_train, y_train)
mean, std = model.predict(X_test, return_std=True)  # (n,), (n,) observation noise included
predictive = model.predictive(X_test)  # law of y
low, high = predictive.interval(0.9)  # (n,), (n,)
assert ((low < high).all()) and predictive.log_prob(y_test).shape == (len(X_test),)
values = model.latent(X_test)  # law of f, joint and lazy
assert values.mean.shape == (len(X_test), 1) and values.covariance.shape == (len(X_test),) * 2
assert values.sample(5).shape == (5, len(X_test), 1)
search = GridSearchCV(
    GPRegressor(inference=gp.SGPR(num_inducing=20), random_state=0), {"inference__num_inducing": [10, 20]}, cv=2
).fit(X_train, y_train)
pipe = make_pipeline(StandardScaler(), GPRegressor(random_state=0)).fit(X_train, y_train)
print(model.log_evidence_, search.best_params_, pipe.score(X_test, y_test))
