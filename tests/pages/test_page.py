"""Pages hold nothing that acts, whatever text is put into them."""

import html.parser
import re

import pytest
from matplotlib.figure import Figure

from maxlm.pages import Rows, escaped, figures_markup, page_markup, table_markup, visible
from maxlm.pages.chart import Chart

HOSTILE = (
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' style='position:fixed'",
    "]]><!-- --><svg/onload=alert(1)>",
    "&lt;b&gt; &#60;",
    "\x1b[31mred\x1b]0;title\x07\x9b2J\0\x08",
    "\u202egnihtyna \u2066 \u2028",
    "\ud800 lone",
    "$\\frac{1}{0}$ _x^",
)


ARABIC = "\u0627\u0644\u0639\u0631\u0628\u064a\u0629"


class Acting(html.parser.HTMLParser):
    """Notes elements, and attributes that act or lead elsewhere."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


def test_texts_are_shown_and_do_not_act():
    table = Rows(HOSTILE[0], HOSTILE, (HOSTILE, HOSTILE))
    page = page_markup(HOSTILE[1], [table_markup(table), escaped("".join(HOSTILE))])
    reader = Acting()
    reader.feed(page)
    tags = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "table", "thead", "tbody"}
    assert reader.tags == tags | {"tr", "td", "th"}
    assert reader.attributes == {"lang", "charset", "http-equiv", "content"}
    shown = "".join(reader.text)
    for text in HOSTILE:
        assert visible(text) in shown
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page
    )
    assert page.encode().decode() == page


def test_a_page_may_load_nothing():
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page_markup("a", []))
    assert policy[1] == "default-src 'none'; style-src 'unsafe-inline'"


def test_charts_are_drawn_within_the_page_and_are_the_same_each_time():
    def chart():
        figure = Figure()
        figure.subplots().plot([1, 2], [3, 4])
        return Chart("one", "<b>two</b>", figure)

    markup = figures_markup([chart()])
    assert markup == figures_markup([chart()])
    assert "&lt;b&gt;two" in markup
    elsewhere = re.findall(r'(?:href|src)="([^"]*)"', markup)
    assert elsewhere
    assert all(target.startswith("#") for target in elsewhere)
    assert "<script" not in markup


@pytest.mark.parametrize(
    "text",
    ["plain \u00e9\U0001f600\n\ttext", f"{ARABIC} \u65e5\u672c"],
)
def test_what_does_not_act_is_left_as_it_is(text):
    assert visible(text) == text
