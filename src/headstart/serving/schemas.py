"""What requests and answers look like: checked here, and described to others by OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from headstart.serving.limits import Takes

#: Two texts.
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class Images(BaseModel):
    """Photos in JSON, for programs that cannot send files."""

    model_config = ConfigDict(strict=True, extra="forbid")
    images: Annotated[list[str], FailFast()] = Field(
        min_length=1, description="each in base64, with or without `data:image/...;base64,` before it"
    )


class Texts(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(
        strict=True, extra="forbid", json_schema_extra={"examples": [{"texts": ["I love this film"]}]}
    )
    texts: Annotated[list[str], FailFast()] = Field(min_length=1)


class Pairs(BaseModel):
    """Pairs of texts to classify, such as premise and hypothesis."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"pairs": [["A man sleeps.", "Nobody is awake."]]}]},
    )
    pairs: Annotated[list[Pair], FailFast()] = Field(min_length=1)


#: The JSON that a model's requests hold.
REQUESTS: dict[Takes, type[Images | Texts | Pairs]] = {"photos": Images, "texts": Texts, "pairs": Pairs}


class Prediction(BaseModel):
    """What the model says of one photo, text or pair."""

    file: str | None = Field(default=None, description="the name of a photo that came as a file")
    best: str = Field(serialization_alias="class", description="the most probable class")
    probability: float = Field(description="of that class")
    probabilities: dict[str, float] = Field(description="of every class")


class Predictions(BaseModel):
    """An answer: one prediction for each photo, text or pair, in their order."""

    predictions: list[Prediction]


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="what was received, what was expected, what to do")


class Health(BaseModel):
    """That the server runs."""

    status: str = Field(examples=["ok"])
    waiting: int = Field(description="photos, texts or pairs that wait or are computed")


class ModelFacts(BaseModel):
    """What is served."""

    takes: Takes
    class_names: list[str]
    backbone: str
    preprocessing: dict[str, Any] = Field(description="what is done to a photo or text first")
    temperature: float | None = Field(
        description="by which the probabilities were calibrated on validation samples; null if they were not"
    )
    metrics: dict[str, Any] = Field(description="what was measured when the model was made")
    created: str
    versions: dict[str, str] = Field(description="of the libraries that it was made with")
    limits: dict[str, float] = Field(description="what a request may cost")
