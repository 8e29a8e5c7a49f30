"""Write the parts of the guides that are read off the code, between their markers.

    python docs/generate.py

The markers are `<!-- generated -->` and `<!-- end -->`; a test says whether they are up to date.
"""

from pathlib import Path

from evomerge.archive import described
from evomerge.cli import catalogue

FOLDER = Path(__file__).parent

BEGIN, END = "<!-- generated -->", "<!-- end -->"

PARTS = {
    "archive.md": described.markdown,
    "campaign-file.md": catalogue.reference,
    "methods.md": catalogue.methods_table,
    "controllers.md": catalogue.controllers_table,
}


def with_generated(page: str, text: str) -> str:
    """Return a page with the text between its markers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def pages() -> dict[Path, str]:
    """Return the guides that have generated parts, as they should be."""
    return {
        FOLDER / name: with_generated((FOLDER / name).read_text(encoding="utf-8"), part())
        for name, part in PARTS.items()
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
