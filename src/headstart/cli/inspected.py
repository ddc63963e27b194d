"""What `headstart inspect` found: for people and for programs; and the audit of a network, with the cost of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from headstart.backbones import Backbone
    from headstart.tasks import Classifier


@dataclass(kw_only=True)
class Inspected:
    """What was found.

    Attributes:
        values: For JSON.
        code: The exit code: 1 where there is a problem.
    """

    values: dict[str, Any] = field(default_factory=dict)
    code: int = 0
    _parts: list[str | tuple[str, list[tuple[str, str]]]] = field(default_factory=list)

    def add_text(self, text: str) -> None:
        """Add lines for people."""
        self._parts.append(text)

    def add_facts(self, title: str, facts: list[tuple[str, str]]) -> None:
        """Add a table of names and values for people."""
        self._parts.append((title, facts))

    def show(self) -> None:
        """Print it for people."""
        from headstart.cli import output

        for part in self._parts:
            if isinstance(part, str):
                print(part)
            else:
                output.show(output.facts_table(*part))

    def add_audit(
        self,
        module: nn.Module,
        *,
        step: Callable[[], Any] | None,
        depth: int | None,
        optimizers: list[torch.optim.Optimizer] | None = None,
    ) -> None:
        """Add what of a network is frozen, what trains, and what a step costs.

        Args:
            module: The network.
            step: Runs one; `None` where nobody knows what it takes.
            depth: Of the rows; `None` goes down to the blocks.
            optimizers: Those that train it.
        """
        from headstart import freezing

        audit = freezing.audit(
            module, optimizers=optimizers or [], step=step, max_depth=depth or _depth_of_blocks(module)
        )
        self.add_text(str(audit))
        self.values |= {
            "num_parameters": audit.num_parameters,
            "num_trainable": audit.num_trainable,
            "flops": audit.flops,
            "modules": [asdict(row) for row in audit.rows],
            "pinned": dict(audit.pinned),
            "problems": list(audit.problems),
        }
        self.code = 1 if audit.problems else self.code


def size_of(num_bytes: float) -> str:
    """Give a size for people.

    Example:
        >>> size_of(512), size_of(13_480_000)
        ('512 bytes', '13.5 MB')
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    for unit in ("kB", "MB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
    return f"{num_bytes / 1000:.3g} GB"


def phrase(values: Mapping[str, Any]) -> str:
    """Give names and values as one phrase; what is long is cut.

    Example:
        >>> phrase({"lr": 0.1, "epochs": 3})
        'lr 0.1, epochs 3'
    """
    return ", ".join(
        f"{name} {text if len(text := str(value)) <= 60 else text[:60] + '...'}"
        for name, value in values.items()
    )


def sample_of(model: Backbone | Classifier) -> Any:
    """Give inputs for one sample."""
    import torch

    from headstart.backbones import ImagePreprocessing

    preprocessing = model.preprocessing
    if isinstance(preprocessing, ImagePreprocessing):
        return torch.zeros(1, 3, preprocessing.size, preprocessing.size)
    # A text as long as the model takes: what a step can cost at most.
    return preprocessing(["word " * preprocessing.max_length])


def step_of(model: Classifier) -> Callable[[], Any]:
    """Give one training step, with one sample."""
    import torch

    inputs = sample_of(model)
    return in_evaluation(model, lambda: model.loss(model(inputs), torch.zeros(1, dtype=torch.int64)))


def in_evaluation(module: nn.Module, step: Callable[[], Any]) -> Callable[[], Any]:
    """Give a step that runs in evaluation mode: a batch of one is too small for batch norms, and nothing may move."""

    def run_step() -> Any:
        modes = {child: child.training for child in module.modules()}
        module.eval()
        try:
            return step()
        finally:
            for child, training in modes.items():
                child.training = training

    return run_step


def _depth_of_blocks(module: nn.Module) -> int:
    from headstart.backbones import Backbone

    for prefix, child in module.named_modules():
        if isinstance(child, Backbone):
            names = [f"{prefix}.{name}" if prefix else name for name, _ in child.blocks()]
            return 1 + max(name.count(".") for name in names)
    return 2
