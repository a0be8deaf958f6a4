"""Export a trained network to a file for other tools, and check that the file gives the same probabilities.

All formats except ``safetensors`` and ``timm`` include the normalisation and the softmax: the input is pixels
in 0..1, the output is probabilities. ``tensorflow`` is a SavedModel, which is a folder; its images are
B x H x W x C. ``timm`` is a folder that ``timm.create_model`` loads.

Only ``safetensors`` and ``timm`` are plain data. Loading an exported program (.pt2) can run code that is in
the file, so a .pt2 is trusted like code. :func:`export_model` loads the file that it has just written, and
nothing in this package loads another one.

Shape legend: B images of a batch, C channels, H = W the image size, K classes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tune_rescon.errors import ConfigError, StorageError, UserError, format_error, unknown_name_message
from tune_rescon.models import NetworkSpec
from tune_rescon.paths import check_output_file, check_output_folder
from tune_rescon.training import TrainedNetwork
from tune_rescon.training.weights import Classifier

__all__ = ["FORMATS", "check_export", "export_model", "timm_transform_message"]


#: Maximum relative difference between the probabilities of a file and of the network (the largest over its
#: inputs).
#:
#: A probability differs relatively by as much as its logit does absolutely, and float32 rounds a logit by
#: about 1e-6 of its size. So this suits logits up to 100. Those of a network whose batch norms have seen no
#: images can be thousands; after a few steps of training they are below 30.
TOLERANCE: Final = 1e-4

#: Numbers of images for tracing and for checking. They differ, because the file must accept any batch size.
_TRACED, _CHECKED = 2, 5

#: The suffix of a file in each format. A file may have another one, or none, but not that of another format.
SUFFIXES: Final[Mapping[str, str]] = {"safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}

#: The formats that are folders.
FOLDERS: Final = ("tensorflow", "timm")

Writer = Callable[[nn.Module, TrainedNetwork, Path], Callable[[Tensor], Tensor]]


def check_export(form: str, output: Path) -> None:
    """Check the format and the path of a file, before a network is loaded.

    Raises:
        ConfigError: The format does not exist, or the path has the suffix of another format.
        StorageError: The file or folder cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(unknown_name_message("format", form, sorted(FORMATS), where="--format"))
    if form in FOLDERS:
        check_output_folder(output, where="--output", is_new=True)
    else:
        check_output_file(output, where="--output")
    owner = next((name for name, suffix in SUFFIXES.items() if suffix == output.suffix.lower()), form)
    if owner != form:
        rule = f"must be a path for the format {form}"
        hint = f"{output.suffix} is the suffix of the format {owner}."
        raise ConfigError(format_error(rule, got=output, where="--output", hint=hint))


def export_model(network: nn.Module, about: TrainedNetwork, *, form: str, output: Path) -> float:
    """Write the network to a scratch file, load and compare it, and rename it to ``output``.

    Args:
        network: The trained network.
        about: Metadata of the network.
        form: Name of the format, a key of ``FORMATS``.
        output: Path of the file or folder.

    Returns:
        The largest relative difference of a probability.

    Raises:
        ConfigError: The format does not exist, its packages are not installed, it cannot hold a network from
            elsewhere, or the path has the suffix of another format.
        StorageError: The file cannot be written, or its probabilities differ from the network's by more than
            ``TOLERANCE``.
    """
    check_export(form, output)
    classifier = Classifier(network, about).eval()
    scratch = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        # Before the export, which can take a minute.
        scratch.touch()
        scratch.unlink()
        loaded = FORMATS[form](classifier, about, scratch)
        difference = _difference(classifier, loaded, about)
        # With `difference > TOLERANCE`, a NaN would pass the check.
        if not difference <= TOLERANCE:
            rule = f"an exported file must give the network's probabilities within {TOLERANCE:g}"
            raise StorageError(format_error(rule, got=f"a difference of {difference:.2g}", where=str(output)))
        scratch.replace(output)
    except ImportError as error:
        hint = f"pip install 'tune_rescon[{form}]'"
        rule = f"the format {form} needs its packages"
        raise ConfigError(format_error(rule, got=str(error), where="--format", hint=hint)) from error
    except OSError as error:
        rule = "must be a file that can be written"
        raise StorageError(
            format_error(rule, got=f"{output} ({error.strerror or error})", where="--output")
        ) from error
    except Exception as error:
        # torch's exporters raise many kinds of errors for a user's own network, and none for our networks.
        if isinstance(error, UserError) or isinstance(about.spec, NetworkSpec):
            raise
        rule = f"torch must be able to export the network {about.spec.network} as {form}"
        got = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        hint = "The format safetensors holds every network."
        raise ConfigError(format_error(rule, got=got, where="--format", hint=hint)) from error
    finally:
        shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)
    return difference


def _difference(classifier: nn.Module, loaded: Callable[[Tensor], Tensor], about: TrainedNetwork) -> float:
    pixels_BCHW = _example(about, _CHECKED)
    with torch.inference_mode():
        wanted_BK, got_BK = classifier(pixels_BCHW), loaded(pixels_BCHW)
    return float(((wanted_BK - got_BK).abs() / wanted_BK.abs().clamp_min(1e-6)).max())


def _example(about: TrainedNetwork, images: int) -> Tensor:
    side = about.spec.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.rand(images, len(about.mean), side, side, generator=generator)


def _facts(about: TrainedNetwork) -> dict[str, str]:
    """Return the metadata that a file stores beside the network: JSON texts by name."""
    return {
        "class_names": json.dumps(about.class_names),
        "image_size": json.dumps(about.spec.image_size),
        "preprocessing": json.dumps(about.preprocessing.to_dict()),
        "tune_rescon": json.dumps(about.to_dict()),
    }


def _safetensors(classifier: nn.Module, about: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
    from safetensors.torch import load_file

    from tune_rescon.models import build_described

    _write_weights(classifier, path, _facts(about))
    again = build_described(about.spec)
    again.load_state_dict(load_file(path))
    return Classifier(again.eval(), about).eval()


def _write_weights(classifier: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save

    network: Any = classifier.network
    # Copies, because safetensors refuses tensors that share memory, as those of a layer with two names do.
    weights = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    # Written here, because a full disk is no OSError of safetensors.
    path.write_bytes(save(weights, metadata=dict(metadata)))


def _torch_export(classifier: nn.Module, about: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
    program = _program(classifier, about)
    extra: dict[str, Any] = {f"{name}.json": text for name, text in _facts(about).items()}
    data = io.BytesIO()
    torch.export.save(program, data, extra_files=extra)
    # Written here, because a full disk ends the process if torch writes the file.
    path.write_bytes(data.getvalue())
    with path.open("rb") as file:
        loaded: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return loaded


def _saved_model(classifier: nn.Module, about: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
    program = _program(classifier, about)
    # Imported here because most users do not have TensorFlow, and because of a conflict: torch has by now
    # loaded Triton with its LLVM. Loading it after the LLVM of TensorFlow (2.21) would kill the process.
    from tune_rescon.inference.saved_model import load_saved_model, write_saved_model

    write_saved_model(program, _example(about, _TRACED), _facts(about), path)
    return load_saved_model(path)


def _program(classifier: nn.Module, about: TrainedNetwork) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(classifier, (_example(about, _TRACED),), dynamic_shapes=({0: batch},))


def _onnx(classifier: nn.Module, about: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    exported = torch.onnx.export(
        classifier,
        (_example(about, _TRACED),),
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert exported is not None
    model = exported.model_proto
    onnx.helper.set_model_props(model, _facts(about))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels_BCHW: Tensor) -> Tensor:
        (probabilities_BK,) = session.run(None, {"pixels": pixels_BCHW.numpy()})
        return torch.from_numpy(probabilities_BK)

    return run


def _timm(classifier: nn.Module, about: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
    """Write a folder for timm, and return the network and the configuration that timm has loaded from it."""
    import timm

    from tune_rescon.timm_models import data_config

    architecture, arguments = _timm_architecture(about)
    config = {
        "architecture": architecture,
        "num_classes": about.spec.classes,
        "model_args": arguments,
        "pretrained_cfg": data_config(about.preprocessing, about.spec, about.class_names),
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_weights(classifier, path / "model.safetensors", {"format": "pt"})
    loaded: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    mean_C11, std_C11 = (torch.tensor(loaded.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))

    def run(pixels_BCHW: Tensor) -> Tensor:
        probabilities_BK: Tensor = loaded((pixels_BCHW - mean_C11) / std_C11).softmax(1)
        return probabilities_BK

    return run


def _timm_architecture(about: TrainedNetwork) -> tuple[str, dict[str, Any]]:
    """Return the name in timm's registry of a network, and the arguments that build it.

    Raises:
        ConfigError: the network is a user's own, which timm cannot build.
    """
    from tune_rescon.models.external import timm_arguments
    from tune_rescon.timm_models import EXPORTED

    spec = about.spec
    if isinstance(spec, NetworkSpec):
        return EXPORTED, {
            "spec": spec.to_dict(),
            "preprocessing": about.preprocessing.to_dict(),
            "num_classes": spec.classes,
            "in_chans": spec.in_channels,
        }
    if spec.timm_name is None:
        rule = "the format timm is for networks that timm can build"
        hint = "Every other format can hold it."
        raise ConfigError(format_error(rule, got=spec.network, where="--format", hint=hint))
    return spec.timm_name.partition(".")[0], timm_arguments(spec)


FORMATS: Final[Mapping[str, Writer]] = {
    "safetensors": _safetensors,
    "torch-export": _torch_export,
    "onnx": _onnx,
    "tensorflow": _saved_model,
    "timm": _timm,
}


def timm_transform_message(about: TrainedNetwork) -> str | None:
    """Return how timm's own transform differs from the preprocessing of a network, or None if it does not.

    timm's configuration can describe neither two steps of scaling, nor black borders, nor deep pictures.
    """
    how = about.preprocessing
    differences = [
        name
        for name, differs in (
            ("scales in one step", how.stored_side != how.image_size or how.resize != "squash"),
            ("pads with the mean colour instead of black", how.resize == "pad"),
            ("does not scale pictures of more than 8 bits", how.levels is not None),
        )
        if differs
    ]
    if not differences:
        return None
    own = "`network.preprocess(picture)`" if isinstance(about.spec, NetworkSpec) else "`tune_rescon.predict`"
    return f"timm's own transform {', '.join(differences)}; the pixels of validation are those of {own}"
