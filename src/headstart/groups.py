"""The parameters of a network by depth: its blocks in order, its head, its norms and biases; and words that choose among them.

What is a block: of a timm model, what its `group_matcher` says; of any other network, the members of its lists of layers (a
transformer's layers, the blocks of a ResNet's stages) and everything beside them, in the order in which they were made. A norm
that stands alone belongs with what comes before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from headstart.errors import MisconfigurationError, did_you_mean
from headstart.words import counted

# Words that choose parameters; anything else is a shell pattern over their names.
WORDS = (
    "all",
    "head",
    "backbone",
    "norms",
    "biases",
    "last block",
    "last 2 blocks",
    "first block",
    "block 0",
)
_BLOCKS = re.compile(r"(?P<end>last|first)(?: (?P<count>\d+))? blocks?|block (?P<index>\d+)")


@dataclass(frozen=True)
class Layout:
    """Where each parameter of a module stands.

    Attributes:
        blocks: The names of the backbone's parameters, block by block, input first.
        head: The names of all others.
        norms: The names of parameters of norms.
        biases: The names of parameters called `bias`, those of norms included.
    """

    blocks: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]
    norms: frozenset[str]
    biases: frozenset[str]

    @property
    def names(self) -> list[str]:
        """The names of all parameters, input first."""
        return [name for block in self.blocks for name in block] + list(self.head)

    def depth_of(self) -> dict[str, int]:
        """Give for every parameter the number of its block; the head's is the number of blocks.

        Example:
            >>> net = nn.Module()
            >>> net.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            >>> net.head = nn.Linear(2, 1, bias=False)
            >>> layout_of(net).depth_of()["head.weight"]
            2
        """
        depths = {name: depth for depth, block in enumerate(self.blocks) for name in block}
        return depths | dict.fromkeys(self.head, len(self.blocks))

    def choose(self, words: str | Iterable[str]) -> list[str]:
        """Give the names of the parameters that words choose, in their order.

        Args:
            words: `"all"`, `"head"`, `"backbone"`, `"norms"`, `"biases"`, `"last 2 blocks"`, `"first block"`, `"block 3"`
                (of the backbone, counted from 0), or a shell pattern over names, such as `"backbone.layer4.*"`. Several
                add up; one that begins with "!" takes away.

        Raises:
            MisconfigurationError: If a word chooses nothing, or asks for more blocks than there are.

        Example:
            >>> net = nn.Module()
            >>> net.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            >>> net.head = nn.Linear(2, 1)
            >>> layout_of(net).choose(["head", "last block", "!*.bias"])
            ['backbone.1.weight', 'head.weight']
        """
        chosen: set[str] = set()
        for word in [words] if isinstance(words, str) else words:
            if word.startswith("!"):
                chosen -= self._of_word(word[1:])
            else:
                chosen |= self._of_word(word)
        return [name for name in self.names if name in chosen]

    def _of_word(self, word: str) -> set[str]:
        found = self._of_known_word(word)
        if found is None:
            found = {name for name in self.names if fnmatchcase(name, word)}
        if found:
            return found
        if word == "head":
            raise MisconfigurationError(
                "'head' chooses no parameter: all of this network is in its backbone. Say backbone='', and its last block is the "
                "head; or name a part of it that leaves one."
            )
        if word in WORDS:
            raise MisconfigurationError(f"{word!r} chooses no parameter: this network has none of them.")
        parts = [name.split(".") for name in self.names]
        near = [".".join(each[:count]) + ".*" for each in parts for count in range(1, len(each))]
        if not set(word) & set("*?["):
            near += [*WORDS, *self.names]
        raise MisconfigurationError(
            f"{word!r} chooses no parameter.{did_you_mean(word, dict.fromkeys(near))} Expected one of "
            f"{', '.join(WORDS)} (this network has {counted(len(self.blocks), 'block')}), or a shell pattern over names such as "
            f"{self.names[0]!r} to {self.names[-1]!r}."
        )

    def _of_known_word(self, word: str) -> set[str] | None:
        backbone = {name for block in self.blocks for name in block}
        known: dict[str, Iterable[str]] = {
            "all": self.names, "head": self.head, "backbone": backbone, "norms": self.norms, "biases": self.biases,
        }  # fmt: skip
        if word in known:
            return set(known[word])
        found = _BLOCKS.fullmatch(word)
        if found is None:
            return None
        has, end = len(self.blocks), found["end"]
        if end is None:
            index = int(found["index"])
            chosen, is_there = self.blocks[index : index + 1], index < has
            least, most = "block 0", f"block {has - 1}"
        else:
            count = int(found["count"] or 1)
            chosen = self.blocks[:count] if end == "first" else self.blocks[-count:]
            is_there = 0 < count <= has
            least, most = f"{end} block", f"{end} {has} blocks"
        if not is_there:
            expected = f"{least!r} to {most!r}" if has > 1 else repr(least)
            advice = f"; of a plan with a name, num_blocks={has} at most" if end else ""
            raise MisconfigurationError(
                f"{word!r} chooses no parameter: this network has {counted(has, 'block')}"
                f"{f': expected {expected}{advice}.' if has else ' beside its head.'}"
            )
        return {name for block in chosen for name in block}


def layout_of(module: nn.Module, *, backbone: str = "backbone") -> Layout:
    """Give the layout of a module whose backbone is one of its parts.

    Args:
        module: The module.
        backbone: The path of the part that was pretrained; `""` where that is the module itself, whose last block is then
            the head.

    Raises:
        MisconfigurationError: If there is no such part, or it has no parameters.

    Example:
        >>> net = nn.Module()
        >>> net.backbone = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
        >>> net.head = nn.Linear(2, 1)
        >>> [len(block) for block in layout_of(net).blocks], layout_of(net).head
        ([4, 2], ('head.weight', 'head.bias'))
    """
    try:
        part = module.get_submodule(backbone)
    except AttributeError:
        parts = [name for name, _ in module.named_children()]
        raise MisconfigurationError(
            f"{type(module).__name__} has no part {backbone!r}.{did_you_mean(backbone, parts)} Its parts are "
            f"{', '.join(parts) or 'none'}: say which of them was pretrained with backbone=..., or backbone='' for all."
        ) from None
    parameters = dict(part.named_parameters())
    # By what they are: the part may have another name in the module, too, or share weights with the rest of it.
    own = {parameter: name for name, parameter in module.named_parameters()}
    blocks = [tuple(own[parameters[name]] for name in block) for block in _blocks_of(part)]
    if not blocks:
        raise MisconfigurationError(f"{type(module).__name__}.{backbone} has no parameters.")
    names = list(own.values())
    if backbone:
        known = {name for block in blocks for name in block}
        head = tuple(name for name in names if name not in known)
    else:
        head = blocks.pop()
    return Layout(
        tuple(blocks), head, _norms(module), frozenset(each for each in names if each.endswith("bias"))
    )


def blocks_in(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Give the parts of a network that have parameters, in order: lists of layers taken apart, everything else whole.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)))
        >>> [name for name, _ in blocks_in(net)]
        ['0', '1.0', '1.2']
    """
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if not any(True for _ in child.parameters()):
            continue
        # Inside a list, its members stay whole; around one, a module (an encoder, say) is only its frame.
        if _is_list(child) or (not _is_list(module) and _is_frame(child)):
            yield from blocks_in(child, path)
        else:
            yield path, child


def _is_list(module: nn.Module) -> bool:
    # The exact types: a subclass of Sequential (a convolution with its norm, say) is a unit.
    return type(module) in {nn.Sequential, nn.ModuleList}


def _is_frame(module: nn.Module) -> bool:
    """Whether a module stands around lists of layers: around any at its first level, or, at any depth, layers of one class.

    Deeper down only the latter count: a BERT within a wrapper has its layers there, a stage of residual blocks what each of
    them is made of.
    """
    return any(_is_list(each) for each in module.children()) or any(
        type(each) is nn.ModuleList and len(each) > 1 and len({type(layer) for layer in each}) == 1
        for each in module.modules()
    )


def _blocks_of(network: nn.Module) -> list[list[str]]:
    """Give the names of a network's parameters, block by block, input first; a norm that stands alone goes with what is before."""
    path, inner = _within_wrappers(network)
    blocks = (
        _by_prefix(network)
        if inner is None
        else [[path + name for name in each] for each in _by_matcher(inner)]
    )
    norms = _norms(network)
    merged: list[list[str]] = []
    for block in blocks:
        if merged and norms.issuperset(block):
            merged[-1] += block
        elif block:
            merged.append(block)
    return merged


def _within_wrappers(network: nn.Module) -> tuple[str, Any]:
    """Give the timm model that a network is, or that modules around it only hold (a `Backbone`), and its prefix; or `None`."""
    path = ""
    while not hasattr(network, "group_matcher"):
        parts = [
            (name, each) for name, each in network.named_children() if any(True for _ in each.parameters())
        ]
        if len(parts) != 1 or any(True for _ in network.parameters(recurse=False)):
            return "", None
        path, network = f"{path}{parts[0][0]}.", parts[0][1]
    return path, network


def _by_matcher(network: Any) -> list[list[str]]:
    from timm.models import group_parameters

    groups: Mapping[Any, list[str]] = group_parameters(network, network.group_matcher(coarse=False))
    return [list(block) for _, block in sorted(groups.items())]


def _by_prefix(network: nn.Module) -> list[list[str]]:
    """Sort names to the blocks that they lie in; what lies in none (a class token, a position embedding) is the input's."""
    names = [name for name, _ in network.named_parameters()]
    prefixes = [name for name, _ in blocks_in(network)]
    if not prefixes:
        return [names]
    blocks: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    for name in names:
        owner = next((each for each in prefixes if name.startswith(f"{each}.")), prefixes[0])
        blocks[owner].append(name)
    return list(blocks.values())


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm of any kind, a library's own included.

    Example:
        >>> is_norm(nn.BatchNorm2d(1)), is_norm(nn.RMSNorm(1)), is_norm(nn.Linear(1, 1))
        (True, True, False)
    """
    return "norm" in type(module).__name__.lower() and not any(
        True for child in module.children() for _ in child.parameters()
    )


def _norms(module: nn.Module) -> frozenset[str]:
    return frozenset(
        f"{path}.{name}" if path else name
        for path, each in module.named_modules()
        if is_norm(each)
        for name, _ in each.named_parameters(recurse=False)
    )
