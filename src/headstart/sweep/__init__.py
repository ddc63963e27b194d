"""Sweeps: many trials of backbone, plan and rates on the same data, judged on the same validation samples.

`space` says what is tried, `trial` tries it, `study` keeps what was tried and proposes the next, `ranking` says which was the
best and how sure that is.
"""
