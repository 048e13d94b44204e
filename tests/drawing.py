"""Pictures that are drawn quickly."""

from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

SAVE_FIGURE = Figure.savefig


@contextmanager
def coarse():
    """Draw pictures coarsely, without ticks and without a layout engine, which would take as long as a short
    training."""

    def save(self, *args, **kwargs):
        self.set_layout_engine(None)  # with "none" the figure would be drawn twice
        for axes in self.axes:
            axes.set_axis_off()
            axes.set_title(axes.get_title(), y=1)  # otherwise its position is computed from all ticks and labels
        SAVE_FIGURE(self, *args, **(kwargs | {"dpi": 20}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield
