"""Tables and charts, and HTML pages of them that need no network and no script."""

from maxlm.pages.chart import Chart
from maxlm.pages.page import Markup, escaped, figures_markup, page_markup, table_markup
from maxlm.pages.rows import Rows
from maxlm.pages.signs import visible

__all__ = [
    "Chart",
    "Markup",
    "Rows",
    "escaped",
    "figures_markup",
    "page_markup",
    "table_markup",
    "visible",
]
