"""Pictures that cost little."""

from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

SAVE_FIGURE = Figure.savefig


@contextmanager
def coarse():
    """Pictures are drawn coarsely, without ticks and with their parts not fitted to each other, which takes as long as
    a short training."""

    def save(self, *args, **kwargs):
        self.set_layout_engine(None)  # with "none" it would be drawn twice
        for axes in self.axes:
            axes.set_axis_off()
            axes.set_title(axes.get_title(), y=1)  # or its place is made out from all ticks and labels
        SAVE_FIGURE(self, *args, **(kwargs | {"dpi": 20}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield
