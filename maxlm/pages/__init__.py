"""Tables and charts, and HTML pages of them that need no network and no script.

`Chart` is in `maxlm.pages.chart`: it alone loads matplotlib.
"""

from maxlm.pages.page import Markup, escaped, figures_markup, page_markup, table_markup
from maxlm.pages.rows import Rows
from maxlm.pages.signs import visible

__all__ = [
    "Markup",
    "Rows",
    "escaped",
    "figures_markup",
    "page_markup",
    "table_markup",
    "visible",
]
