"""Regulatory genomics: from a genome and regions of it to scores that know their place, tracks and variants.

What it needs beside JAX and NumPy is the extra ``jaxlift[genomics]``, and is imported when it is first used.
"""

from jaxlift.genomics import targets as targets
from jaxlift.genomics._ensemble import Ensemble as Ensemble
from jaxlift.genomics._ensemble import ensemble as ensemble
from jaxlift.genomics._export import Exported as Exported
from jaxlift.genomics._export import export as export
from jaxlift.genomics._matched import MatchedRegions as MatchedRegions
from jaxlift.genomics._regions import Regions as Regions
from jaxlift.genomics._regions import read_regions as read_regions
from jaxlift.genomics._variants import VariantSummary as VariantSummary
from jaxlift.genomics._variants import variants as variants
from jaxlift.genomics._variants import variants_table as variants_table
from jaxlift.genomics._windows import Windows as Windows
from jaxlift.genomics.experiments import ablate as ablate
from jaxlift.genomics.experiments import marginalize as marginalize
from jaxlift.genomics.experiments import saturation as saturation
from jaxlift.genomics.targets import difference as difference
from jaxlift.genomics.targets import log_counts as log_counts
from jaxlift.genomics.targets import log_mean as log_mean
from jaxlift.genomics.targets import mask as mask
from jaxlift.genomics.targets import named as named
from jaxlift.genomics.targets import profile as profile
from jaxlift.genomics.targets import weighted as weighted
