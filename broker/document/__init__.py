"""Files people write, read strictly: YAML 1.2 and JSON with a position for every value, and words for what is wrong.

Used by settings and manifests alike. What the keys mean is theirs.
"""

from broker.document.mistakes import did_you_mean, dotted, located_problems, nearest, problems_in
from broker.document.parsing import Document, Loc, Parsed, parse, parse_file, parse_value, read_documents
from broker.document.sections import section

__all__ = [
    "Document",
    "Loc",
    "Parsed",
    "did_you_mean",
    "dotted",
    "located_problems",
    "nearest",
    "parse",
    "parse_file",
    "parse_value",
    "problems_in",
    "read_documents",
    "section",
]
