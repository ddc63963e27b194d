"""The documentation as a site: it builds without a warning, is complete, and loads nothing from elsewhere."""

import importlib
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from tests.test_public_api import PUBLIC

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Packages whose every public name has an entry; of other modules, the pages choose.
DOCUMENTED = [
    *PUBLIC,
    *(f"headstart.{name}" for name in ("backbones", "data", "deferred", "probe", "strategy", "tasks")),
]
# What a browser fetches without being asked, by tag and attribute.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("object", "data"),
}
FETCHED_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}


class Page(HTMLParser):
    """What a built page fetches, links to, and has as anchors."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.anchors, self.tags = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.anchors.add(given.get("id"))
        self.fetched += [given[name] for of, name in FETCHED if of == tag and given.get(name)]
        if tag == "link" and FETCHED_LINKS & set((given.get("rel") or "").split()):
            self.fetched.append(given["href"])


def build(config, target):
    """Build the site of a configuration; give the finished process, its output in one."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", target],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: its folder, and its pages by name."""
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", target)
    assert done.returncode == 0, done.stdout
    return target, {str(path.relative_to(target)): Page(path.read_text()) for path in target.rglob("*.html")}


def pages_in(nav):
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    children = nav.values() if isinstance(nav, dict) else nav
    return [page for child in children for page in pages_in(child)]


def test_every_page_of_docs_is_in_the_navigation_once():
    named = pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(named) == sorted(there), "name the page in `nav` of mkdocs.yml"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_every_page(site):
    _, pages = site
    for path in DOCS.rglob("*.md"):
        assert str(path.relative_to(DOCS).with_suffix(".html")) in pages


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(site):
    folder, pages = site
    for name, page in pages.items():
        assert page.fetched, name
        for address in page.fetched:
            assert not re.match(r"\w+:|//", address), (name, address)
            # The page of what is not found is shown at any depth, so it names files from the root.
            start = folder if name == "404.html" else (folder / name).parent
            assert (start / address.partition("?")[0].lstrip("/")).exists(), (name, address)
        # This part of the theme asks a forge for its stars.
        assert not any(given.get("data-md-component") == "source" for _, given in page.tags)
    for sheet in folder.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_the_site_is_light_and_dark_as_the_system_is(site):
    palettes = [given for _, given in site[1]["index.html"].tags if "data-md-color-media" in given]
    assert [(each["data-md-color-media"], each["data-md-color-scheme"]) for each in palettes] == [
        ("(prefers-color-scheme: light)", "default"),
        ("(prefers-color-scheme: dark)", "slate"),
    ]


@pytest.fixture(scope="module")
def address(site):
    """The site on a port of this machine."""
    handler = partial(QuietHandler, directory=site[0])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and prints no line for each."""

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
def test_in_a_browser_pages_are_found_by_searching_and_nothing_else_is_fetched(address, browser_page):
    page = browser_page.page
    page.goto(address + "index.html")
    search = page.locator(".md-search__input")
    search.click()  # the index is fetched now
    search.press_sequentially("frozen work")
    found = page.locator(".md-search-result__item a").first
    found.wait_for()
    assert "frozen" in found.inner_text().lower()
    page.goto(address + "api/deferred.html")
    page.set_viewport_size({"width": 390, "height": 800})
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= 390
    )  # a telephone scrolls in one direction
    assert {each.startswith(address) for each in browser_page.requests} == {True}
    assert (browser_page.console, browser_page.failed) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("package", DOCUMENTED)
def test_every_public_name_has_an_entry_with_its_docstring(package, site):
    folder, pages = site
    anchors = set().union(*(page.anchors for name, page in pages.items() if name.startswith("api/")))
    assert {f"{package}.{name}" for name in importlib.import_module(package).__all__} <= anchors


@pytest.mark.slow
def test_programs_in_docstrings_are_shown_as_programs(site):
    folder, _ = site
    for path in (folder / "api").glob("*.html"):
        prose = re.sub(r"<pre.*?</pre>", "", path.read_text(), flags=re.DOTALL)
        assert "&gt;&gt;&gt;" not in prose, path.name


@pytest.mark.slow
def test_the_measured_tables_are_those_of_the_benchmarks(site):
    shown = re.sub(r"<[^>]+>", "", (site[0] / "measured.html").read_text())
    rows = re.findall(r"^\| `(\w+\.py)`", (ROOT / "benchmarks" / "README.md").read_text(), flags=re.MULTILINE)
    assert rows
    assert all(row in shown for row in rows)


@pytest.mark.slow
def test_a_link_to_nowhere_and_a_page_outside_the_navigation_are_errors(tmp_path):
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text("# Home\n\n[gone](gone.md)\n")
    (pages / "forgotten.md").write_text("# Forgotten\n")
    ours = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    config = {name: ours[name] for name in ("site_name", "strict", "validation")} | {
        "docs_dir": str(pages),
        "nav": ["index.md"],
    }
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "gone.md" in done.stdout
    assert "forgotten.md" in done.stdout
