"""A loader whose worker process starts from nothing, and imports this file anew."""

import os
import sys

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        # In the worker: the module that `pytorch_lightning` is there.
        return torch.tensor(
            [float(index), float("headstart" in pl.LightningModule.__module__), float(os.getpid())]
        )


if __name__ == "__main__":
    rows = torch.cat(
        list(DataLoader(Numbers(), batch_size=2, num_workers=1, multiprocessing_context=sys.argv[1]))
    )
    print("indices", *rows[:, 0].int().tolist())
    print("headstart", *rows[:, 1].int().tolist())
    print("elsewhere", os.getpid() not in rows[:, 2].int().tolist())
