"""What the tests share: a quiet trainer, and small data that is the same everywhere."""

import shutil
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from headstart import Trainer

# The models here are so small that a second thread costs more than it computes.
torch.set_num_threads(1)


@pytest.fixture
def quiet_trainer(tmp_path):
    """Make a `Trainer` on the CPU without logger, checkpoints, progress bar and summary, unless asked for."""

    def make(**settings):
        off = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return Trainer(
            **{"accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 1, **off, **settings}
        )

    return make


@pytest.fixture
def two_classes():
    """70 samples of 8 numbers in two classes, drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 8, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


# ---- pages in a browser


@dataclass
class BrowserPage:
    """A page of Chromium (`page`, playwright's), and what it said and asked for since it was opened."""

    page: Any
    console: list[str] = field(default_factory=list)  # errors and warnings, exceptions that nobody caught
    requests: list[str] = field(default_factory=list)  # addresses, without those that hold their own data
    failed: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, as `make test` sees to it that there is one.

    Until it is closed, an event loop of playwright's runs in this thread: a test that calls `asyncio.run` does so in another.
    """
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    assert path is not None, f"Pages are tested in Chromium: put one of {', '.join(names)} on PATH."
    quiet = (
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[f"--{each}" for each in (*quiet, "no-first-run")]
        )
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser):
    """A new page of 1280 x 900 pixels, which keeps what its console says and every request that it makes."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        found = BrowserPage(context.new_page())
        page = found.page
        page.on(
            "console",
            lambda each: found.console.append(each.text) if each.type in {"error", "warning"} else None,
        )
        page.on("pageerror", lambda error: found.console.append(str(error)))
        page.on("requestfailed", lambda request: found.failed.append(request.url))
        page.on(
            "request",
            lambda request: (
                found.requests.append(request.url) if not request.url.startswith(("data:", "blob:")) else None
            ),
        )
        yield found
