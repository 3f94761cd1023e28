"""How good an attribution is. Every metric takes scores, or attribution functions, of any method.

All of them take a batch and return a number (or a curve) for each example, and can be jitted and vmapped. `fun` is a
batched model, `(N, ...) -> (N, K)` or `(N,)`, and `target` says which of its outputs is meant, as for
`jaxlift.attribute`: None if there is one, an int, ints `(N,)`, weights `(K,)` or `(N, K)`, or a function of the
outputs. The input `x` is an array `(N, ...)` or a pytree of such arrays, and scores have its structure.

Scores that are NaN have no order: the metrics of such an example are NaN.
"""

from jaxlift.metrics._curves import area as area
from jaxlift.metrics._curves import deletion as deletion
from jaxlift.metrics._curves import insertion as insertion
from jaxlift.metrics._curves import log_odds_change as log_odds_change
from jaxlift.metrics._curves import road as road
from jaxlift.metrics._maps import complexity as complexity
from jaxlift.metrics._maps import complexity_rise as complexity_rise
from jaxlift.metrics._maps import pointing_game as pointing_game
from jaxlift.metrics._maps import rank_agreement as rank_agreement
from jaxlift.metrics._maps import relevance_mass as relevance_mass
from jaxlift.metrics._maps import relevance_rank as relevance_rank
from jaxlift.metrics._maps import sparseness as sparseness
from jaxlift.metrics._perturbations import infidelity as infidelity
from jaxlift.metrics._perturbations import noisy_baseline as noisy_baseline
from jaxlift.metrics._perturbations import sensitivity as sensitivity
from jaxlift.metrics._perturbations import sensitivity_n as sensitivity_n
from jaxlift.metrics._perturbations import square_removal as square_removal
from jaxlift.metrics._randomisation import layers_of as layers_of
from jaxlift.metrics._randomisation import logit_randomisation as logit_randomisation
from jaxlift.metrics._randomisation import parameter_randomisation as parameter_randomisation
from jaxlift.metrics._randomisation import shuffled as shuffled
