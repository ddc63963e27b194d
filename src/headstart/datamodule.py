"""`LightningDataModule`: the data of a run, with its splits and loaders, apart from the module."""

from __future__ import annotations

import copy
from typing import Any

import torch

from headstart.hparams import HyperParameters, collect_hyper_parameters
from headstart.transfer import move_to_device


class DataHooks:
    """The hooks that a module and a data module share. Override those that you need.

    A loader is any sized or unsized iterable of batches; for validation, test and prediction, also a list of them.
    """

    # Of a loader whose `collate_fn` is a method: the trainer is no part of what it gives, and counts on.
    fingerprint_excludes = ("trainer", "_trainer")

    def prepare_data(self) -> None:
        """Download and unpack: called once a machine, before `setup`. Assign nothing to `self` here."""

    def setup(self, stage: str) -> None:
        """Build what `stage` (`"fit"`, `"validate"`, `"test"`, `"predict"`) needs, on every process."""

    def teardown(self, stage: str) -> None:
        """Release what `setup` took."""

    def train_dataloader(self) -> Any:
        """Give the loader of training batches."""
        raise NotImplementedError("train_dataloader is not defined.")

    def val_dataloader(self) -> Any:
        """Give the loader, or the list of loaders, of validation batches."""
        raise NotImplementedError("val_dataloader is not defined.")

    def test_dataloader(self) -> Any:
        """Give the loader, or the list of loaders, of test batches."""
        raise NotImplementedError("test_dataloader is not defined.")

    def predict_dataloader(self) -> Any:
        """Give the loader, or the list of loaders, of batches to predict."""
        raise NotImplementedError("predict_dataloader is not defined.")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it goes to the device, and give it back."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Give the batch on `device`; override it for a type of your own that has no `.to(device)`."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device, and give it back."""
        return batch

    # ---- hyper-parameters

    @property
    def hparams_initial(self) -> dict[str, Any]:
        """The hyper-parameters as they were saved, whatever was changed in `hparams` since."""
        return copy.deepcopy(self.__dict__.get("_hparams_initial", {}))

    @property
    def hparams(self) -> HyperParameters:
        """What `save_hyperparameters` saved: a dictionary whose keys are also attributes."""
        if "_hparams" not in self.__dict__:
            self.__dict__["_hparams"] = HyperParameters()
        found: HyperParameters = self.__dict__["_hparams"]
        return found

    def save_hyperparameters(
        self, *args: Any, ignore: Any = None, frame: Any = None, logger: bool = True
    ) -> None:
        """Keep the arguments of `__init__` in `self.hparams`, in checkpoints and in the logger.

        Args:
            *args: Names of arguments to keep, or one mapping or namespace; empty keeps all arguments.
            ignore: A name, or names, to leave out.
            frame: The frame of the `__init__`; `None` is the caller's.
            logger: Give them to the run's loggers.

        Raises:
            MisconfigurationError: If a value could not be read back from a checkpoint. It is refused now and not
                after training.
        """
        found = collect_hyper_parameters(self, args, ignore=ignore, frame=frame)
        self.hparams.update(found)
        self.__dict__["_hparams_initial"] = copy.deepcopy(dict(self.hparams))
        self.__dict__["_hparams_for_logger"] = logger
        # A mapping passed whole (`save_hyperparameters(config)`) goes back into `__init__` whole.
        whole = len(args) == 1 and not isinstance(args[0], str)
        self.__dict__["_hparams_name"] = _name_of_argument(args[0], frame) if whole else "kwargs"


def _name_of_argument(value: Any, frame: Any) -> str:
    import inspect

    caller = frame or inspect.currentframe()
    while caller is not None:
        if caller.f_code.co_name == "__init__":
            for name in caller.f_code.co_varnames[
                : caller.f_code.co_argcount + caller.f_code.co_kwonlyargcount
            ]:
                if name in caller.f_locals and caller.f_locals[name] is value:
                    return str(name)
        caller = caller.f_back
    return "kwargs"


class LightningDataModule(DataHooks):
    """The data of a run, apart from the module that learns from it.

    Example:
        >>> class Numbers(LightningDataModule):
        ...     def __init__(self, batch_size: int = 2):
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...
        ...     def train_dataloader(self):
        ...         return torch.arange(6.0).split(self.hparams.batch_size)
        >>> [batch.tolist() for batch in Numbers(batch_size=3).train_dataloader()]
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """

    def __init__(self) -> None:
        super().__init__()
        self.trainer: Any = None

    def state_dict(self) -> dict[str, Any]:
        """What this data module wants back after a resume: plain types and tensors only."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to `checkpoint` before it is written."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read from `checkpoint` before it is applied."""

    def on_exception(self, exception: BaseException) -> None:
        """The run ends with `exception`."""

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **kwargs: Any) -> LightningDataModule:
        """Give a data module built with the hyper-parameters that a checkpoint holds; `kwargs` win over them.

        Raises:
            CheckpointError: If the file is damaged, unsafe or no checkpoint.
            UnknownArgumentError: If `__init__` does not take one of `kwargs`.
        """
        from headstart.checkpoint import init_arguments, read_checkpoint

        checkpoint = read_checkpoint(checkpoint_path)
        saved = checkpoint.get("datamodule_hyper_parameters", {})
        return cls(**init_arguments(cls, saved, checkpoint.get("datamodule_hparams_name", "kwargs"), kwargs))
