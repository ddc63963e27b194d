"""The report of a run: from facts, which are plain data in `RUN/report/facts.json`, to one page.

What is found in samples and predictions comes first (`label_errors`, `duplicates`, `reliability`, `feature_map`, `samples`,
`curves`), then the facts of a run (`facts`), then the pages (`figures`, `page`, `comparison`).
"""
