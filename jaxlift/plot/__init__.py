"""Pictures of scores: of images, sequences, text and rows of tables, of methods side by side, and of metrics' curves.

Functions take JAX and NumPy arrays alike. Those that draw one picture take `ax`, where to draw it, and return the axes;
those that draw several return the figure. Nothing is shown and no state of pyplot is touched: save the figure, or end a
notebook's cell with it (after `%matplotlib inline`).

>>> import numpy as np
>>> from jaxlift import plot
>>> one_hot = np.eye(4)[[0, 1, 2, 3]]
>>> contributions = np.array([[1.0, 0, -0.5, 0], [0, 2, 0, 0], [0, 0, -1, 0], [0, 0.5, 0, 0.5]])
>>> axes = plot.logo(plot.observed(contributions, one_hot), contig="chr1", start=1000)
>>> axes.figure.savefig("logo.png")  # doctest: +SKIP

Scores are signed. Where colours stand for them, the map is centred on zero, from blue by white to red, which people
with any of the common kinds of colour blindness can tell apart. All need matplotlib, which `pip install
'jaxlift[plot]'` brings, but for `observed`, `text` (in terminals and notebooks) and `to_shap` (which needs shap).
"""

from jaxlift.plot._compared import curves as curves
from jaxlift.plot._compared import side_by_side as side_by_side
from jaxlift.plot._images import image as image
from jaxlift.plot._sequences import COLOURS as COLOURS
from jaxlift.plot._sequences import LEGIBLE as LEGIBLE
from jaxlift.plot._sequences import Span as Span
from jaxlift.plot._sequences import logo as logo
from jaxlift.plot._sequences import observed as observed
from jaxlift.plot._sequences import signal as signal
from jaxlift.plot._sequences import tracks as tracks
from jaxlift.plot._shap import to_shap as to_shap
from jaxlift.plot._shared import DIVERGING as DIVERGING
from jaxlift.plot._shared import WIDTH as WIDTH
from jaxlift.plot._tables import bars as bars
from jaxlift.plot._tables import waterfall as waterfall
from jaxlift.plot._text import Text as Text
from jaxlift.plot._text import text as text
