"""Checkpoints: one file, written whole or not at all, and read without running anything that it holds.

A file is written beside its place under another name, flushed to the disk, and renamed; a kill or a full disk leaves
the file that was there before. It is checked to the last byte before it is read (`archive.py`), and read with
`weights_only=True`, always: no import path in it is ever followed.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urldefrag
from urllib.request import urlopen

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from headstart import archive
from headstart.errors import CheckpointError, UnknownArgumentError, did_you_mean, missing_dependency
from headstart.files import keeping, sha256_of, write_together

_MAX_HYPER_PARAMETERS = 1_000_000
_TIMEOUT = 60  # seconds in which a server must say something

Module = TypeVar("Module", bound=nn.Module)


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically: afterwards `path` is whole, or as it was before.

    Args:
        checkpoint: Plain types and tensors, nested in dicts, lists and tuples.
        path: Where to; its folder is made.

    Raises:
        CheckpointError: If something in it is of a type that could not be read back.
        WriteError: If the disk is full or the folder cannot be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> write_checkpoint({"epoch": 3}, path)
        >>> read_checkpoint(path)
        {'epoch': 3}
    """
    path = Path(path)

    def write(temporary: Path) -> None:
        with _checksums_on(), temporary.open("wb") as file:
            torch.save(dict(checkpoint), file)
        _refuse_unreadable(str(temporary), path)
        archive.seal(temporary)

    write_together({path: write})


def write_weights(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write the weights of a checkpoint alone, as safetensors, atomically.

    Args:
        checkpoint: Its `state_dict` is written; tensors that share memory are written each.
        path: Where to; its folder is made.

    Raises:
        MissingDependencyError: If safetensors is not installed.
        WriteError: If the disk is full or the folder cannot be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> write_weights({"state_dict": {"weight": torch.ones(2)}}, path)
        >>> from safetensors.torch import load_file
        >>> load_file(path)
        {'weight': tensor([1., 1.])}
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise missing_dependency("safetensors", needed_for="'.safetensors' files", extra="images") from None
    weights = {
        name: value.detach().cpu().contiguous().clone() for name, value in checkpoint["state_dict"].items()
    }
    write_together({Path(path): lambda temporary: save_file(weights, temporary)})


@contextmanager
def _checksums_on() -> Iterator[None]:
    """Programs may have told torch to leave out the checksums that `archive.check` relies on."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(compute_crc32=True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(compute_crc32=before)


def _refuse_unreadable(temporary: str, path: Path) -> None:
    """Raise where the file just written names something that `read_checkpoint` would refuse."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
    if names:
        raise CheckpointError(
            f"{path} was not written: it would hold {', '.join(sorted(names))}, which could not be read back. A checkpoint "
            "holds plain types and tensors. Look at what `state_dict` or `on_save_checkpoint` of the module, the data "
            "module or a callback gives, and convert it: str(path), array.item(), torch.from_numpy(array)."
        )


def read_checkpoint(path: str | Path, *, map_location: Any = None) -> dict[str, Any]:
    """Give what a checkpoint holds. Nothing in the file is run or imported.

    Args:
        path: A file; or a URL that ends in `#sha256=<digest>`, which is downloaded once and kept under the digest
            of the whole URL.
        map_location: As in `torch.load`; `None` is the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, is no checkpoint, or needs code to be run.
    """
    file = _download(str(path)) if re.match(r"\w+://", str(path)) else Path(path)
    if file.is_dir():
        from headstart.strategy.parts import read_parts

        return read_parts(file, map_location=map_location)
    if not file.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r} (looked in {Path.cwd()}).")
    found = read_torch_file(
        file,
        name=str(path),
        map_location=map_location,
        advice="If you trust it, load it once where it was written and save its weights and plain hyper-parameters again.",
    )
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} holds a {type(found).__name__}; expected a dict with the key 'state_dict'."
        )
    return found


def read_torch_file(path: Path, *, name: str, advice: str, map_location: Any = None) -> Any:
    """Give what a file of `torch.save` holds, after it was checked to the last byte. Nothing in it is run or imported.

    Args:
        path: The file.
        name: What the caller calls it, for messages.
        advice: What to do with a file that can only be read by running code.
        map_location: As in `torch.load`; `None` is the CPU.

    Raises:
        CheckpointError: If the file is damaged, is something else, or needs code to be run.
    """
    refuse_damaged(path, name=name)
    try:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"(?:GLOBAL|Unsupported (?:global|class))[: ]+(?:GLOBAL )?([\w.]+)", str(error))
        names = f" It names {culprit.group(1)}." if culprit else ""
        raise CheckpointError(
            f"{name} cannot be read without running code that it holds or names, and that is never done.{names} {advice}"
        ) from error
    except Exception as error:  # what is not as it should be can raise anything in the reader
        if isinstance(error, ImportError):
            raise
        raise CheckpointError(
            f"{name} cannot be read: {str(error) or type(error).__name__} ({path.stat().st_size:,} bytes). It is no "
            "file of torch.save that weights_only=True reads, or does not fit here."
        ) from error


def refuse_damaged(path: Path, *, name: str) -> None:
    """Return if a file is whole.

    Raises:
        CheckpointError: If a byte of it is not as it was written, or it is something else.
    """
    try:
        archive.check(path)
    except (archive.Damage, OSError) as error:
        raise CheckpointError(
            f"{name} is damaged, or no checkpoint ({path.stat().st_size:,} bytes): {error}. Nothing of it was loaded. "
            "Copy it again from where it came from, or use an earlier one."
        ) from error


# ---- the last one, and the one before it


def previous_path(path: str | Path) -> Path:
    """Give the name under which the checkpoint stays that `path` held before.

    Example:
        >>> previous_path("runs/last.ckpt").name
        'last-previous.ckpt'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def keeping_previous(path: str | Path, *, before: str | Path | None = None) -> AbstractContextManager[None]:
    """Keep what `path` holds as `previous_path(path)` while the block writes it anew.

    Args:
        path: The file that the block writes.
        before: The file that it takes the place of, where that has another name.
    """
    return keeping(before or path, as_=previous_path(path))


def newest_whole(paths: Sequence[str | Path], *, say: Callable[[str], object]) -> Path:
    """Give the first checkpoint that is whole. A damaged one before it is named, and renamed to `*.damaged`.

    Args:
        paths: The newest first; at least one.
        say: Called with a sentence about the damaged ones.

    Raises:
        CheckpointError: If none is whole.
    """
    problems: list[str] = []
    damaged: list[Path] = []
    for path in map(Path, paths):
        try:
            _check(path)
        except archive.Damage as problem:
            problems.append(f"{path} ({problem})")
            damaged.append(path)
        except OSError as problem:
            problems.append(f"{path} ({problem.strerror or problem})")
        else:
            if problems:
                say(
                    f"Damaged, and not used: {'; '.join(problems)}. The checkpoint before is used instead: {path}."
                )
            for each in damaged:
                with suppress(OSError):  # a folder that can only be read
                    # Else the next checkpoint to be saved would keep it as the one before, in place of a whole one.
                    each.replace(f"{each}.damaged")
            return path
    raise CheckpointError(
        f"There is no checkpoint to go on from, all are damaged: {'; '.join(problems)}. Give another one with ckpt_path, "
        "or begin anew."
    )


def _check(path: Path) -> None:
    if path.is_dir():
        from headstart.strategy.parts import check_parts

        check_parts(path)
    else:
        archive.check(path)


# ---- from a URL


def _download(url: str) -> Path:
    address, fragment = urldefrag(url)
    digest = fragment.removeprefix("sha256=")
    if not address.startswith(("http://", "https://")):
        raise CheckpointError(
            f"{address} is neither a file nor an address with http:// or https://. Download it first."
        )
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CheckpointError(
            f"A checkpoint from a URL needs its digest, so that what arrives is what you mean: "
            f"{address}#sha256=<64 hexadecimal digits>. Received {url!r}."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "headstart" / "checkpoints"
    # The whole URL names the file: two hosts' last.ckpt are two files.
    kept = cache / f"{hashlib.sha256(url.encode()).hexdigest()}.ckpt"
    if not kept.is_file() or sha256_of(kept) != digest:
        write_together({kept: partial(_fetch, address, digest)})
    return kept


def _fetch(address: str, digest: str, path: Path) -> None:
    """Download to `path`, and refuse what does not have the digest."""
    with path.open("wb") as file:
        try:
            response = urlopen(address, timeout=_TIMEOUT)  # noqa: S310 (http or https: the caller checked)
        except (OSError, HTTPException) as error:
            raise CheckpointError(
                f"{address} could not be fetched: {error}. Check the address and the connection."
            ) from error
        # A server that sends without end must not fill the disk: a tenth stays free.
        room = _free_bytes(path.parent) * 9 // 10
        with response:
            while block := _received(response, address):
                room -= len(block)
                if room < 0:
                    raise CheckpointError(
                        f"{address} sends more than there is room for in {path.parent}. Free space there, or set "
                        "XDG_CACHE_HOME to another folder."
                    )
                file.write(block)
    received = sha256_of(path)
    if received != digest:
        raise CheckpointError(f"{address} has the SHA-256 {received}; expected {digest}. It was not kept.")


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _received(response: Any, address: str) -> bytes:
    try:
        block: bytes = response.read(1 << 20)
    except (OSError, HTTPException) as error:
        raise CheckpointError(f"{address} broke off: {error}. Try again.") from error
    return block


# ---- from a checkpoint to a module


def load_module(
    cls: type[Module],
    path: str | Path,
    *,
    map_location: Any,
    hparams_file: str | Path | None,
    strict: bool | None,
    on_mismatch: Literal["error", "skip"],
    kwargs: dict[str, Any],
) -> Module:
    """Build a module with a checkpoint's hyper-parameters and load its weights: `load_from_checkpoint`."""
    checkpoint = read_checkpoint(path, map_location=map_location)
    if "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path} has no 'state_dict'. It holds: {', '.join(map(str, checkpoint)) or 'nothing'}."
        )
    saved = checkpoint.get("hyper_parameters") or {}
    if hparams_file is not None:
        saved = _read_hyper_parameters(Path(hparams_file))
    module = cls(**init_arguments(cls, saved, checkpoint.get("hparams_name", "kwargs"), kwargs))
    if getattr(module, "configure_model", None) is not None:
        module.configure_model()  # type: ignore[operator]
    if hasattr(module, "on_load_checkpoint"):
        module.on_load_checkpoint(checkpoint)  # type: ignore[operator]
    if strict is None:
        strict = bool(getattr(module, "strict_loading", True))
    left_out = load_weights(
        module, checkpoint["state_dict"], strict=strict, on_mismatch=on_mismatch, source=str(path)
    )
    if left_out:
        print(f"Loaded {path} without: {'; '.join(left_out)}")
    if map_location is not None and not callable(map_location) and not isinstance(map_location, dict):
        module.to(map_location)
    return module


def init_arguments(
    cls: type, saved: Mapping[str, Any], hparams_name: str | None, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the arguments to build `cls` with: the saved ones that it takes, and over them the caller's.

    Args:
        cls: The class.
        saved: Hyper-parameters of a checkpoint.
        hparams_name: The one argument that takes them all, or `"kwargs"` where each is an argument.
        kwargs: The caller's.

    Raises:
        UnknownArgumentError: If `cls.__init__` takes no argument of a name in `kwargs`.

    Example:
        >>> class Net:
        ...     def __init__(self, lr: float, width: int = 8): ...
        >>> init_arguments(Net, {"lr": 0.1, "old": 1}, "kwargs", {"width": 4})
        {'lr': 0.1, 'width': 4}
    """
    parameters = inspect.signature(cls).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    named = [
        name
        for name, each in parameters.items()
        if each.kind in {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    ]
    whole = hparams_name not in {None, "kwargs"} and hparams_name in named
    if whole:
        from headstart.hparams import HyperParameters

        saved = {**saved, **{name: value for name, value in kwargs.items() if name in saved}}
        arguments: dict[str, Any] = {str(hparams_name): HyperParameters(saved)}
    else:
        arguments = {name: value for name, value in saved.items() if takes_any or name in named}
    for name, value in kwargs.items():
        if not takes_any and name not in named and not (whole and name in saved):
            raise UnknownArgumentError(
                f"{cls.__name__}.__init__ takes no argument {name!r}.{did_you_mean(name, named)} "
                f"It takes: {', '.join(named) or 'none'}."
            )
        if takes_any or name in named:
            arguments[name] = value
    return arguments


def load_weights(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    strict: bool = True,
    on_mismatch: Literal["error", "skip"] = "error",
    source: str = "the state dict",
) -> list[str]:
    """Load weights into a module, and give what was left out, a sentence each.

    Args:
        module: Where to.
        state_dict: The weights.
        strict: Whether the names must be the same.
        on_mismatch: For a weight of another shape: `"error"`, or `"skip"` to leave the module's own as it is.
        source: Where they come from, for messages.

    Raises:
        CheckpointError: If names or shapes do not fit.
        ValueError: If `on_mismatch` is another word.
    """
    if on_mismatch not in {"error", "skip"}:
        raise ValueError(f"on_mismatch is {on_mismatch!r}; expected 'error' or 'skip'.")
    own = module.state_dict()
    mismatched = {
        name: f"{name} (there {tuple(value.shape)}, here {tuple(own[name].shape)})"
        for name, value in state_dict.items()
        if isinstance(value, torch.Tensor)
        and isinstance(own.get(name), torch.Tensor)
        and value.shape != own[name].shape
        and not is_lazy(own[name])
    }
    if mismatched and on_mismatch == "error":
        raise CheckpointError(
            f"{source}: weights have another shape than in {type(module).__name__}: {'; '.join(mismatched.values())}. "
            'A new head? Load the rest with load_from_checkpoint(..., on_mismatch="skip").'
        )
    fitting = {name: value for name, value in state_dict.items() if name not in mismatched}
    outcome = module.load_state_dict(fitting, strict=False)
    missing = [name for name in outcome.missing_keys if name not in mismatched]
    if strict and (missing or outcome.unexpected_keys):
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}."
            f"{_listed(' Missing there', missing)}{_listed(' Unknown here', outcome.unexpected_keys)} "
            "Pass strict=False to load what fits; in a run, set the module's strict_loading = False."
        )
    left_out = list(mismatched.values())
    left_out += [f"{name} (missing there)" for name in missing]
    left_out += [f"{name} (unknown here)" for name in outcome.unexpected_keys]
    return left_out


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what}: {', '.join(names[:5])}{more}."


def _read_hyper_parameters(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise missing_dependency("yaml", needed_for="hparams_file", extra="cli") from None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error} Expected plain names and values; tags such as !!python/object are never "
            "followed."
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected names with values.")
    if _num_values(found, {}) > _MAX_HYPER_PARAMETERS:
        raise CheckpointError(
            f"{path} repeats itself by aliases (&name, *name) to more than {_MAX_HYPER_PARAMETERS:,} values; expected plain "
            "names and values."
        )
    return found


def _num_values(value: Any, known: dict[int, int]) -> int:
    """Count the values in nested containers as often as they are met; each container is walked once."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAX_HYPER_PARAMETERS + 1  # what it counts as inside of itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(value)]
