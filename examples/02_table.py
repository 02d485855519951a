"""A table with scikit-learn: a DataFrame, a pipeline, a grid search and calibrated intervals.

The printed claim: 90 % intervals cover about 90 % of the held-out patients.
"""

from sklearn.datasets import load_diabetes
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bayeskit import GPRegressor, gp, metrics

X, y = load_diabetes(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

model = GPRegressor(random_state=0).fit(X_train, y_train)
predictive = model.predictive(X_test)
print(f"rmse                     {metrics.rmse(predictive.mean, y_test):.2f}")
print(f"negative log likelihood  {metrics.negative_log_likelihood(predictive, y_test):.3f} nats a patient")
print(f"coverage of 90 %         {metrics.coverage(predictive, y_test, level=0.9):.1%}")
print(f"log evidence             {model.log_evidence_.value:.1f} nats ({model.log_evidence_.kind})")

# The same estimator inside a pipeline, beside scikit-learn's own.
for regressor in (GPRegressor(random_state=0), BayesianRidge()):
    pipe = make_pipeline(StandardScaler(), regressor).fit(X_train, y_train)
    print(f"R^2 of {type(regressor).__name__:14s}    {pipe.score(X_test, y_test):.3f}")

# A grid search reaches into the inference.
search = GridSearchCV(
    GPRegressor(inference=gp.SGPR(), random_state=0),
    {"inference__num_inducing": [10, 40]},
    scoring="neg_root_mean_squared_error",
    cv=3,
).fit(X_train, y_train)
print("best number of inducing points:", search.best_params_["inference__num_inducing"])
