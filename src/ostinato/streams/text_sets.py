"""Columns and class names of public sets of texts, as the Hugging Face hub has them."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from ostinato.streams.readers import is_string

PARTS = (("question_title", "question_content", "best_answer"), ("title", "content"))
"""Columns that make up one text, of Yahoo Answers, and of Amazon reviews and DBpedia."""


def columns_of_text(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of a table that make up its texts; none if it has a column "text" or not all of a set's."""
    if "text" in schema.names:
        return ()
    for parts in PARTS:
        if all(schema.names.count(part) == 1 and is_string(schema.field(part).type) for part in parts):
            return parts
    return ()


def join_columns(table: pa.Table, parts: tuple[str, ...]) -> pa.Table:
    """Add a column "text": those of ``parts`` with a blank between, without missing and empty ones."""
    blank = pa.scalar(" ", pa.large_string())
    columns = [table.column(part).cast(pa.large_string()) for part in parts]
    none, empty = pa.scalar(None, pa.large_string()), pa.scalar("", pa.large_string())
    given = [
        pc.call_function("if_else", [pc.call_function("equal", [column, empty]), none, column]) for column in columns
    ]
    skip = pc.JoinOptions(null_handling="skip")
    return table.append_column("text", pc.call_function("binary_join_element_wise", [*given, blank], skip))


def answer_of(class_name: str) -> str:
    """The answer that a class stands for, equal for the same number of stars: "1 star" and "1", "5 stars" and "5"."""
    stars = re.fullmatch(r"(\d+) stars?", class_name.strip(), re.IGNORECASE)
    return stars.group(1) if stars else class_name
