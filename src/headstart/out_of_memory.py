"""Out of memory in a training step: the batch in parts, their gradients summed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from headstart.deferred import real_values
from headstart.errors import MisconfigurationError
from headstart.freezing import is_batch_norm
from headstart.transfer import batch_size_of, split_batch
from headstart.whereabouts import is_out_of_memory

if TYPE_CHECKING:
    from headstart.trainer import Trainer

# Gives the loss of a part: the part, its share of the batch (`None` for all of it), and `is_first`.
Compute = Callable[..., torch.Tensor | None]


class BatchSplitter:
    """Computes a batch that does not fit in parts, and every later one as well: `Trainer(on_out_of_memory="split")`.

    The loss of a batch must be the mean over its samples: the parts' losses are weighted by their sizes, and the
    gradient is then that of the whole batch, but for the order of a sum.

    Args:
        trainer: Whose run it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.largest: int | None = None  # samples that fit

    def run(self, compute: Compute, batch: Any, *, may_repeat: bool) -> torch.Tensor | None:
        """Give the loss of a batch, its gradients computed, in as many parts as it takes."""
        size = batch_size_of(batch)
        while True:
            parts = [batch] if self.largest is None or size <= self.largest else self._parts_of(batch, size)
            try:
                return self._sum(compute, parts, size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                largest = max(map(batch_size_of, parts))
                if obstacle := self._obstacle(batch, largest, may_repeat=may_repeat):
                    error.add_note(
                        f"on_out_of_memory='split' cannot split this batch of {size} samples: {obstacle}. Give the loader "
                        "a smaller batch_size, and accumulate_grad_batches for the same number of samples a step."
                    )
                    raise
            # Out of the except block: the traceback held on to what the step had computed.
            self.largest = (largest + 1) // 2
            self._clean_up()
            self._trainer.say(
                f"Out of memory with {largest} samples: from here on, batches are computed in parts of at most "
                f"{self.largest}, and their gradients summed. The loss must be a mean over samples for that; random "
                "numbers (dropout) are drawn for each part."
            )

    def _parts_of(self, batch: Any, size: int) -> list[Any]:
        assert self.largest is not None
        count = -(-size // self.largest)
        sizes = [size // count + (place < size % count) for place in range(count)]
        return split_batch(real_values(batch), sizes)

    def _sum(self, compute: Compute, parts: list[Any], size: int) -> torch.Tensor | None:
        if len(parts) == 1:
            return compute(parts[0], None, is_first=True)
        total = None
        for place, part in enumerate(parts):
            share = batch_size_of(part) / size
            loss = compute(part, share, is_first=place == 0)
            if loss is not None:
                total = loss.detach() * share if total is None else total + loss.detach() * share
        return total

    def _obstacle(self, batch: Any, largest: int, *, may_repeat: bool) -> str:
        module = self._trainer.lightning_module
        if not module.automatic_optimization:
            return "with manual optimization, what training_step has done cannot be repeated"
        if not may_repeat:
            return "gradients of earlier batches of its accumulation window would be counted twice"
        norms = [name for name, each in module.named_modules() if is_batch_norm(each) and each.training]
        if norms:
            return f"{norms[0]} is a batch norm in training mode, and would see the statistics of each part"
        if largest <= 1:
            return "one sample alone does not fit"
        try:
            split_batch(real_values(batch), [largest // 2, batch_size_of(batch) - largest // 2])
        except MisconfigurationError as error:
            return str(error)
        return ""

    def _clean_up(self) -> None:
        for optimizer in self._trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._trainer.boundary.undo_step()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
