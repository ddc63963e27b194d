"""The head, fitted to its optimum: linear models of stored features, with the penalty chosen by cross-validation.

`fit_probe` is multinomial logistic regression, `fit_ridge` is ridge regression, `fit_probe_in_batches` is the first of
them for features that do not fit in memory, such as the `stored_features` of a frozen network. What they give becomes one `nn.Linear` on raw features.

All strengths of the penalty and all folds are problems of one kind: the same features with other weights of the
samples. So a problem is a row of a batch, and one matrix product serves all of them (`objective.py`, `solver.py`).
"""

from headstart.probe.batches import Batches, fit_probe_in_batches, stored_features
from headstart.probe.logistic import STRENGTHS, fit_probe
from headstart.probe.result import PathRow, Probe, RidgePathRow, RidgeProbe
from headstart.probe.ridge import RIDGE_STRENGTHS, fit_ridge

__all__ = [
    "RIDGE_STRENGTHS",
    "STRENGTHS",
    "Batches",
    "PathRow",
    "Probe",
    "RidgePathRow",
    "RidgeProbe",
    "fit_probe",
    "fit_probe_in_batches",
    "fit_ridge",
    "stored_features",
]
