"""Sections as one HTML file that needs nothing else, and asks for nothing.

Names and answers come from strangers. Jinja escapes all that is put into the page; specifications
are JSON in which no character can end a script; and a Content Security Policy lets no script run
but the two that stand here, known by their hashes, and no address be asked for.
"""

import base64
import contextlib
import functools
import hashlib
import importlib.resources
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from evomerge import __version__
from evomerge.errors import BadInput, Fault
from evomerge.report.figures import Panel, Picture, Section, Spec
from evomerge.text import clean

if TYPE_CHECKING:
    from markupsafe import Markup

_VEGA_LITE = "6.4"  # the version of which the specifications are


def page(name: str, state: str, about: str, sections: Sequence[Section], refresh: int = 0) -> str:
    """Return the page.

    Args:
        name, state: of the campaign.
        about: a line below the name.
        sections: in their order.
        refresh: seconds after which the page is to be read again; 0: never.

    Raises:
        ModuleNotFoundError: what draws is not installed; see `installed`.

    >>> from evomerge.report.figures import Text
    >>> text = page("<b>", "finished", "", [Section("verdict", "Verdict", [Text("a & b")])])
    >>> "<b>" in text, "<h1>&lt;b&gt;</h1>" in text, "a &amp; b" in text
    (False, True, True)
    """
    import jinja2  # only a report needs it, and `vl_convert` below
    from markupsafe import Markup

    specs: dict[str, str] = {}

    def place(panel: Panel) -> str:
        key = f"spec-{len(specs)}"
        specs[key] = jinja2.utils.htmlsafe_json_dumps(compiled(panel.spec), allow_nan=False)
        return key

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"clean": clean, "place": place, "prose": prose}
    draws = any(isinstance(part, Picture) for section in sections for part in section.parts)
    scripts = [_bundle(), _file("draw.js")] if draws else []
    whole: str = environment.get_template("page.html").render(
        name=name,
        state=state,
        about=about,
        sections=sections,
        refresh=refresh,
        policy=_policy(scripts),
        style=Markup(_file("style.css")),
        specs=specs,
        scripts=[Markup(script) for script in scripts],
        version=__version__,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    return whole


def compiled(spec: Spec) -> Spec:
    """Return a specification of Vega-Lite as one of Vega, which draws without it.

    >>> from evomerge.report.charts import drawing
    >>> compiled(drawing(90, "a point", data={"values": []}, mark="point"))["height"]
    90
    """
    import vl_convert

    found: Spec = vl_convert.vegalite_to_vega(spec, vl_version=_VEGA_LITE)
    return found


def prose(text: str) -> "Markup":
    """Return text as HTML, escaped, with what stands between backticks as code.

    >>> str(prose("say `evomerge run` & <b>"))
    'say <code>evomerge run</code> &amp; &lt;b&gt;'
    """
    from markupsafe import Markup, escape

    parts = text.split("`")
    if len(parts) % 2 == 0:  # one without a partner
        return escape(text)
    code = (Markup("<code>%s</code>") % part if n % 2 else part for n, part in enumerate(parts))
    return Markup("").join(code)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Say in one line where what only a report needs is not installed.

    Raises:
        BadInput: it is so.

    >>> with installed():
    ...     import a_library_of_nobody
    Traceback (most recent call last):
    evomerge.errors.BadInput: a report needs a_library_of_nobody; pip install "evomerge[report]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        mend = 'pip install "evomerge[report]"'
        raise BadInput(Fault("", f"a report needs {error.name}", mend)) from error


@functools.cache
def _bundle() -> str:
    """Return Vega as one script, which `draw.js` calls."""
    import vl_convert

    text: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # nothing in it may end the element that it stands in, or begin a comment of HTML
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@functools.cache
def _file(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text("utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Return what the page may do: run these scripts, style itself, and nothing else."""
    hashes = []
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        hashes.append(f"'sha256-{digest}'")
    allowed = " ".join(hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline';"
        " base-uri 'none'; form-action 'none'"
    )
