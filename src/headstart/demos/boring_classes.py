"""The smallest modules and data that train: to try a callback on, and to show a bug with.

Random data is drawn when a dataset is built, so `seed_everything` before it fixes a whole run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from headstart.datamodule import LightningDataModule
from headstart.module import LightningModule


class RandomDataset(Dataset[torch.Tensor]):
    """`length` random vectors of `size` values, drawn once.

    Example:
        >>> data = RandomDataset(32, 64)
        >>> len(data), data[0].shape
        (64, torch.Size([32]))
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __len__(self) -> int:
        return self.len

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data[index]


class RandomDictDataset(Dataset[dict[str, torch.Tensor]]):
    """As `RandomDataset`; a sample is a dict with the vector as `"a"`, and that plus 2 as `"b"`."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __len__(self) -> int:
        return self.len

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"a": self.data[index], "b": self.data[index] + 2}


class RandomIterableDataset(IterableDataset[torch.Tensor]):
    """`count` random vectors of `size` values, drawn anew in each pass, without a length."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.randn(self.size) for _ in range(self.count))


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """As `RandomIterableDataset`, with a length."""

    def __len__(self) -> int:
        return self.count


class BoringModel(LightningModule):
    """One linear layer from 32 values to 2 that learns to give ones; has its own data for every stage.

    Override what you want to try.

    Example:
        >>> BoringModel()(torch.zeros(4, 32)).shape
        torch.Size([4, 2])
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give (B, 2) from (B, 32)."""
        return self.layer(x)  # type: ignore[no-any-return]

    def loss(self, preds: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Give the mean squared distance from `labels`, or from ones."""
        return nn.functional.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Any) -> torch.Tensor:
        """Give the loss of a batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Give `{"loss": ...}`."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Give `{"x": loss}`."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Give `{"y": loss}`."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """Give SGD at 0.1, divided by ten after each epoch."""
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return _loader()

    def val_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return _loader()

    def test_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return _loader()

    def predict_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return _loader()


class ManualOptimBoringModel(BoringModel):
    """As `BoringModel`; its `training_step` takes the optimizer's steps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Take a step, and give the loss."""
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(LightningModule):
    """One linear layer from 32 values, trained with Adam toward a small sum of its outputs; has no data."""

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give (B, out_dim) from (B, ...) with 32 values a sample."""
        return torch.relu(self.l1(x.flatten(1)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Give the sum of the outputs."""
        return self(batch).sum()

    def configure_optimizers(self) -> Optimizer:
        """Give Adam."""
        return Adam(self.parameters(), lr=self.learning_rate)


class BoringDataModule(LightningDataModule):
    """256 random vectors of 32 values, a quarter for each of training, validation, test and prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(32, 64 * 4)

    def setup(self, stage: str) -> None:
        """Cut out what `stage` needs."""
        if stage == "fit":
            self.random_train = Subset(self.random_full, range(64))
        if stage in {"fit", "validate"}:
            self.random_val = Subset(self.random_full, range(64, 128))
        if stage == "test":
            self.random_test = Subset(self.random_full, range(128, 192))
        if stage == "predict":
            self.random_predict = Subset(self.random_full, range(192, 256))

    def train_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> Any:
        """Give 64 samples, one a batch."""
        return DataLoader(self.random_predict)


def _loader() -> DataLoader[torch.Tensor]:
    return DataLoader(RandomDataset(32, 64))
