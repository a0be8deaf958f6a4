"""Ray-distributed hyperparameter search for Residual Attention Networks (Wang et al., CVPR 2017)."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("tune_rescon")
