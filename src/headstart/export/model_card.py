"""The README.md of a folder in the layout of the Hugging Face hub: what is known of the model, and how to use it."""

from __future__ import annotations

from typing import Any

from headstart.export.source import Source
from headstart.words import counted

#: Of the weights that packages bring; those of other backbones are asked for where they come from.
_LICENCES = {"efficientnet_lite0": "apache-2.0", "minilm": "apache-2.0"}


def model_card(source: Source, *, library: str, usage: str) -> str:
    """Give the card's text, with the metadata that the hub reads at its beginning.

    Args:
        source: The run.
        library: The hub's name of what loads it.
        usage: The section on how to use it, in Markdown.
    """
    from huggingface_hub import EvalResult, ModelCardData

    test = (source.metadata.get("metrics") or {}).get("test")
    data = source.metadata.get("data") or {}
    licence = licence_of(source)
    name, task = source.run.resolve().name, source.facts["task"]
    results = [
        EvalResult(
            task_type=task,
            dataset_type="private",
            dataset_name=_data_name(data) or "held-back samples",
            metric_type=kind,
            metric_value=round(test[key]["value"], 6),
        )
        for kind, key in (("accuracy", "accuracy"), ("f1", "macro_f1"))
        if test
    ]
    header = ModelCardData(
        library_name=library,
        pipeline_tag=task,
        license=licence,
        tags=[task, "headstart"],
        model_name=name,
        eval_results=results or None,
    ).to_yaml()
    classes = ", ".join(f"`{each}`" for each in source.model.class_names)
    introduction = (
        f"{_kind(task)} in {len(source.model.class_names)} classes: {classes}. Finetuned with headstart from "
        f"`{source.facts['backbone']}`."
    )
    sections = [
        f"---\n{header}\n---",
        f"# {name}",
        introduction,
        "## How to use it",
        usage,
        "## How good it is",
        _scores(source, test),
        "## Data",
        _data(data),
        "## Licence",
        _licence(source, licence),
    ]
    return "\n\n".join(sections) + "\n"


def licence_of(source: Source) -> str | None:
    """Give the licence of the backbone's weights as the hub spells it; `None` where nothing here says so."""
    architecture, name = source.facts["architecture"], source.facts["backbone"]
    if "@" in name:
        return None  # weights of the user's own
    if name in _LICENCES:
        return _LICENCES[name]
    if architecture["library"] == "timm":
        import timm

        found = getattr(timm.get_pretrained_cfg(architecture["model"]), "license", None)
        return None if found is None else str(found)
    return None


def _kind(task: str) -> str:
    return "Classification of photos" if task == "image-classification" else "Classification of texts"


def _data_name(data: dict[str, Any]) -> str | None:
    source = data.get("source")
    return None if source is None else str(source).rstrip("/").rpartition("/")[2]


def _scores(source: Source, test: dict[str, Any] | None) -> str:
    if not test:
        return "It was not tested on samples held back from training: nothing is known of how good it is."
    confidence = round(100 * test["confidence"])
    rows = [
        f"| {words} | {test[key]['value']:.3f} | {test[key]['low']:.3f} to {test[key]['high']:.3f} |"
        for words, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1"))
    ]
    table = "\n".join([f"| | | {confidence} % interval |", "| --- | --- | --- |", *rows])
    temperature = source.facts["calibration"]["temperature"]
    calibrated = (
        "Probabilities are as training left them, not calibrated."
        if temperature is None
        else f"Probabilities are calibrated: a temperature of {temperature:.3g} is divided into the head's weights already."
    )
    return f"On {counted(test['num_samples'], 'sample')} held back from training:\n\n{table}\n\n{calibrated}"


def _data(data: dict[str, Any]) -> str:
    sizes = data.get("part_sizes") or {}
    if not sizes:
        return "The run says nothing of its data."
    names = {"train": "training", "val": "validation", "test": "test"}
    parts = ", ".join(f"{count:,} for {names.get(part, part)}" for part, count in sizes.items())
    return f"`{_data_name(data)}`: {parts}."


def _licence(source: Source, licence: str | None) -> str:
    backbone = source.facts["backbone"]
    if licence is None:
        return (
            f"The licence of the weights of `{backbone}`, from which this was finetuned, is not known to headstart: look it "
            "up, and that of the data, before you publish this."
        )
    return (
        f"The weights of `{backbone}`, from which this was finetuned, are under {licence}. What the licence of the data "
        "demands is not known to headstart."
    )
