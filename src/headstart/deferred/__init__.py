"""Frozen work is done once: tensors that are computed when something needs their values, and stored by sample.

`Reuse` is for any training loop; `Trainer(reuse_frozen=...)` uses it; `Views` gives a fixed number of augmented views.
"""

from headstart.deferred.report import Report
from headstart.deferred.reuse import Reuse
from headstart.deferred.tensor import Deferred, real_values
from headstart.deferred.views import Views

__all__ = ["Deferred", "Report", "Reuse", "Views", "real_values"]
