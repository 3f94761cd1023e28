"""DeepLIFT as a JAX function transformation.

`attribute` explains a batched model, as `jax.grad` differentiates a function; `vjp` and `lift` are what it is made of.
`score` explains a whole data set.
"""

from jaxlift import metrics as metrics
from jaxlift._attribute import attribute as attribute
from jaxlift._check import Report as Report
from jaxlift._check import check as check
from jaxlift._core.table import MissingRuleError as MissingRuleError
from jaxlift._layers import above as above
from jaxlift._layers import below as below
from jaxlift._lift import lift as lift
from jaxlift._lift import vjp as vjp
from jaxlift._memory import within_memory as within_memory
from jaxlift._register import register as register
from jaxlift._register import unregister as unregister
from jaxlift.methods.grad_cam import grad_cam as grad_cam
from jaxlift.methods.grad_cam import guided_grad_cam as guided_grad_cam
from jaxlift.methods.integrated_gradients import integrated_gradients as integrated_gradients
from jaxlift.methods.occlusion import mutagenesis as mutagenesis
from jaxlift.methods.occlusion import occlusion as occlusion
from jaxlift.methods.shapley import shapley as shapley
from jaxlift.rules import AlphaBetaLRP as AlphaBetaLRP
from jaxlift.rules import AttnLRP as AttnLRP
from jaxlift.rules import BilinearMap as BilinearMap
from jaxlift.rules import Deconvnet as Deconvnet
from jaxlift.rules import Elementwise as Elementwise
from jaxlift.rules import EpsilonLRP as EpsilonLRP
from jaxlift.rules import GammaLRP as GammaLRP
from jaxlift.rules import Gradient as Gradient
from jaxlift.rules import GuidedBackprop as GuidedBackprop
from jaxlift.rules import LinearMap as LinearMap
from jaxlift.rules import Maximum as Maximum
from jaxlift.rules import OriginalMaxPooling as OriginalMaxPooling
from jaxlift.rules import PerLayer as PerLayer
from jaxlift.rules import Place as Place
from jaxlift.rules import PointwiseFunction as PointwiseFunction
from jaxlift.rules import Rescale as Rescale
from jaxlift.rules import RevealCancel as RevealCancel
from jaxlift.rules import Rule as Rule
from jaxlift.rules import Softmax as Softmax
from jaxlift.rules import ZPlusLRP as ZPlusLRP
from jaxlift.scoring import score as score
from jaxlift.wrappers import mean_over_references as mean_over_references
from jaxlift.wrappers import smooth as smooth
from jaxlift.wrappers import sum_channels as sum_channels
