"""A model behind HTTP: `headstart serve`.

`limits` says what a request may cost, `predictor` turns a photo or text into probabilities, `batching` computes what came
at the same time together, `bodies` reads requests within the limits, `schemas` says what they look like, `app` ties them
together, `page` is for people, `server` runs it until it is told to end.
"""
