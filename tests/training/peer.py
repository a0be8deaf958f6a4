"""A process that trains trials together with another one."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.data.batch_sources import Shard
from tune_rescon.models import build_described
from tune_rescon.training import EpochReport, TrialProcess, fit, train_trial
from tune_rescon.training.cuda_graphs import CaptureError, GraphCapture, Outputs
from tune_rescon.training.distributed import ProcessGroup
from tune_rescon.training.module import TrialModule


@contextmanager
def joined(rendezvous: Path, rank: int, count: int) -> Iterator[ProcessGroup]:
    """Join the process group by a rendezvous file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = datetime.timedelta(seconds=200)
    dist.init_process_group(
        "gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=count, timeout=timeout
    )
    try:
        yield ProcessGroup(shard=Shard(rank=rank, world_size=count))
    finally:
        dist.destroy_process_group()


def train_as_rank(
    dataset: ImageDataset,
    rank: int,
    count: int,
    rendezvous: Path,
    config: TrialConfig,
    folder: Path,
    options: dict[str, Any],
) -> list[EpochReport] | str:
    """Train ``config`` as one of ``count`` ranks; return the reports or the error.

    Besides those of ``train_trial``, the options are: ``stop_after``, the epoch after which rank 0 is
    interrupted; ``memory``, a rank and the number of images that fit its memory; ``failing_rank``, the rank
    whose forward pass raises; ``rank_without_network``, the rank that cannot build the network;
    ``rank_without_graphs``, the rank that cannot capture a step, while the other one can.
    """
    reports: list[EpochReport] = []
    stop_after, memory = options.pop("stop_after", None), options.pop("memory", None)
    failing_rank = options.pop("failing_rank", None)
    rank_without_network = options.pop("rank_without_network", None)
    rank_without_graphs = options.pop("rank_without_graphs", None)

    def on_epoch(report: EpochReport) -> None:
        reports.append(report)
        if report.epoch == stop_after and rank == 0:
            raise InterruptedError

    original = TrialModule.logits

    def logits(self: TrialModule, network: torch.nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
        if memory is not None and rank == memory[0] and len(images_BCHW) > memory[1]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if failing_rank == rank:
            raise ValueError("broken on purpose")
        return original(self, network, images_BCHW)

    def build(spec: Any, *, pretrained: bool) -> torch.nn.Module:
        if rank_without_network == rank:
            raise ValueError("never built")
        return build_described(spec, pretrained=pretrained)

    def capture(run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        if rank_without_graphs == rank:
            raise CaptureError("not permitted")
        outputs = run()
        return lambda: None, outputs  # right for the first step, and no other one is replayed

    def choose(*_: object, **__: object) -> GraphCapture | None:
        return None if rank_without_graphs is None else capture

    arguments: dict[str, Any] = {"epochs": 2, "seed": 0} | options
    try:
        with (
            joined(rendezvous, rank, count) as peers,
            patch.object(TrialModule, "logits", logits),
            patch.object(fit, "build_described", build),
            patch.object(fit, "choose_graph_capture", choose),
        ):
            train_trial(
                config,
                dataset,
                checkpoint_dir=folder / f"{rendezvous.name}-of-{rank}",
                on_epoch=on_epoch,
                process=TrialProcess(device="cpu", threads=1, peers=peers),
                **arguments,
            )
    except Exception as error:
        return f"{type(error).__name__} after {len(reports)}"
    return reports


def train_until_closed(rank: int, jobs: Connection, root: Path) -> None:
    """Receive trials, train them on 80 digits and send the reports or errors, until the pipe is closed."""
    digits = open_dataset(DatasetConfig(name="digits", limit=80), data_root=root, cache_root=root)
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            return
        jobs.send(train_as_rank(digits, rank, *job))
