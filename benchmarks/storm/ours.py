"""A driver of this package, as ``python -m tune_rescon.search`` is one, with cheap trials."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from storm.trainables import train_ours
from tune_rescon.errors import UserError
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, SearchFolder, run_search

__all__ = ["NAME", "main"]

NAME = "storm"


def main() -> int:
    """Begin the search, or resume it if its folder holds one; the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    folder = SearchFolder(storage=arguments.storage, name=NAME)
    resume = folder.space_yaml.is_file()
    overrides = [f"budget.trials={arguments.trials}", f"sampler.seed={arguments.seed}"]
    options = RunOptions(
        name=NAME,
        storage=arguments.storage,
        cache_root=arguments.cache,
        data_root=arguments.cache,
        resume=resume,
    )
    try:
        from tune_rescon.reporting import SearchPresentation

        space = load_space(str(folder.space_yaml)) if resume else load_space("digits", overrides)
        result = run_search(space, options, trainable=train_ours, presentation=SearchPresentation())
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if result.interrupted:
        return 130
    return 0 if result.failure is None and result.best is not None else 1


if __name__ == "__main__":
    sys.exit(main())
