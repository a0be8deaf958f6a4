"""Convolutions of few channels, which a library's kernel gets wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from tune_rescon.models.network import conv

pytestmark = pytest.mark.torch

#: In a process of its own: the library's kernel writes beyond its memory, which ends the process or not.
BACKWARD = """
import sys, torch
from tune_rescon.models.network import conv
torch.set_num_threads(1)
channels, side, batch = map(int, sys.argv[1:])
layer = conv(channels, 2 * channels, 1, 2).to(memory_format=torch.channels_last)
x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
for _ in range(3):
    layer(x).square().sum().backward()
"""


@pytest.mark.parametrize("channels", [4, 8, 12, 24, 32])
@pytest.mark.parametrize(("side", "stride"), [(8, 2), (9, 2), (7, 3)])
def test_a_strided_projection_matches_torch(channels: int, side: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = conv(channels, 2 * channels, 1, stride)
    theirs = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x_BCHW = torch.randn(2, channels, side, side, requires_grad=True)
    (wanted,) = torch.autograd.grad(theirs(x_BCHW).square().sum(), x_BCHW)
    (found,) = torch.autograd.grad(ours(x_BCHW).square().sum(), x_BCHW)
    torch.testing.assert_close(ours(x_BCHW), theirs(x_BCHW))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("channels", "side", "batch"), [(4, 48, 64), (8, 48, 64), (12, 96, 64)])
def test_a_backward_pass_does_not_crash_the_process(channels: int, side: int, batch: int) -> None:
    command = [sys.executable, "-c", BACKWARD, *map(str, (channels, side, batch))]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_most_projections_are_plain_conv2d() -> None:
    assert type(conv(64, 128, 1, 2)) is nn.Conv2d
    assert type(conv(8, 16)) is nn.Conv2d
