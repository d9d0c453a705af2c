"""A chart as SVG for pages and as a picture for TensorBoard."""

from __future__ import annotations

import io
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


class Chart(NamedTuple):
    """A chart, and what it shows in a sentence."""

    name: str
    meaning: str
    figure: Figure

    def svg(self) -> str:
        """Return it as SVG markup without fonts or links to elsewhere; the same figure gives the
        same bytes.
        """
        text = io.StringIO()
        with rc_context({"svg.hashsalt": self.name}):
            FigureCanvasSVG(self.figure).print_svg(text, metadata={"Date": None})
        drawing = text.getvalue()
        return drawing[drawing.index("<svg") :]  # without the declarations of a file of its own

    def png(self) -> bytes:
        """Return it as a picture."""
        data = io.BytesIO()
        FigureCanvasAgg(self.figure).print_png(data)
        return data.getvalue()
