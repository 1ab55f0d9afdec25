"""`wb.verify_model`: checks a user's own copy of gpt-oss, part by part, and continues where it was interrupted."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checks import check_callable, check_choice, check_flag, check_texts, check_type, require
from workbench.errors import ArgumentError, ModelNotFound
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.checkpoints.formats import FORMATS, POCKET
from workbench.model.checkpoints.hub import snapshot_folder
from workbench.model.kernels import native
from workbench.model.model import Model
from workbench.model.threads import SMALL, one_thread
from workbench.model.verified import remember
from workbench.model_check import whole_model as whole
from workbench.model_check.ends import EMBED, UNEMBED, check_ends, check_table, logits_of
from workbench.model_check.files import (
    check_content,
    check_headers,
    damaged_if_others_match,
    expected_digests,
    files_of_model,
    weight_files,
)
from workbench.model_check.layers import check_layer
from workbench.model_check.line import PARTS, Line
from workbench.model_check.own_layer import run_layer, widened
from workbench.model_check.raw_tensors import open_raw
from workbench.model_check.reference_config import reference_config
from workbench.model_check.reference_layer import surroundings
from workbench.model_check.report import ModelReport
from workbench.model_check.saved_progress import SavedProgress
from workbench.paths import expanded
from workbench.progress import progress_bar
from workbench.recording.doctor import DISTRIBUTION, cpu_name
from workbench.untrusted import file_names, is_folder

LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "gguf", "openai-harmony")


def verify_model(
    where: str | os.PathLike[str] = "pocket",
    *,
    parts: Sequence[str] = tuple(PARTS),
    restart: bool = False,
    on_line: Callable[[Line], Any] | None = None,
) -> ModelReport:
    """A report on whether workbench reads and runs this copy of gpt-oss right. Nothing is downloaded.

    Every tensor in memory is compared with a second, independent reading of the files, and every step of every layer
    with transformers' own GptOssDecoderLayer, in float32 on 300 tokens. The model is never held in bf16: one layer and
    one expert at a time. An interrupted check continues where it was when it is called again.

    Args:
        where: "pocket", a folder, a .gguf file, or a name in the local Hugging Face cache, as for `wb.Model`.
        parts: what is checked: "files", "weights" and "layers" (together), "identities", "numerics".
        restart: begin anew instead of continuing an interrupted check.
        on_line: called with each Line as soon as it is there; without it, a progress bar is shown.

    Returns:
        A ModelReport: `ok`, `failed`, `lines`, `to_json()`, `save_page(path)`.

    Raises:
        ModelNotFound, CheckpointError: there is no model that workbench can load.
        MissingDependency: "weights" and "layers" need the extra "interop" (transformers; for a .gguf also gguf).

    >>> report = wb.verify_model("pocket", parts=["weights", "layers"])
    >>> report.ok, len(report.select("layers")) > 200
    (True, True)
    """
    chosen = [check_choice("parts", part, list(PARTS)) for part in check_texts("parts", parts)]
    if not chosen:
        raise ArgumentError(f"parts is empty; name some of {', '.join(PARTS)}")
    check_flag("restart", restart)
    if on_line is not None:
        check_callable("on_line", on_line)
    check_type("where", where, str | os.PathLike)  # type: ignore[arg-type]
    if {"weights", "layers"} & {*chosen}:
        require("transformers", extra="interop")
    model = Model(where)
    check = _Check(where, model, restart)
    with torch.no_grad(), one_thread(model.config.n_params < SMALL):
        lines = _collect(check, chosen, on_line)
    report = ModelReport(check.identity(), machine(), date.today().isoformat(), lines)
    check.progress.remove()
    if {*chosen} == {*PARTS}:
        result = {"date": report.date, "ok": report.ok, "workbench": report.machine["workbench"]}
        remember(model.digest, model.folder or check.folder, check.files, result)
    return report


def _collect(check: "_Check", parts: Sequence[str], on_line: Callable[[Line], Any] | None) -> list[Line]:
    lines: list[Line] = []
    units = list(check.units(parts))
    with progress_bar(desc="verify_model", total=len(units), disable=None if on_line is None else True) as bar:
        for name, run in units:
            bar.set_postfix_str(name, refresh=False)
            if name not in check.progress.done:
                check.progress.add(name, run())
            for line in check.progress.done[name]:
                lines.append(line)
                if on_line:
                    on_line(line)
            bar.update()
    return [line for line in lines if line.part in parts]


class _Check:
    """One model, and the units of work that its check consists of."""

    def __init__(self, where: str | os.PathLike[str], model: Model, restart: bool):
        self.where, self.model, self.layout = where, model, model.format
        self.path = located(where, model.format)
        self.folder, self.weight_files = weight_files(self.path, self.layout)
        self.files = files_of_model(self.folder, self.weight_files)
        c = model.config
        self.dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        self.ids = whole.token_ids(model)
        self.progress = SavedProgress(
            [str(self.path.resolve()), self._state_of_files(), machine(), self.ids, model.digest]
        )
        if restart:
            self.progress.remove()
            self.progress.done.clear()
        self.weights = widened(model.weights, self.dtype)
        self.rows = (c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.n_kv_heads * c.d_head)
        self._resid: tuple[int, Tensor] | None = None  # the next layer, and its input

    def _state_of_files(self) -> list[tuple[str, int, int]]:
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]

    def identity(self) -> dict[str, Any]:
        """The model entry of the report."""
        return {"name": self.model.name, "format": self.layout, "weights_digest": self.model.digest}

    def units(self, parts: Sequence[str]) -> Iterator[tuple[str, Callable[[], list[Line]]]]:
        """The names of the units of work, and functions that do them."""
        if "files" in parts:
            yield "files", self.check_files
        if "weights" in parts or "layers" in parts:
            yield EMBED, lambda: [check_table(self.model.weights, self.raw, EMBED)]
            for layer in range(self.model.config.n_layers):
                yield f"layer {layer}", lambda layer=layer: self.check_layer(layer)
            yield "the last norm and logits", self.check_ends
            yield UNEMBED, lambda: [check_table(self.model.weights, self.raw, UNEMBED)]
        if "identities" in parts:
            yield "identities", self.check_identities
        if "numerics" in parts:
            for setting in whole.settings(self.model):
                name = f"{setting['dtype']}, memory={setting['memory']!r}"
                yield name, lambda s=setting: [whole.check_setting(self.where, s, self.ids, self.reference_logits)]

    @property
    def raw(self):
        if not hasattr(self, "_raw"):
            self._raw = open_raw(self.path, self.layout, self.rows)
            self._config = reference_config(self.path, self.layout)
            self._around = surroundings(self._config, len(self.ids), self.dtype)
        return self._raw

    def check_files(self) -> list[Line]:
        known = expected_digests(self.folder, self.files, str(self.where))
        lines = damaged_if_others_match([check_content(file, known.get(file)) for file in self.files])
        if self.layout != "gguf":  # the loader has checked that the tensors of a .gguf fill it without a gap
            lines += check_headers(self.folder, self.weight_files)
        return lines + whole.check_tokenizer(self.model)

    def check_layer(self, layer: int) -> list[Line]:
        raw, resid = self.raw, self.resid_before(layer)
        lines, resid = check_layer(self.model.config, self.weights, resid, layer, self._config, raw, self._around)
        self._resid = layer + 1, resid
        return lines

    def resid_before(self, layer: int) -> Tensor:
        """The input of a layer (batch pos d_model); layers that were checked before run without being checked."""
        if self._resid is None or self._resid[0] > layer:
            self._resid = 0, self.model.weights.embed[torch.tensor([self.ids])].to(self.dtype)
        done, resid = self._resid
        for each in range(done, layer):
            resid = run_layer(self.model.config, self.weights, resid, each, everything=False)["hook_resid_post"]
        self._resid = layer, resid
        return resid

    def check_ends(self) -> list[Line]:
        raw, resid = self.raw, self.resid_before(self.model.config.n_layers)
        return check_ends(self.model.config, self.weights, resid[0, -whole.LAST :], self._config, raw)

    def check_identities(self) -> list[Line]:
        lines, trace = whole.check_identities(self.model, self.ids)
        return lines + whole.check_language(self.model, trace)

    @property
    def reference_logits(self) -> Tensor:
        """Log-probabilities at the last positions in float32, one layer at a time."""
        if not hasattr(self, "_reference"):
            resid = self.resid_before(self.model.config.n_layers)[0, -whole.LAST :]
            logits = logits_of(self.model.config, self.weights, resid)
            self._reference = torch.log_softmax(logits.float(), -1)
        return self._reference


def located(where: str | os.PathLike[str], layout: str) -> Path:
    """The folder or the .gguf file from which `wb.Model(where)` was loaded."""
    path = embedded_folder() if where == POCKET else expanded(where)
    if not is_folder(path) and not path.is_file():
        path = snapshot_folder(str(where))
    if path.is_file():
        return path
    names = file_names(path, ModelNotFound)
    for find, _ in FORMATS:
        if found := find(path, names):
            return found
    raise ModelNotFound(f"there is no model at {path}")


def machine() -> dict[str, Any]:
    """The processor, the kernels and the versions of this machine."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "system": platform.platform(),
        "cpu": cpu_name(),
        "kernels": native.status(),
        "workbench": metadata.version(DISTRIBUTION),
        "python": platform.python_version(),
        **versions,
    }
