"""Charts as data: what does not grow with the data, and names as text."""

import json

from headstart.report.figures import confusion_figure


def confusion_of(names):
    matrix = [[int(row == column) for column in range(len(names))] for row in range(len(names))]
    return confusion_figure({"class_names": names, "scores": {"confusion_matrix": matrix}})


def test_a_confusion_matrix_of_many_classes_has_no_text_for_each_cell():
    figure = confusion_of([f"a class with a long name, number {number}" for number in range(300)])
    assert len(json.dumps(figure)) < 20 * 300**2  # bytes a cell: the shares alone
    (trace,) = figure["data"]
    assert trace["hovertemplate"].startswith("%{z:.1%} of %{y} predicted as %{x}")
    assert trace["x"][299] == "a class with a long name, number 299"


def test_quotes_are_as_they_are_and_tags_are_text():
    figure = confusion_of(['19" rim', "<b>bold</b>"])
    (trace,) = figure["data"]
    assert trace["hovertext"][0][1].startswith('19" rim predicted as &lt;b&gt;bold&lt;/b&gt;')
