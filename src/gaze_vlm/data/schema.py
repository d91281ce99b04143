"""One schema for every release: what is known stands in its column, what is not known is None, never zero."""

from datasets import Features, Image, List, Value

SCANPATH = {name: List(Value("float32")) for name in ("x", "y", "onset", "duration")}

SCHEMA = Features(
    {
        "image": Image(),
        "image_id": Value("string"),
        "patient_id": Value("string"),
        "study_id": Value("string"),
        "view": Value("string"),
        "report": {"findings": Value("string"), "impression": Value("string")},
        # certainty 0..1 that the finding is present; findings that nobody judged are not listed
        "findings": List({"name": Value("string"), "certainty": Value("float32")}),
        # x1, y1, x2, y2 in the image, 0..1 from the top left
        "boxes": List(
            {"name": Value("string"), "box": List(Value("float32"), length=4), "annotator": Value("string")}
        ),
        "prompt": Value("string"),  # what the reader was asked to look for
        "scanpath": SCANPATH,  # x, y in the image 0..1, onset and duration in seconds
        "reader": Value("string"),
        "split": Value("string"),
        "source": Value("string"),
        "licence": Value("string"),
    }
)

EMPTY = dict.fromkeys(SCHEMA)


def row(**known) -> dict:
    """A row of the schema: what is given, and None everywhere else.

    Raises:
        KeyError: for a column the schema does not have.
    """
    unknown = known.keys() - EMPTY.keys()
    if unknown:
        raise KeyError(f"the schema has no column {', '.join(sorted(unknown))}")
    return EMPTY | known
