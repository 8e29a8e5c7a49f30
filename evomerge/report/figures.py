"""What a section is made of: paragraphs, tables and pictures, before they become HTML.

A picture is a specification of Vega-Lite, a title, what it shows in words (for who does not see
it), and how to read it (for who does).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

Spec = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: plain; it is escaped where it is written.
        kind: lead, plain, note or warning.

    >>> Text("nothing is held out").kind
    'plain'
    """

    form: ClassVar[str] = "text"

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Table:
    """Rows under headers.

    Attributes:
        headers: of the columns.
        rows: cells; numbers stand to the right.
        caption: what the rows are.
        folded: whether it is shown on demand.
        numeric: the columns whose cells are numbers.
        strong: rows that stand out.

    >>> Table(("id",), ((7,),), "all").numeric
    ()
    """

    form: ClassVar[str] = "table"

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str
    folded: bool = False
    numeric: Sequence[int] = ()
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Panel:
    """One drawing of a picture.

    Attributes:
        spec: of Vega-Lite, without data from elsewhere.
        height: in pixels, of its place on the page before it is drawn.
        title: above it; "" for none.

    >>> Panel({"mark": "point"}, 200).title
    ''
    """

    spec: Spec
    height: int
    title: str = ""


class Key(NamedTuple):
    """One entry of a legend.

    Attributes:
        name: what has the mark.
        colour: of it, as CSS has it.
        path: of its shape, as SVG has it, within -1 to 1.

    >>> Key("ja", "var(--m0)", "M-1,-1H1V1H-1Z").name
    'ja'
    """

    name: str
    colour: str
    path: str


@dataclass(frozen=True)
class Picture:
    """One picture: a drawing, or several beside each other.

    Attributes:
        title: above it.
        alt: what is seen on it, in words.
        reading: how to read it.
        panels: the drawings.
        least_width: in pixels, of a panel; 0: it has the whole width.
        legend: of all panels together.

    >>> Picture("front", "two points", "Up and right is better.", [Panel({}, 300)]).least_width
    0
    """

    form: ClassVar[str] = "picture"

    title: str
    alt: str
    reading: str
    panels: Sequence[Panel]
    least_width: int = 0
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Code:
    """Text that is kept as it is, shown on demand.

    >>> Code("plan", "seed: 7").title
    'plan'
    """

    form: ClassVar[str] = "code"

    title: str
    text: str


@dataclass(frozen=True)
class Case:
    """One item: its text, and what models answered.

    Attributes:
        title: which item it is.
        text: of the item; "" where it is not known.
        target: what is right; "" where it is not known.
        answers: who, what was said ("" where it was not kept), the score in words, whether right.

    >>> Case("maths item 3", "1 + 1", "2", (("ja", "2", "right", True),)).target
    '2'
    """

    title: str
    text: str
    target: str
    answers: Sequence[tuple[str, str, str, bool]]


@dataclass(frozen=True)
class Cases:
    """Items under a heading.

    >>> Cases("Where the merge wins", ()).cases
    ()
    """

    form: ClassVar[str] = "cases"

    title: str
    cases: Sequence[Case]


Part = Text | Table | Picture | Code | Cases


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        key: of links to it.
        title: of the section.
        parts: in their order.

    >>> Section("front", "The front", (Text("empty"),)).key
    'front'
    """

    key: str
    title: str
    parts: Sequence[Part]
