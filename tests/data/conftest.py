from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class FolderOfImages:
    """A folder per class, made of small files that differ from each other."""

    def __init__(self, root: Path):
        self.root = root
        self.num_made = 0

    def add(self, class_folder: str, count: int, suffix: str = ".png") -> list[Path]:
        folder = self.root / class_folder
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for _ in range(count):
            self.num_made += 1
            pixels = np.random.default_rng(self.num_made).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            paths.append(folder / f"{self.num_made:04d}{suffix}")
            Image.fromarray(pixels).save(paths[-1])
        return paths


@pytest.fixture
def images(tmp_path) -> FolderOfImages:
    root = tmp_path / "pictures"
    root.mkdir()
    return FolderOfImages(root)


@pytest.fixture
def write_table(tmp_path):
    """Write a table of a given name: text as it is, bytes as they are, rows (dicts) as JSON lines or Parquet."""

    def write(name: str, content) -> Path:
        path = tmp_path / name
        if isinstance(content, str):
            path.write_bytes(content.encode())
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(content), path)
        return path

    return write


@pytest.fixture
def reviews():
    """The lines of a sound CSV: a header, and `count` rows of two classes in turn."""

    def lines(count: int = 200) -> list[str]:
        words = ("good", "bad")
        return ["text,label", *(f"a {words[n % 2]} film number {n},{words[n % 2]}" for n in range(count))]

    return lines
