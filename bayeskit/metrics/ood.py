"""Out-of-distribution (OOD) detection: AUROC, AUPR and FPR95 of a score.

One convention everywhere: **a larger score means more out of distribution**. The positive class is the OOD set unless
`positive="in"` asks for the other direction, where the same scores are negated.
"""

from typing import Any, Literal

import numpy as np

from bayeskit.core import checks
from bayeskit.metrics import arrays

Side = Literal["out", "in"]


def ood_auroc(in_scores: Any, out_scores: Any) -> float:
    """The probability that an OOD point scores above an in-distribution one: P(S_out > S_in) + P(S_out = S_in) / 2.

    The same number whichever side is called positive; 0.5 is chance, below 0.5 the score ranks in the wrong direction.

    Args:
        in_scores: Scores of in-distribution inputs (n,).
        out_scores: Scores of OOD inputs (m,).

    References:
        Hendrycks and Gimpel (2017), A baseline for detecting misclassified and out-of-distribution examples, section 2.

    >>> ood_auroc([0.1, 0.4], [0.3, 0.9])
    0.75
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_labeled(in_scores, out_scores, "out")))


def ood_aupr(in_scores: Any, out_scores: Any, *, positive: Side = "out") -> float:
    """Average precision of detecting the positive class by the score.

    AP = sum_k (R_k - R_{k-1}) P_k over thresholds. Chance level is the fraction of positives, so it depends on the
    sizes of the two sets; report both directions.

    Args:
        in_scores: Scores of in-distribution inputs (n,).
        out_scores: Scores of OOD inputs (m,).
        positive: "out": find OOD points by high scores; "in": find in-distribution points by low scores.

    References:
        Hendrycks and Gimpel (2017), A baseline for detecting misclassified and out-of-distribution examples, section 2.

    >>> round(ood_aupr([0.1, 0.4], [0.3, 0.9]), 4), round(ood_aupr([0.1, 0.4], [0.3, 0.9], positive="in"), 4)
    (0.8333, 0.8333)
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labeled(in_scores, out_scores, positive)))


def ood_fpr95(in_scores: Any, out_scores: Any, *, positive: Side = "out") -> float:
    """The false positive rate at a true positive rate of 95 %.

    The smallest false positive rate among thresholds whose true positive rate is at least 0.95; 0 is perfect.

    Args:
        in_scores: Scores of in-distribution inputs (n,).
        out_scores: Scores of OOD inputs (m,).
        positive: "out": 95 % of the OOD points are detected, and false positives are in-distribution points; "in": 95 %
            of the in-distribution points are accepted, and false positives are OOD points, as in Liang et al.

    References:
        Liang, Li and Srikant (2018), Enhancing the reliability of out-of-distribution image detection, section 4.2.

    >>> ood_fpr95([0.1, 0.2, 0.3, 0.6], [0.5, 0.9])
    0.25
    """
    from sklearn.metrics import roc_curve

    false_positives, true_positives, _ = roc_curve(*_labeled(in_scores, out_scores, positive), drop_intermediate=False)
    return float(false_positives[np.argmax(true_positives >= 0.95)])


def _labeled(in_scores: Any, out_scores: Any, positive: Side) -> tuple[np.ndarray, np.ndarray]:
    checks.choice(positive, name="positive", options=("out", "in"))
    inside = arrays.numbers(in_scores, name="in_scores", ndim=1)
    outside = arrays.numbers(out_scores, name="out_scores", ndim=1)
    is_out = np.concatenate([np.zeros(len(inside), int), np.ones(len(outside), int)])
    scores = np.concatenate([inside, outside])
    return (is_out, scores) if positive == "out" else (1 - is_out, -scores)
