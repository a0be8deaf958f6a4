"""Search on the embedded handwritten digits, look at the trials, and load the best network.

    python examples/quickstart.py

It needs no download. Run it again to add two trials.
"""

from __future__ import annotations

from pathlib import Path

import tune_rescon as tr
from tune_rescon.tuning import RunOptions, SearchLocation, StudyResult

NAME = "quickstart"


def search(storage: Path, *, trials: int = 2, epochs: int = 3) -> StudyResult:
    """Begin the search, or add ``trials`` to it if it has been begun."""
    begun = (storage / NAME / "space.yaml").is_file()
    if begun:
        # A resumed search keeps its own space. The number of trials is the total.
        before = tr.read_search(SearchLocation(storage=storage), NAME)
        space = tr.load_space(storage / NAME / "space.yaml", [f"trials={len(before.trials) + trials}"])
    else:
        settings = [f"trials={trials}", f"fidelity.max={epochs}", "resources_per_trial=auto"]
        space = tr.load_space("digits", settings)
    with tr.progress_shown(print):
        return tr.run_search(space, RunOptions(name=NAME, resume=begun, storage=storage))


def show(result: StudyResult) -> None:
    """Print the search in a line, and its trials as a table, best first."""
    print(result)
    table = result.dataframe().sort_values("value", ascending=False)
    print(table[["state", "epochs", "value", "depth", "learning_rate"]])


def main() -> None:
    """Search, show the result, and load the best network."""
    result = search(Path("runs"))
    show(result)
    assert result.best is not None, "every trial failed"
    checkpoint = result.kept_checkpoint(result.best)
    assert checkpoint is not None, "the network of the best trial is missing"
    network, about = tr.load_trained(checkpoint)
    parameters = sum(weight.numel() for weight in network.parameters())
    print(f"{parameters / 1e6:.2f} million parameters, classes {', '.join(about.class_names)}")


# Ray imports this file in its worker processes, which must not search as well.
if __name__ == "__main__":
    main()
