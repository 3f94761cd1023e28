"""Rules: how a change of the input passes each family of maps, and which rule holds where.

`Rule` (rule.py) has DeepLIFT's answer for every family; a rule is a class derived from it that answers some in another
way. What it is given are the maps of families.py.
"""

from jaxlift.rules.deeplift import OriginalMaxPooling as OriginalMaxPooling
from jaxlift.rules.deeplift import PerLayer as PerLayer
from jaxlift.rules.deeplift import Rescale as Rescale
from jaxlift.rules.deeplift import RevealCancel as RevealCancel
from jaxlift.rules.families import BilinearMap as BilinearMap
from jaxlift.rules.families import Elementwise as Elementwise
from jaxlift.rules.families import LinearMap as LinearMap
from jaxlift.rules.families import Maximum as Maximum
from jaxlift.rules.families import Place as Place
from jaxlift.rules.families import PointwiseFunction as PointwiseFunction
from jaxlift.rules.families import Softmax as Softmax
from jaxlift.rules.gradients import Deconvnet as Deconvnet
from jaxlift.rules.gradients import Gradient as Gradient
from jaxlift.rules.gradients import GuidedBackprop as GuidedBackprop
from jaxlift.rules.local_shapley import LocalShapley as LocalShapley
from jaxlift.rules.lrp import AlphaBetaLRP as AlphaBetaLRP
from jaxlift.rules.lrp import AttnLRP as AttnLRP
from jaxlift.rules.lrp import EpsilonLRP as EpsilonLRP
from jaxlift.rules.lrp import GammaLRP as GammaLRP
from jaxlift.rules.lrp import ZPlusLRP as ZPlusLRP
from jaxlift.rules.rule import NAMED as NAMED
from jaxlift.rules.rule import Rule as Rule
from jaxlift.rules.rule import as_rule as as_rule
