"""`Tuner`: the learning-rate finder under the name that programs know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from headstart.errors import MisconfigurationError, UnknownNameError
from headstart.lr_finder import LRCurve, find_lr

if TYPE_CHECKING:
    from headstart.datamodule import LightningDataModule
    from headstart.module import LightningModule
    from headstart.trainer import Trainer


class Tuner:
    """Finds a learning rate with the settings of a trainer.

    Args:
        trainer: It does not run itself.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: Literal["fit", "validate", "test", "predict"] = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRCurve:
        """Give the curve, and set the module's `lr` or `learning_rate` to its suggestion; see `headstart.lr_finder.find_lr`.

        Args:
            model: The module.
            train_dataloaders: As for `Trainer.fit`.
            val_dataloaders: As for `Trainer.fit`.
            dataloaders: Of no use here.
            datamodule: As for `Trainer.fit`.
            method: `"fit"`: nothing else has a learning rate.
            min_lr: See `find_lr`; likewise what follows.
            max_lr: See `find_lr`.
            num_training: See `find_lr`.
            mode: See `find_lr`.
            early_stop_threshold: See `find_lr`.
            update_attr: Whether the attribute is set.
            attr_name: Its name; empty for `lr` or `learning_rate`, of the module or of its `hparams`.

        Raises:
            MisconfigurationError: If `method` is not `"fit"`, or `dataloaders` are given.
            UnknownNameError: If the module has no such attribute.
        """
        if method != "fit" or dataloaders is not None:
            raise MisconfigurationError(
                "lr_find trains: method must be 'fit', and loaders are given as train_dataloaders and val_dataloaders."
            )
        owner, name = _attribute(model, attr_name) if update_attr else (None, "")
        curve = find_lr(
            self._trainer, model, train_dataloaders, val_dataloaders, datamodule, min_lr=min_lr, max_lr=max_lr,
            num_training=num_training, mode=mode, early_stop_threshold=early_stop_threshold,
        )  # fmt: skip
        if owner is not None:
            suggested = curve.suggestion()
            if isinstance(owner, dict):
                owner[name] = suggested
            else:
                setattr(owner, name, suggested)
        return curve

    def scale_batch_size(self, *args: Any, **kwargs: Any) -> None:
        """Tell what to do instead.

        Raises:
            MisconfigurationError: Always.
        """
        raise MisconfigurationError(
            "headstart does not search for a batch size. Choose one that trains well; where it does not fit into memory, "
            "Trainer(on_out_of_memory='split') computes it in parts."
        )


def _attribute(model: LightningModule, name: str) -> tuple[Any, str]:
    """Give what holds the learning rate, and its name there."""
    for each in [name] if name else ["lr", "learning_rate"]:
        if hasattr(model, each):
            return model, each
        if each in model.hparams:
            return model.hparams, each
    raise UnknownNameError(
        f"{type(model).__name__} has no {name or 'lr or learning_rate'!r}, nor have its hparams: name the attribute with attr_name, "
        "or set update_attr=False."
    )
