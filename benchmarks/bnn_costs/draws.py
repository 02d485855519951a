"""Networks side by side: an ensemble trained together, and predictions with many weight samples at once."""

import torch
from torch.func import functional_call

from bayeskit import bnn
from bayeskit.bnn.networks.functional import evaluate
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bnn_costs.timing import interleaved

MEMBERS, DRAWS, FEATURES = 8, 32, 8
TRAINING = Training(lr=1e-2, max_epochs=20, batch_size=128)


def ensemble_rows(rounds):
    """Eight networks trained together, beside eight runs of one network one after another (`bnn.MAP`)."""
    g = torch.Generator().manual_seed(0)
    for hidden in ((50,), (50, 50)):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(1000, FEATURES, generator=g, dtype=dtype)
            data = Data(x, x[:, :1].sin())
            prior = bnn.gaussian_prior(bnn.MLP(FEATURES, 1, hidden=hidden, dtype=dtype))

            def fit(method, data=data, prior=prior):
                return method.infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(0))

            many = bnn.DeepEnsemble(num_members=MEMBERS, training=TRAINING, prior_precision=1.0)
            one = bnn.MAP(training=TRAINING, prior_precision=1.0)
            assert fit(many).diagnostics["trained together"]
            calls = {
                "together": lambda fit=fit, many=many: fit(many),
                "eight runs": lambda fit=fit, one=one: [fit(one) for _ in range(MEMBERS)],
            }
            note = f"1,000 rows, {TRAINING.max_epochs} epochs"
            times = interleaved(calls, min(rounds, 5))
            yield times.row(f"ensemble of 8, {_name(hidden, dtype)}", "together", "eight runs", 0.4, note)


def prediction_rows(rounds):
    """32 weight samples through one network, beside a Python loop over `functional_call`."""
    for hidden in ((50,), (50, 50), (256, 256)):
        for dtype in (torch.float32, torch.float64):
            prior = bnn.gaussian_prior(bnn.MLP(FEATURES, 1, hidden=hidden, dtype=dtype))
            draws = prior.weights.sample(DRAWS, generator=torch.Generator().manual_seed(0))
            for n in (1, 32, 128, 1000):
                x = torch.randn(n, FEATURES, dtype=dtype, generator=torch.Generator().manual_seed(1))

                def batched(network=prior.network, draws=draws, x=x):
                    return evaluate(network, draws, x)

                def loop(network=prior.network, draws=draws, x=x):
                    each = ({name: value[i] for name, value in draws.items()} for i in range(DRAWS))
                    return torch.stack([functional_call(network, params, (x,)) for params in each])

                assert torch.allclose(batched(), loop(), atol=1e-4)
                times = interleaved({"at once": batched, "loop": loop}, rounds, repeats=4)
                yield times.row(f"32 draws, {_name(hidden, dtype)}, {n} rows", "at once", "loop", 0.5)


def _name(hidden, dtype):
    return f"{'x'.join(map(str, hidden))} {str(dtype)[6:]}"
