"""Ray-distributed hyperparameter search for Residual Attention Networks (Wang et al., CVPR 2017).

::

    import tune_rescon as tr

    space = tr.load_space("digits")             # or the path of a space file
    with tr.progress_shown(print):              # without it, the messages are log records of level INFO
        result = tr.run_search(space, options)  # options: tune_rescon.tuning.RunOptions
    result = tr.read_search(location, "name")      # location: tune_rescon.tuning.SearchLocation
    network = tr.build_network("attention56", num_classes=10)
    network, about = tr.load_trained("best.ckpt")
    tr.train_trial(config, dataset, epochs=3, seed=0, checkpoint_dir=None, on_epoch=print)    # without Ray

`examples/` has whole programs. Names are loaded on first use.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.command import progress_shown
    from tune_rescon.models import build_network
    from tune_rescon.spaces import load_space
    from tune_rescon.training import load_trained, train_trial
    from tune_rescon.tuning import SearchCallback, read_search, run_search
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)

try:
    __version__ = version("tune_rescon")
except PackageNotFoundError:  # run from source without an installation, as `make gpu-check` may do
    __version__ = "0+source"
