"""`wb.verify_model`: checks a user's own copy of gpt-oss, part by part, and continues where it was interrupted."""

import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.checks import check_callable, check_choice, check_flag, check_texts, require
from workbench.errors import ArgumentError, ArgumentTypeError, BudgetError, MissingDependency, ModelNotFound
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.checkpoints.formats import FORMATS, POCKET
from workbench.model.checkpoints.hub import snapshot_folder
from workbench.model.kernels import native
from workbench.model.memory import allocation_errors
from workbench.model.model import Model
from workbench.model.threads import SMALL, one_thread
from workbench.model.verified import remember, states_of
from workbench.model_check import whole_model as whole
from workbench.model_check.config import check_config
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
from workbench.model_check.line import FAILS, PARTS, Line
from workbench.model_check.own_layer import run_layer, widened
from workbench.model_check.raw_tensors import open_raw
from workbench.model_check.reference_config import reference_config
from workbench.model_check.reference_layer import surroundings
from workbench.model_check.report import ModelReport
from workbench.model_check.saved_progress import SavedProgress
from workbench.paths import expanded
from workbench.progress import progress_bar
from workbench.recording.doctor import DISTRIBUTION, cpu_name
from workbench.text import brief, shown
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
        BudgetError: the memory ran out.
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
    if not isinstance(where, str | os.PathLike):
        raise ArgumentTypeError(f"where must be a name, a folder or a file, got {shown(where)}")
    if {"weights", "layers"} & {*chosen}:
        require("transformers", extra="interop")
    model = Model(where)
    check = _Check(where, model, restart)
    with torch.no_grad(), one_thread(model.config.n_params < SMALL):
        lines = _collect(check, chosen, on_line)
    report = ModelReport(check.identity(), machine(), date.today().isoformat(), lines)
    check.progress.forget([unit.name for unit in check.units(chosen)])
    if states_of(check.files) != check.states:
        note = "a file was changed or removed during the check: run it again"
        report.lines.append(Line(chosen[0], None, "the files as a whole", FAILS, 1.0, 0.0, note=note))
    elif {*chosen} == {*PARTS}:
        result = {"date": report.date, "ok": report.ok, "workbench": report.machine["workbench"]}
        remember(model.digest, model.folder or check.folder, check.states, result)
    return report


def _collect(check: "_Check", parts: Sequence[str], on_line: Callable[[Line], Any] | None) -> list[Line]:
    lines: list[Line] = []
    units = list(check.units(parts))
    with progress_bar(desc="verify_model", total=len(units), disable=None if on_line is None else True) as bar:
        for unit in units:
            bar.set_postfix_str(unit.name, refresh=False)
            for line in check.lines_of(unit):
                lines.append(line)
                if on_line:
                    on_line(line)
            bar.update()
    return [line for line in lines if line.part in parts]


class Unit(NamedTuple):
    """A piece of work that is done whole or done again, and the part and layer of its line if it cannot be done."""

    name: str
    part: str
    layer: int | None
    run: Callable[[], list[Line]]


class _Check:
    """One model, and the units of work that its check consists of."""

    def __init__(self, where: str | os.PathLike[str], model: Model, restart: bool):
        self.where, self.model, self.layout = where, model, model.format
        self.path = located(where, model.format)
        self.folder, self.weight_files = weight_files(self.path, self.layout)
        self.files = files_of_model(self.folder, self.weight_files)
        self.states = states_of(self.files)
        c = model.config
        self.dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        self.ids = whole.token_ids(model)
        self.progress = SavedProgress(
            [str(self.path.resolve()), self.states, machine(), self.ids, model.digest, str(model.dtype)]
        )
        if restart:
            self.progress.forget([*self.progress.done])
        self.weights = widened(model.weights, self.dtype)
        self.rows = (c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.n_kv_heads * c.d_head)
        self._resid: tuple[int, Tensor] | None = None  # the next layer, and its input

    def identity(self) -> dict[str, Any]:
        """The model entry of the report."""
        return {"name": self.model.name, "format": self.layout, "weights_digest": self.model.digest}

    def lines_of(self, unit: Unit) -> list[Line]:
        """The lines of a unit that was finished earlier, or is done now.

        A file that looks like a model and cannot be compared fails its line, whatever a library said about it; the
        other units are still done. Such a line is not saved.
        """
        if unit.name not in self.progress.done:
            try:
                with allocation_errors():
                    lines = unit.run()
                self.progress.add(unit.name, lines)
            except (MissingDependency, BudgetError):
                raise  # not the model's fault
            except Exception as error:
                note = f"cannot be checked: {type(error).__name__}: {brief(str(error), 300)}"
                return [Line(unit.part, unit.layer, unit.name, FAILS, math.inf, 0.0, note=note)]
        return self.progress.done[unit.name]

    def units(self, parts: Sequence[str]) -> Iterator[Unit]:
        """The units of work."""
        if "files" in parts:
            yield Unit("files", "files", None, self.check_files)
        if "weights" in parts or "layers" in parts:
            part = "layers" if "layers" in parts else "weights"
            yield Unit("config", part, None, lambda: check_config(self.model.config, self.config))
            yield Unit(EMBED, part, None, lambda: [check_table(self.model.weights, self.raw, EMBED)])
            for layer in range(self.model.config.n_layers):
                yield Unit(f"layer {layer}", part, layer, lambda layer=layer: self.check_layer(layer))
            yield Unit("the last norm and logits", part, None, self.check_ends)
            yield Unit(UNEMBED, part, None, lambda: [check_table(self.model.weights, self.raw, UNEMBED)])
        if "identities" in parts:
            yield Unit("identities", "identities", None, self.check_identities)
        if "numerics" in parts:
            for setting in whole.settings(self.model):
                name = f"{setting['dtype']}, memory={setting['memory']!r}"
                run = lambda s=setting: [self.check_setting(s)]  # noqa: E731
                yield Unit(name, "numerics", None, run)

    @cached_property
    def raw(self):
        return open_raw(self.path, self.layout, self.rows)

    @cached_property
    def config(self):
        return reference_config(self.path, self.layout)

    @cached_property
    def around(self):
        return surroundings(self.config, len(self.ids), self.dtype)

    def check_files(self) -> list[Line]:
        known = expected_digests(self.folder, self.files, str(self.where))
        lines = damaged_if_others_match([check_content(file, known.get(file)) for file in self.files])
        if self.layout != "gguf":  # the loader has checked that the tensors of a .gguf fill it without a gap
            lines += check_headers(self.folder, self.weight_files)
        return lines + whole.check_tokenizer(self.model)

    def check_layer(self, layer: int) -> list[Line]:
        raw, resid = self.raw, self.resid_before(layer)
        lines, resid = check_layer(self.model.config, self.weights, resid, layer, self.config, raw, self.around)
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
        return check_ends(self.model.config, self.weights, resid[0, -whole.LAST :], self.config, raw)

    def check_identities(self) -> list[Line]:
        lines, trace = whole.check_identities(self.model, self.ids)
        return lines + whole.check_language(self.model, trace)

    def check_setting(self, setting: dict[str, Any]) -> Line:
        return whole.check_setting(self.model, self.where, setting, self.ids, self.reference_logits)

    @cached_property
    def reference_logits(self) -> Tensor:
        """Log-probabilities at the last positions in float32, one layer at a time."""
        resid = self.resid_before(self.model.config.n_layers)[0, -whole.LAST :]
        return torch.log_softmax(logits_of(self.model.config, self.weights, resid).float(), -1)


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
