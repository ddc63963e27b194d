"""The report of a fit, and `headstart report`: what stands in the page, and what a person sees of it in a browser."""

from __future__ import annotations

import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from headstart.artefact import load_artefact, read_metadata
from headstart.cli import fit
from headstart.cli.main import main
from headstart.errors import CheckpointError, MisconfigurationError, WriteError
from headstart.report import page as report_pages
from headstart.report.facts import FACTS_FILE, read_facts, write_facts
from headstart.report.page import report_page
from headstart.scores import score

pytestmark = pytest.mark.slow

SCRIPT = "<script>document.title='owned'<"  # a folder's name has no slash
IMAGE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def marked_cells(solar_cells, tmp_path_factory):
    """Photos in three parts, with names in HTML, one photo in train and test, and one label that is wrong."""
    root = tmp_path_factory.mktemp("data") / "marked"
    for name, marked in (("functional", "functional"), ("defective", SCRIPT)):
        photos = sorted((solar_cells / name).iterdir())
        for part, some in (("train", photos[:12]), ("val", photos[12:16]), ("test", photos[16:])):
            (root / part / marked).mkdir(parents=True)
            for photo in some:
                shutil.copy(photo, root / part / marked / photo.name)
    first = min((root / "train" / SCRIPT).iterdir())
    shutil.copy(first, root / "test" / "functional" / IMAGE)  # also labelled differently
    return root


@pytest.fixture(scope="module")
def marked_run(marked_cells, tmp_path_factory):
    """A run of the plan `auto` on them, with a comparison from scratch."""
    run = tmp_path_factory.mktemp("runs") / "<b>run"
    options = ("--image_size", "64", "--batch_size", "8", "--epochs", "1", "--from_scratch", "true")
    assert fit.run([str(marked_cells), "--out", str(run), *options]) == 0
    return run


@pytest.fixture(scope="module")
def marked_facts(marked_run):
    return read_facts(marked_run)


class Text(HTMLParser):
    """The text of a page, without scripts and styles; and its elements."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self._skipped = [], [], 0
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._skipped += tag in {"script", "style"}

    def handle_endtag(self, tag):
        self._skipped -= tag in {"script", "style"}

    def handle_data(self, data):
        if not self._skipped:
            self.words.append(data)


def text_of(run):
    return Text((run / "report.html").read_text(encoding="utf-8")).text


# ---- what stands in it


def test_the_page_says_what_was_done_and_how_good_it_is(marked_run, marked_facts):
    text, scores = text_of(marked_run), read_metadata(marked_run)["metrics"]["test"]
    assert "efficientnet_lite0 (3.4 million parameters) learned 2 classes from 24 photos in" in text
    accuracy, f1 = scores["accuracy"], scores["macro_f1"]
    assert (
        f"right on {accuracy['value']:.1%} of 9 samples held back".replace("%", "\u00a0%").replace(
            "\u00a0", " "
        )
        in text
    )
    for each in (accuracy, f1):
        assert f"{each['value']:.3f} {each['low']:.3f} to {each['high']:.3f}" in text
    assert "headstart fit" in text
    assert "--from_scratch true" in marked_facts["command"]
    assert marked_facts["effort"]["peak_memory"] > 100e6
    assert marked_facts["effort"]["flops_saved"] > 0
    assert "TFLOP saved" in text


def test_candidates_stand_side_by_side_with_the_run_from_scratch(marked_facts, marked_run):
    rows = {each["name"]: each for each in marked_facts["candidates"]}
    assert {"head alone", "fine-tuned", "blend 50%", "from scratch"} <= rows.keys()
    for name in ("head alone", "fine-tuned", "from scratch"):
        assert 0 <= rows[name]["test"]["accuracy"]["low"] <= rows[name]["test"]["accuracy"]["high"] <= 1
        assert rows[name]["val"]["macro_f1"]["value"] is not None
    assert [each["name"] for each in rows.values() if each["is_kept"]] == [
        read_metadata(marked_run)["metrics"]["choice"]["chosen"]
    ]
    assert read_metadata(marked_run)["metrics"]["from_scratch"]["epochs"] == 1
    text = text_of(marked_run)
    assert "1 epoch from random weights" in text
    assert "A row for the same network trained from random weights" not in text


def test_a_photo_in_train_and_test_is_found_with_its_two_labels(marked_facts, marked_run):
    [twin] = [each for each in marked_facts["twins"]["shown"] if each["first"]["place"].endswith(IMAGE)]
    assert twin["is_same"]
    assert twin["similarity"] > 0.9999
    assert (twin["first_part"], twin["second_part"]) == ("test", "train")
    assert twin["first"]["picture"].startswith("data:image/jpeg;base64,")
    assert f"labelled functional and {SCRIPT}" in text_of(marked_run)


def test_mistakes_are_ordered_by_confidence_and_come_with_file_and_picture(marked_facts):
    mistakes = marked_facts["mistakes"]
    wrong = sum(map(int.__ne__, marked_facts["targets"], marked_facts["predicted"]))
    assert len(mistakes) == marked_facts["num_mistakes"] == wrong
    assert [each["confidence"] for each in mistakes] == sorted(
        (each["confidence"] for each in mistakes), reverse=True
    )
    for each in [*mistakes, *marked_facts["unsure"]]:
        assert each["picture"].startswith("data:image/jpeg;base64,")
        assert each["place"].startswith("test/")
        assert (each["label"] == each["predicted"]) == (
            each in marked_facts["unsure"] and each not in mistakes
        )


def test_names_are_text_and_never_tags(marked_run):
    page = Text((marked_run / "report.html").read_text(encoding="utf-8"))
    assert SCRIPT in page.text
    assert IMAGE.replace("/", "") in page.text
    assert "<b>run" in page.text
    assert not [attributes for tag, attributes in page.tags if "onerror" in attributes]
    assert [tag for tag, _ in page.tags].count("script") == 3  # charts, plotly, and what draws


def test_texts_stand_with_their_rows_and_the_plan_with_the_head_alone(text_run):
    facts, text = read_facts(text_run), text_of(text_run)
    assert "minilm (22.6 million parameters) learned 3 classes from" in text
    assert [each["name"] for each in facts["candidates"]] == ["head alone", "plan thaw"]
    assert facts["learning"]["phases"] == [
        {"name": "frozen", "begins": 0, "epochs": 2},
        {"name": "unfrozen", "begins": facts["learning"]["epoch_ends"][1][1] + 1, "epochs": 1},
    ]
    assert [point["place"] for point in facts["map"]["points"]][0].startswith("line ")
    assert "A row for the same network trained from random weights" in text
    shown = [*facts["mistakes"], *facts["unsure"]]
    assert shown
    assert all(each["text"].split()[0] in {"I", "where"} for each in shown)


def test_a_report_of_many_classes_and_samples_stays_readable(marked_facts, tmp_path):
    import numpy as np

    generator = np.random.default_rng(0)
    names = [f"class {n}" for n in range(100)]
    matrix = generator.integers(0, 3, size=(100, 100)) + np.diag(np.full(100, 900))
    facts = {**marked_facts, "class_names": names, "scores": score(matrix).to_dict(names)}
    facts["map"] = {**facts["map"], "points": [
        {"x": 0.1, "y": 0.2, "place": f"{n}.png", "true": n % 100, "predicted": n % 100, "confidence": 0.9}
        for n in range(2000)
    ]}  # fmt: skip
    page = report_page(facts, name="many")
    text = Text(page).text
    assert f"2,000 of {int(matrix.sum()):,} samples held back" in text
    assert "80 more classes, all better" in text
    assert "The most frequent mistakes" in text
    assert len(page) < 5e6


# ---- what a person sees of it


@pytest.fixture
def opened(browser_page):
    """Open a page, wait until it is drawn, and give playwright's page; in the end nothing may have gone wrong."""

    def open_(path, **media):
        browser_page.page.emulate_media(**media)
        browser_page.page.goto(path.resolve().as_uri())
        drawn(browser_page.page)
        return browser_page.page

    yield open_
    assert browser_page.console == []
    assert [each for each in browser_page.requests if not each.startswith("file://")] == []
    assert len(browser_page.requests) == 1  # the page itself


def drawn(page, how=" at "):
    """Wait until the charts are drawn in a colour of ink, or at a width of the window."""
    page.wait_for_selector(f'html[data-drawn*="{how}"]', state="attached")


def color_of(page, selector, name):
    return page.eval_on_selector(selector, f"element => getComputedStyle(element)['{name}']")


def brightness(color):
    return sum(int(each) for each in color.removeprefix("rgb(").removesuffix(")").split(",")) / 3


def test_the_page_follows_the_theme_and_prints_in_black_on_white(opened, marked_run):
    page = opened(marked_run / "report.html", color_scheme="light")
    assert page.title() != "owned"
    charts = page.locator("[data-chart]")
    assert {charts.nth(n).get_attribute("data-chart") for n in range(charts.count())} == {
        "loss", "score", "confusion", "reliability", "map",
    }  # fmt: skip
    assert page.locator("[data-chart] svg.main-svg").count() >= 5
    tick = "[data-chart=loss] .xtick text"
    assert brightness(color_of(page, "body", "backgroundColor")) > 230
    assert brightness(color_of(page, tick, "fill")) < 60
    page.emulate_media(color_scheme="dark")
    drawn(page, "#e6e9ed")
    assert brightness(color_of(page, "body", "backgroundColor")) < 40
    assert brightness(color_of(page, tick, "fill")) > 200
    page.emulate_media(color_scheme="dark", media="print")
    drawn(page, "#000000")
    assert color_of(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert color_of(page, tick, "fill") == "rgb(0, 0, 0)"
    assert not page.locator("nav").is_visible()
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 without its margins
    drawn(page, "at 718")
    tables = page.locator("table")
    rights = [tables.nth(n).bounding_box() for n in range(tables.count())]
    assert max(box["x"] + box["width"] for box in rights) <= 718  # paper does not scroll
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_pointing_at_a_sample_shows_its_file(opened, marked_run, marked_facts):
    page = opened(marked_run / "report.html")
    point = page.locator("[data-chart=map] .points path.point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("[data-chart=map] .hoverlayer .hovertext")
    shown = page.locator("[data-chart=map] .hoverlayer .hovertext").first.text_content()
    places = [each["place"] for each in marked_facts["map"]["points"]]
    assert any(place in shown for place in places), shown
    assert "true:" in shown
    assert "predicted:" in shown


def test_a_phone_needs_no_scrolling_sideways(opened, browser_page, marked_run):
    browser_page.page.set_viewport_size({"width": 360, "height": 740})
    page = opened(marked_run / "report.html")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("[data-chart=confusion] svg.main-svg").first.bounding_box()["width"] <= 336
    page.set_viewport_size({"width": 900, "height": 740})  # turned
    drawn(page, "at 900")
    assert page.locator("[data-chart=map] svg.main-svg").first.bounding_box()["width"] > 600


# ---- `headstart report`


def test_the_page_is_made_again_without_the_data(marked_run, tmp_path, capsys):
    run = tmp_path / "<b>run"
    shutil.copytree(marked_run / "report", run / "report")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == (marked_run / "report.html").read_bytes()


def test_runs_are_compared_in_one_page(opened, cell_run, marked_run, text_run, tmp_path, capsys):
    out = tmp_path / "runs.html"
    assert main(["report", str(cell_run), str(marked_run), str(text_run), "--out", str(out)]) == 0
    page = opened(out)
    text = page.inner_text("main")
    assert "These runs tell other classes apart" in text and "The best by accuracy" not in text
    for run in (cell_run, marked_run, text_run):
        assert str(run) in text
    assert page.locator("[data-chart] svg.main-svg").count() >= 3


def test_runs_that_were_judged_by_the_same_samples_are_compared_in_each(cell_run, tmp_path):
    facts = read_facts(cell_run)
    write_facts(tmp_path / "perfect", {**facts, "predicted": facts["targets"]})
    write_facts(tmp_path / "wrong", {**facts, "predicted": [1 - each for each in facts["targets"]]})
    out = tmp_path / "runs.html"
    assert main(["report", str(tmp_path / "perfect"), str(tmp_path / "wrong"), "--out", str(out)]) == 0
    text = Text(out.read_text(encoding="utf-8")).text
    p = 2 * 0.5 ** len(facts["targets"])  # McNemar's exact test: all of so many differ, to one side
    assert " best " in text
    assert f" {p:.3f} " in text


@pytest.mark.parametrize("arguments", [["a", "b"], ["a", "a", "--out", "x.html"]])
def test_a_comparison_needs_a_file_and_different_runs(cell_run, tmp_path, arguments, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(name).symlink_to(cell_run)
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "name it with --out FILE" in message or "a run is given twice" in message


def test_what_is_no_run_or_has_no_facts_is_said(tmp_path):
    with pytest.raises(MisconfigurationError, match="there is no such folder"):
        read_facts(tmp_path / "gone")
    with pytest.raises(MisconfigurationError, match="it is no run"):
        read_facts(tmp_path)
    (tmp_path / "run.yaml").write_text("")
    with pytest.raises(
        MisconfigurationError, match="did not come to its end, or ran with .*--resume --report true"
    ):
        read_facts(tmp_path)
    (tmp_path / "run.yaml").rename(tmp_path / "headstart.json")
    with pytest.raises(MisconfigurationError, match="a model alone, as a sweep keeps its best one"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: "{", "is damaged"),
        (lambda facts: "[]", "it has no format"),
        (
            lambda facts: json.dumps({**facts, "format": 99}),
            "has format 99, and this headstart reads up to 1",
        ),
        (lambda facts: json.dumps({**facts, "kind": "sounds"}), "its checksum does not fit"),
    ],
)
def test_facts_that_were_changed_are_refused(cell_run, tmp_path, change, message):
    (tmp_path / "report").mkdir()
    facts = json.loads((cell_run / FACTS_FILE).read_text())
    (tmp_path / FACTS_FILE).write_text(change(facts))
    with pytest.raises(CheckpointError, match=message):
        read_facts(tmp_path)


# ---- what must not happen


QUICK = ("--image_size", "64", "--epochs", "1", "--unfreeze_at_epoch", "1")  # the head alone, one epoch


def test_a_report_that_cannot_be_written_loses_no_model(solar_cells, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def fail(path, text):
        raise WriteError(f"{path} was not written: Permission denied.", number=13)

    monkeypatch.setattr(report_pages, "write_page", fail)
    with pytest.raises(WriteError, match=r"report.html was not written"):
        fit.run([str(solar_cells), "--out", str(run), *QUICK])
    assert load_artefact(run).class_names == ["defective", "functional"]
    assert "test" in read_metadata(run)["metrics"]
    monkeypatch.undo()
    assert main(["report", str(run)]) == 0


def test_without_plotly_fit_says_so_and_goes_on(solar_cells, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    report_pages._plotly.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert fit.run([str(solar_cells), "--out", str(run), *QUICK, "--test_fraction", "0"]) == 0
    line = "No report.html: 'plotly' is needed for reports and is not installed. Install it: pip install 'headstart[report]'"
    assert f"{line} Then `headstart report {run}` makes it." in capsys.readouterr().out
    assert not (run / "report.html").exists()
    monkeypatch.undo()
    assert main(["report", str(run)]) == 0
    text = text_of(run)
    assert "samples of validation, by which the model was chosen" in text
    assert "There is no test part" in text


def test_a_run_is_the_same_with_the_report_and_without(solar_cells, tmp_path):
    weights = []
    for wanted in ("true", "false"):
        options = ("--image_size", "32", "--epochs", "2", "--unfreeze_at_epoch", "0", "--report", wanted)
        assert fit.run([str(solar_cells), "--out", str(tmp_path / wanted), *options]) == 0
        weights.append((tmp_path / wanted / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert (tmp_path / "true" / "report.html").exists()
    assert not (tmp_path / "false" / "report.html").exists()
    assert not (tmp_path / "false" / "report").exists()
