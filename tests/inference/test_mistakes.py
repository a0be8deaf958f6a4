"""The page of a network's mistakes: its counts match validation, and it shows the most confident ones."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from tests.own_networks import SMALL_SEARCH
from tests.without_ray import search_without_ray
from tune_rescon.data import open_dataset
from tune_rescon.errors import DataError, NetworkError
from tune_rescon.inference import (
    Mistakes,
    find_mistakes,
    mistakes_document,
    mistakes_lines,
    write_mistakes,
)
from tune_rescon.inference.mistakes import MAX_CLASSES, MAX_MATRIX, Mistake
from tune_rescon.inference.model import predictions
from tune_rescon.inference.pictures import Pictures
from tune_rescon.report import main
from tune_rescon.reporting import SearchPresentation, mistakes_page, write_report
from tune_rescon.spaces import load_space
from tune_rescon.training import load_trained
from tune_rescon.training.device import DeviceConfig, resolve_device
from tune_rescon.tuning import (
    RunOptions,
    SearchFolder,
    SearchState,
    StudyResult,
    TrialRecord,
    run_search,
)


def mistakes(confusion: list[list[int]], *names: str, worst: tuple[Mistake, ...] = ()) -> Mistakes:
    return Mistakes(class_names=names, confusion_KK=np.array(confusion), worst=worst)


def page_of(mistakes: Mistakes, *, title: str = "t") -> str:
    return mistakes_page(mistakes_document(mistakes, split_name="test"), title=title)


def test_mistakes_and_confused_pairs_are_counted() -> None:
    counted = mistakes([[8, 2, 0], [0, 9, 1], [4, 0, 6]], "ant", "bee", "cat")
    assert (counted.images, counted.wrong) == (30, 7)
    assert counted.confused_pairs() == [("cat", "ant", 4, 10), ("ant", "bee", 2, 10), ("bee", "cat", 1, 10)]
    assert mistakes_lines(counted, split_name="test") == [
        "23 of 30 test images are classified correctly (76.67%)",
        "4 of 10 images of cat are predicted as ant",
        "2 of 10 images of ant are predicted as bee",
        "1 of 10 images of bee are predicted as cat",
    ]


def test_classes_with_images_are_listed_worst_first() -> None:
    four_classes = mistakes(
        [[8, 2, 0, 0], [0, 9, 1, 0], [4, 0, 6, 0], [0, 0, 0, 0]], "ant", "bee", "cat", "dog"
    )
    assert [(score.name, score.images, score.correct) for score in four_classes.by_class()] == [
        ("cat", 10, 6),
        ("ant", 10, 8),
        ("bee", 10, 9),
    ]
    labels, predicted = zip(
        *((i, j) for i in range(3) for j in range(3) for _ in range(four_classes.confusion_KK[i, j])),
        strict=True,
    )
    expected = f1_score(labels, predicted, average=None)
    assert [score.f1 for score in four_classes.by_class()] == pytest.approx([expected[k] for k in (2, 0, 1)])
    page = page_of(four_classes)
    assert '<tr><td class="left">cat</td><td>10</td><td>6</td><td>60.0%</td><td>0.706</td></tr>' in page


def test_only_the_worst_of_many_classes_are_listed() -> None:
    confusion_KK = np.eye(1000, dtype=int)
    confusion_KK[700, 0] = 3
    document = mistakes_document(mistakes(confusion_KK.tolist(), *map(str, range(1000))), split_name="test")
    assert len(document["classes"]) == MAX_CLASSES
    assert document["classes"][0] == ["700", "4", "1", "25.0%", "0.400"]


def test_class_names_are_escaped_in_the_page() -> None:
    image = np.zeros((8, 8, 1), dtype=np.uint8)
    worst = Mistake(image_HWC=image, label="<script>", predicted="a&b", probability=0.987)
    page = page_of(mistakes([[1, 1], [0, 2]], "<script>", "a&b", worst=(worst,)), title="<b>")
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 5
    assert "&lt;script&gt;, predicted as <b>a&amp;b</b> (98.7 %)" in page
    assert page.count('src="data:image/png;base64,') == 1


def test_a_too_large_confusion_matrix_is_left_out() -> None:
    many = MAX_MATRIX + 1
    large = mistakes(np.eye(many, dtype=int).tolist(), *map(str, range(many)))
    page = page_of(large)
    assert "Confusion matrix" not in page
    assert f"{many} of {many} test images are classified correctly (100.00%)" in page
    small = page_of(mistakes([[1, 0], [0, 1]], "a_b", "b"))
    assert '<th scope="col">a_b</th>' in small
    assert "Confusion matrix" in small
    assert "Most confident mistakes" not in small


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def search_result(storage: Path) -> StudyResult:
    settings = [*SMALL_SEARCH, "trials=1", "fidelity.max=1", "dataset.limit=200"]
    options = RunOptions(name="s", storage=storage, cache_root=storage / "cache")
    with search_without_ray():
        return run_search(load_space("digits", settings), options)


@pytest.mark.torch
def test_counts_match_the_searchs_validation_accuracy(
    search_result: StudyResult,
    storage: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(storage / "cache"))
    assert search_result.best is not None
    file = tmp_path / "errors.html"
    assert main(["s", "--storage", str(storage), "--errors", str(file)]) == 0
    stdout = capsys.readouterr().out
    counts = re.match(r"(\d+) of (\d+) validation images are classified correctly", stdout)
    assert counts is not None
    assert int(counts[1]) / int(counts[2]) == pytest.approx(search_result.best.best_value, abs=1e-6)
    page = file.read_text()
    assert page.count("<figure>") == min(int(counts[2]) - int(counts[1]), 40)
    shares = [float(share) for share in re.findall(r"\(([\d.]+) %\)", page)]
    assert shares == sorted(shares, reverse=True)

    network, about = load_trained(str(search_result.kept_checkpoint(search_result.best)))
    other = dataclasses.replace(search_result.space.dataset, split_seed=1)
    dataset = open_dataset(other, data_root=tmp_path, cache_root=storage / "cache")
    with pytest.raises(DataError, match="images that have changed since"):
        find_mistakes(network, about, dataset, dataset.val, placement=resolve_device("cpu", precision="fp32"))

    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)
    dataset = open_dataset(search_result.space.dataset, data_root=tmp_path, cache_root=storage / "cache")
    with pytest.raises(NetworkError, match="must give probabilities, but got nan"):
        find_mistakes(network, about, dataset, dataset.val, placement=resolve_device("cpu", precision="fp32"))


@pytest.mark.torch
def test_activations_beyond_the_range_of_fp16_are_computed_in_fp32(
    search_result: StudyResult, storage: Path
) -> None:
    """In `report --errors` and in `predict`."""
    network, about = load_trained(str(search_result.kept_checkpoint(cast(TrialRecord, search_result.best))))
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    first.weight.data *= 1e6
    dataset = open_dataset(search_result.space.dataset, data_root=storage, cache_root=storage / "cache")
    half, plain = (DeviceConfig(device=torch.device("cpu"), precision=name) for name in ("fp16", "fp32"))
    in_fp16, in_fp32 = (
        find_mistakes(network, about, dataset, dataset.val, placement=device) for device in (half, plain)
    )
    assert (in_fp16.confusion_KK == in_fp32.confusion_KK).all()
    images_BHWC, _ = dataset.val.gather(np.arange(8))
    pictures = Pictures(paths=tuple(Path(str(n)) for n in range(8)), images_BHWC=images_BHWC)
    classes = [
        [
            prediction.best
            for prediction in predictions(network, about, [pictures], placement, top=1, mirrored=True)
        ]
        for placement in (half, plain)
    ]
    assert classes[0] == classes[1]


def test_errors_cannot_be_combined_with_other_report_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["s", "--errors", str(tmp_path / "e.html"), "--json"]) == 2
    assert "--errors takes a NAME alone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
def test_the_report_shows_mistakes_of_the_best_network_only(
    search_result: StudyResult, storage: Path, tmp_path: Path
) -> None:
    options = RunOptions(name="s", storage=storage, cache_root=storage / "cache")
    written = tmp_path / "mistakes.json"
    write_mistakes(search_result, written, options=options)
    document = json.loads(written.read_text())
    assert search_result.best is not None
    assert (document["trial"], document["epoch"]) == (
        search_result.best.number,
        search_result.best.value_epoch,
    )
    shown = min(document["wrong"], 24)
    assert len(document["worst"]) == shown > 0
    assert sum(map(sum, document["confusion"])) - document["wrong"] > 0

    file = search_result.folder / "mistakes.json"
    pages = {}
    for name, text in {
        "none": None,
        "own": written.read_text(),
        "another trial's": json.dumps(document | {"trial": 7}),
        "damaged": "{",
        "another file": "[]",
        "incomplete": json.dumps({key: document[key] for key in document if key != "pairs"}),
        "incomplete mistakes": json.dumps(document | {"worst": [{"label": "0"}]}),
        "other classes": json.dumps(document | {"class_names": ["0", "1"]}),
        "an earlier version's": json.dumps({key: document[key] for key in document if key != "classes"}),
    }.items():
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        write_report(search_result, tmp_path / "report.html")
        pages[name] = (tmp_path / "report.html").read_text()
    file.unlink()
    assert "Mistakes of the best network" in pages["own"]
    assert pages["own"].count("<figure>") == shown
    assert document["words"] in pages["own"]
    name, images, *_ = document["classes"][0]
    assert f'<td class="left">{name}</td><td>{images}</td>' in pages["own"]
    shown_by = [name for name, page in pages.items() if "<figure>" in page]
    assert shown_by == ["own", "an earlier version's"]


def test_only_a_finished_search_writes_its_mistakes(
    search_result: StudyResult, storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SearchFolder(storage=storage, name="s")
    written: list[Path] = []

    def write(result: StudyResult, path: Path) -> None:
        assert folder.report_html.is_file(), "a report without mistakes must be written first"
        written.append(path)
        raise DataError(f"no images for {result.name}")

    folder.report_html.unlink(missing_ok=True)
    presentation = SearchPresentation(write)
    interrupted = dataclasses.replace(search_result, state=SearchState.INTERRUPTED)
    assert presentation.conclude(interrupted, folder)[0] == folder.report_html
    assert written == []
    folder.report_html.unlink()
    assert presentation.conclude(search_result, folder)[0] == folder.report_html
    assert written == [folder.mistakes_json]
    assert "could not be added to the report" in caplog.text


@pytest.mark.torch
def test_images_beyond_the_time_limit_are_skipped_and_counted(
    search_result: StudyResult, storage: Path
) -> None:
    network, about = load_trained(str(search_result.kept_checkpoint(cast(TrialRecord, search_result.best))))
    many = dataclasses.replace(search_result.space.dataset, val_fraction=0.6)
    dataset = open_dataset(many, data_root=storage, cache_root=storage / "cache")
    about = dataclasses.replace(about, dataset=dataset.digest)
    cpu = resolve_device("cpu", precision="fp32")
    complete = find_mistakes(network, about, dataset, dataset.val, placement=cpu)
    partial = find_mistakes(network, about, dataset, dataset.val, placement=cpu, seconds=1e-9)
    assert (complete.images, complete.left_out) == (120, 0)
    assert (partial.images, partial.left_out) == (64, 56)
    assert (partial.confusion_KK <= complete.confusion_KK).all()
    images_NHWC, labels_N = dataset.val.gather(np.arange(len(dataset.val)))
    for mistake in partial.worst:
        alike = [n for n, image_HWC in enumerate(images_NHWC) if np.array_equal(image_HWC, mistake.image_HWC)]
        assert about.class_names.index(mistake.label) in labels_N[alike]
    assert mistakes_lines(partial, split_name="test")[0].endswith("%); 56 others were not evaluated")
