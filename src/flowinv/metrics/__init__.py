"""How good reconstructions and draws are: errors, perceptual distances, and distances between sets of images.

Metrics that judge one image give one value per image, (..., B) for draws (..., B, *shape) against the truth (B,
*shape), and refuse every other pair of shapes. Scores whose weights must be downloaded carry their published names
(``LPIPS``, ``frechet_inception_distance``, ``inception_score``); what can be computed without a network is named for what
it is, and its values are never to be compared with published ones.
"""

from ..summaries import density, entropy
from .digits import DigitClassifier, DigitDistance
from .errors import mean_squared_error, pooled_psnr, psnr, ssim, sum_squared_error
from .frechet import features_of, frechet_distance, frechet_of_statistics, statistics
from .inception import inception_type_score
from .named import distance_from_spec
from .pairs import Diversity, distance_to_truth, pairwise_diversity
from .perceptual import STLPIPS
from .published import LPIPS, WeightsUnavailable, frechet_inception_distance, inception_score
from .squeezenet import SqueezeNetFeatures

__all__ = [
    "LPIPS",
    "STLPIPS",
    "DigitClassifier",
    "DigitDistance",
    "Diversity",
    "SqueezeNetFeatures",
    "WeightsUnavailable",
    "density",
    "distance_from_spec",
    "distance_to_truth",
    "entropy",
    "features_of",
    "frechet_distance",
    "frechet_inception_distance",
    "frechet_of_statistics",
    "inception_score",
    "inception_type_score",
    "mean_squared_error",
    "pairwise_diversity",
    "pooled_psnr",
    "psnr",
    "ssim",
    "statistics",
    "sum_squared_error",
]
