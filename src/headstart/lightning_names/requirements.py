"""`RunIf`, with which the peer's own tests say what they need: one that needs what is not here is skipped."""

from __future__ import annotations

import os
import platform
import sys
from importlib.util import find_spec
from typing import Any

from headstart.errors import missing_dependency

_LIBRARIES = {
    "deepspeed": "deepspeed", "omegaconf": "omegaconf", "onnx": "onnx", "onnxscript": "onnxscript",
    "psutil": "psutil", "rich": "rich", "sklearn": "sklearn", "tensorrt": "torch_tensorrt",
}  # fmt: skip
_HARDWARE = ("bf16_cuda", "tpu", "ipu", "hpu")  # headstart runs on CPU, CUDA and MPS


def unmet(**needs: Any) -> tuple[list[str], dict[str, bool]]:
    """Give what a test needs and this machine lacks, and the keywords for its mark.

    Args:
        **needs: `min_torch="2.1"`, `min_cuda_gpus=1`, `deepspeed=True`, `standalone=True`, ...

    Example:
        >>> unmet(min_python="3.8", min_torch="99.0")[0]
        ['torch>=99.0']
    """
    import torch

    here = {"torch": _version(torch.__version__), "python": sys.version_info[:3]}
    reasons = []
    for need, value in needs.items():
        bound, _, what = need.partition("_")
        if value is None or value is False:
            lacking = need == "mps" and value is False and torch.backends.mps.is_available()
        elif need == "min_cuda_gpus":
            lacking = torch.cuda.device_count() < value
        elif bound in {"min", "max"} and what in here:
            need = f"{what}{'>=' if bound == 'min' else '<'}{value}"  # noqa: PLW2901 (for the reason)
            lacking = here[what] < _version(value) if bound == "min" else here[what] >= _version(value)
        elif need in _LIBRARIES:
            lacking = find_spec(_LIBRARIES[need]) is None
        elif need == "standalone":
            lacking = os.environ.get("PL_RUN_STANDALONE_TESTS", "0") != "1"
        elif need in {"skip_windows", "linux_only"}:
            lacking = sys.platform == "win32" or (need == "linux_only" and platform.system() != "Linux")
        else:
            lacking = not (need == "mps" and torch.backends.mps.is_available())
        if lacking:
            reasons.append(need)
    marks = {need: True for need in ("standalone", "min_cuda_gpus", "tpu") if needs.get(need)}
    return reasons, marks


class RunIf:
    """A pytest mark that skips a test whose needs are not met.

    Example:
        >>> RunIf(min_torch="99.0").kwargs["reason"]
        'Requires: [torch>=99.0]'
    """

    def __new__(cls, **needs: Any) -> Any:
        """Give the mark."""
        try:
            import pytest
        except ImportError as error:
            raise missing_dependency("pytest", needed_for="RunIf", extra="test") from error
        reasons, marks = unmet(**needs)
        return pytest.mark.skipif(
            condition=bool(reasons), reason=f"Requires: [{' + '.join(reasons)}]", **marks
        )


def _version(text: str) -> tuple[int, ...]:
    """Give the leading numbers of a version, without a build's suffix: `2.14.1+cpu` is (2, 14, 1)."""
    numbers = []
    for part in text.partition("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
