"""Description of an exported model, which its file carries."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field

from ostinato.errors import DataError
from ostinato.records import PlainName, PreprocessRecord, Record, Text, parse
from ostinato.streams import EvalTransform

KEY = "ostinato"
"""Name of the description among the metadata of a file, followed by ``.json`` where it is a file in an archive."""

INPUT = "uint8 RGB (batch, 3, size, size): shorter side resized to size / crop, centre cropped; normalised inside"


class ExportRecord(Record):
    """Classes, pre-processing and origin of an exported model.

    Attributes:
        format: version of this description.
        version: of the package that wrote the file.
        method: name of the method.
        backbone: name of the backbone.
        class_names: in the order of the scores.
        scores_are_logits: whether a softmax of the scores has a meaning.
        protocol: "sample", since every image is scored alone.
        input: the input in words.
        preprocess: side, mean, standard deviation and interpolation. The file itself normalises by mean and deviation.
        crop: share of the shorter side that is kept.
    """

    format: Literal[1] = 1
    version: Text
    method: PlainName
    backbone: Text
    class_names: Annotated[list[Text], Field(min_length=1)]
    scores_are_logits: bool
    protocol: Text
    input: Text = INPUT
    preprocess: PreprocessRecord
    crop: Annotated[float, Field(gt=0, le=1)]

    @property
    def transform(self) -> EvalTransform:
        """Transform of images to the input."""
        return EvalTransform(self.preprocess.size, self.preprocess.interpolation, self.crop)

    def dumps(self) -> str:
        """The description as JSON in ASCII."""
        return json.dumps(self.model_dump())


def read_about(text: str, where: str) -> ExportRecord:
    """Read the description of a file.

    Raises:
        DataError: naming ``where``, if it is damaged or of another version.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: its description must be JSON, but cannot be read: {error}.") from None
    return parse(ExportRecord, value, where)
