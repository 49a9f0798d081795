"""The objective J(Θ) = Σ w ℓ / Σ w + l2/2·‖Θ‖² and its mini-batches: the questions an optimizer may ask.

Every answer is global: the same on each worker, for any number of workers. What goes wrong otherwise is owned here. All
questions about one batch see the same dropout mask; running statistics move once per batch; an uneven last batch is
weighted; a worker whose share is empty takes part with weight 0; batch normalisation uses the statistics of the global
batch.
"""

from raycurv.objective.batch import Batch
from raycurv.objective.consistency import InconsistentModel
from raycurv.objective.linearisation import Linearisation, Taylor
from raycurv.objective.objective import Objective

__all__ = ["Batch", "InconsistentModel", "Linearisation", "Objective", "Taylor"]
