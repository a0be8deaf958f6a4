"""Ray-distributed hyperparameter search for Residual Attention Networks (Wang et al., CVPR 2017)."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("tune_rescon")
except PackageNotFoundError:  # run from source without an installation, as `make gpu-check` may do
    __version__ = "0+source"
