"""The tuned lens (arXiv 2303.08112): what a layer would predict, once it is put into the words of the last one.

The logit lens reads a layer as if it were the last. A tuned lens first translates it, h + W h + b, with W and b trained
so that the prediction comes as near to the final one as it can. It belongs to the weights that it was trained on.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from workbench import hooks
from workbench.analysis import statistics
from workbench.errors import CheckpointError, EditError, PromptError
from workbench.files import atomic_path
from workbench.model.arrays import tensor
from workbench.model.gpt_oss import unembed
from workbench.model.kernels.rows import entropy, log_softmax
from workbench.model.model import Model, Prompt
from workbench.paths import expanded
from workbench.recording.taps import Recorder
from workbench.traces import Trace

AT_ONCE = 1 << 24  # log-probabilities held at a time: of every layer, at some positions
EPS = 1e-4  # of Adam: a layer that is right already has gradients of rounding (1e-9), and must not be moved by them
FORMAT = "workbench tuned lens 1"
DTYPES = {"float32": torch.float32, "float64": torch.float64}  # of translators; bf16 would round Adam's steps away


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of all layers but the last, which needs none. `told` says on what they were trained, and how."""

    weight: Tensor  # layer d_model d_model: what is added to the identity
    bias: Tensor  # layer d_model
    told: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        n = len(self.bias) + 1
        return f"<TunedLens of {self.told.get('model')}: {n} layers, {self.told.get('tokens')} tokens>"

    def __call__(self, resid: Tensor) -> Tensor:
        """Residual streams after every layer (layer pos d_model), translated; the last as it is."""
        below = resid[:-1].to(self.weight)
        moved = below + torch.einsum("lpd,led->lpe", below, self.weight) + self.bias[:, None]
        return torch.cat((moved, resid[-1:].to(moved)))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one .safetensors file, whole or not at all. CheckpointError if something is there already."""
        path = expanded(path)
        if path.exists():
            raise CheckpointError(f"{path} is there already: give another name, or delete it first.")
        told = {"format": FORMAT, "told": json.dumps(self.told)}
        with atomic_path(path) as part:
            save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, part, metadata=told)
        return path


def train_tuned_lens(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    epochs: int = 4,
    lr: float = 0.002,
    seed: int = 0,
    dtype: torch.dtype | str = "float32",
) -> TunedLens:
    """A tuned lens of a model: translators that bring each layer's prediction near the final one, over these texts.

    Begins as the logit lens; Adam, one step a text, on the mean of KL(final || layer) over layers and positions, the
    rate falling to 0.

    Args:
        model: the model that the lens is for. Its weights do not change.
        prompts: texts, token ids or traces: best what the model itself wrote, some thousand tokens for a small model.
            Keep others for `wb.lens.lens_kl`, which says what was gained.
        epochs: how many times each text is used.
        lr: the learning rate of the first step.
        seed: of the order of the texts.
        dtype: of the translators and their training, float32 or float64 (a torch dtype or its name). The model runs in
            the dtype that it was loaded with; `lens.told` and the saved file name both.

    Returns:
        A TunedLens: weight (layer d_model d_model) and bias (layer d_model) for all layers but the last.

    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> lens
    <TunedLens of pocket: 6 layers, 64 tokens>

    Raises PromptError without texts, CheckpointError for another dtype, EditError while an edit is in force.
    Ctrl-C ends it at the next hook point.
    """
    ids = [model.to_tokens(text) for text in prompts]
    if not ids:
        raise PromptError("a lens is trained on texts: give traces, prompts or token ids")
    if model.active_edits():
        raise EditError("a lens belongs to a model as it is: train it outside of `with model.edit(…)`")
    dtype_name = str(dtype).removeprefix("torch.")
    if dtype_name not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(map(repr, DTYPES))} for a lens, got {dtype_name!r}")
    c = model.config
    on = {"device": model.device, "dtype": DTYPES[dtype_name]}
    weight = torch.zeros(c.n_layers - 1, c.d_model, c.d_model, **on, requires_grad=True)
    bias = torch.zeros(c.n_layers - 1, c.d_model, **on, requires_grad=True)
    lens = TunedLens(weight, bias)
    adam = torch.optim.Adam([weight, bias], lr=lr, eps=EPS)
    order = [i for n in range(epochs) for i in Random(f"{seed} {n}").sample(range(len(ids)), len(ids))]
    with model.interruptible() as flag:
        for done, i in enumerate(tqdm(order, desc="training", unit="text", leave=False, disable=None)):
            flag.check()
            for group in adam.param_groups:
                group["lr"] = lr * (1 - done / len(order))
            resid = _residuals(model, ids[i])
            adam.zero_grad()
            for part in _parts(model, resid):
                loss = _kl(model, lens(part))[:-1].sum() / (max(1, c.n_layers - 1) * resid.shape[1])
                loss.backward()
            adam.step()
    told = {
        "model": model.name,
        "weights_digest": model.digest,
        "prompts": len(ids),
        "tokens": sum(map(len, ids)),
        "epochs": epochs,
        "lr": lr,
        "seed": seed,
        "dtype": dtype_name,
        "model_dtype": model.dtype_name,
    }
    return TunedLens(weight.detach(), bias.detach(), told)


def load_tuned_lens(path: str | os.PathLike[str], model: Model) -> TunedLens:
    """The lens in a file that `TunedLens.save` wrote, for the model that it was trained on; bit for bit what was saved.

    >>> from tempfile import mkdtemp
    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> wb.lens.load_tuned_lens(lens.save(Path(mkdtemp()) / "pocket.safetensors"), model)
    <TunedLens of pocket: 6 layers, 64 tokens>

    Raises CheckpointError if the file is absent, damaged or no lens, or if it was trained on other weights.
    """
    path = expanded(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        told = json.loads(metadata.get("told", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a tuned lens: {error}") from None
    c = model.config
    shapes = {"weight": (c.n_layers - 1, c.d_model, c.d_model), "bias": (c.n_layers - 1, c.d_model)}
    if metadata.get("format") != FORMAT or not isinstance(told, dict):
        raise CheckpointError(f"{path} is no tuned lens: what `lens.save(path)` writes is.")
    weight, bias = (tensors.get(name, torch.empty(0)).to(model.device) for name in shapes)
    lens = TunedLens(weight, bias, told)
    _belongs(lens, model)
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != shapes or not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise CheckpointError(f"{path} is damaged: it holds {found}, not finite numbers of the shapes {shapes}.")
    return lens


def tuned_lens(model: Model, trace: Trace, lens: TunedLens) -> xr.Dataset:
    """What each layer would predict, translated by a tuned lens: labelled like `wb.lens.logit_lens`, and read like it.

    `token`, `text` and `logprob` (layer pos rank), `entropy` and `kl` (layer pos), in nats; `kl` is KL(final || layer).
    The last layer is the model itself.

    >>> trace = wb.trace("What is 12+30?", record="residuals")
    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> found = wb.lens.tuned_lens(model, trace, lens)
    >>> found["token"].dims, bool(abs(found["kl"].isel(layer=-1)).max() < 1e-5)
    (('layer', 'pos', 'rank'), True)

    Raises NotRecorded without record="residuals", CheckpointError if lens, model and trace are not of the same weights.
    """
    _belongs(lens, model)
    if trace.manifest.model["weights_digest"] != model.digest:
        _others(f"this trace is of {trace.manifest.model['name']}", trace.manifest.model["weights_digest"], model)
    points = [hooks.at_layer("blocks.*.hook_resid_post", layer) for layer in range(model.config.n_layers)]
    k = min(hooks.RANKS["lens_ids"], model.config.d_vocab)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("token", "logprob", "entropy", "kl")}
    with model.interruptible() as flag, torch.inference_mode():
        resid = torch.stack([tensor(trace.raw(point)) for point in points]).to(model.device)
        for part in _parts(model, resid):
            flag.check()
            logp = _predictions(model, lens(part))
            top = logp.topk(k, -1)
            found = {"token": top.indices, "logprob": top.values, "entropy": entropy(logp), "kl": _from_last(logp)}
            for name, x in found.items():
                rows[name].append(x.cpu().numpy())
    whole = {name: np.concatenate(parts, 1) for name, parts in rows.items()}
    dims = ("layer", "pos", "rank")
    data = {name: (dims[: a.ndim], a) for name, a in whole.items()} | {"text": (dims, _texts(model, whole["token"]))}
    coords = {dim: np.arange(n) for dim, n in zip(dims, whole["token"].shape)}
    found = xr.Dataset(data, coords, {"lens": dict(lens.told)})
    for name in ("logprob", "entropy", "kl"):
        found[name].attrs["units"] = "nats"
    return found


def lens_kl(model: Model, lens: TunedLens, prompts: Sequence[Prompt]) -> xr.Dataset:
    """How far each layer's prediction is from the final one, by the tuned lens and by the logit lens (layer), in nats.

    `tuned` and `logit` are means of KL(final || layer) over positions and then over texts; `gain` is their difference,
    with bounds `low` and `high` (bootstrap over texts). Take texts that the lens was not trained on.

    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> wb.lens.lens_kl(model, lens, ["What is 12+30?"])["tuned"].dims
    ('layer',)

    Raises CheckpointError for the lens of another model, PromptError without texts.
    """
    _belongs(lens, model)
    if not prompts:
        raise PromptError("a lens is measured on texts: give traces, prompts or token ids")
    both = []
    with model.interruptible() as flag, torch.inference_mode():
        for text in tqdm(prompts, desc="reading", unit="text", leave=False, disable=None):
            flag.check()
            parts = _parts(model, _residuals(model, model.to_tokens(text)))
            kl = [torch.cat([_kl(model, read(part)) for part in parts], 1).mean(1) for read in (lens, _as_it_is)]
            both.append(torch.stack(kl).double().cpu().numpy())
    found = np.stack(both)  # text lens layer
    interval = statistics.mean_interval(found[:, 1] - found[:, 0])
    data = {"tuned": found[:, 0].mean(0), "logit": found[:, 1].mean(0)}
    data |= {"gain": interval.value, "low": interval.low, "high": interval.high}
    layers = {"layer": np.arange(model.config.n_layers)}
    made = xr.Dataset({name: ("layer", values) for name, values in data.items()}, layers, {"n": len(both)})
    for name in made.data_vars:
        made[name].attrs["units"] = "nats"
    return made


def _as_it_is(resid: Tensor) -> Tensor:
    """The logit lens."""
    return resid


@torch.no_grad()
def _residuals(model: Model, tokens: Sequence[int]) -> Tensor:
    """The residual streams after every layer of a text: layer pos d_model."""
    model.check_prompt(tokens)
    points = [hooks.at_layer("blocks.*.hook_resid_post", layer) for layer in range(model.config.n_layers)]
    seen = Recorder(points, device=model.device)
    model.forward(torch.tensor([list(tokens)], device=model.device), seen, None, slice(0, 0))
    return torch.cat([seen[point] for point in points])


def _parts(model: Model, resid: Tensor) -> tuple[Tensor, ...]:
    """The same, a few positions at a time."""
    return resid.split(max(1, AT_ONCE // (model.config.n_layers * model.config.d_vocab)), 1)


def _predictions(model: Model, resid: Tensor) -> Tensor:
    """Log-probabilities, layer pos d_vocab."""
    return log_softmax(unembed(model.config, model.weights, resid.to(model.dtype)))


def _from_last(logp: Tensor) -> Tensor:
    """KL(last layer || layer) in nats: layer pos."""
    final = logp[-1:].detach()
    return (final.exp() * (final - logp)).nan_to_num(0.0).sum(-1)


def _kl(model: Model, resid: Tensor) -> Tensor:
    return _from_last(_predictions(model, resid))


def _belongs(lens: TunedLens, model: Model) -> None:
    if lens.told.get("weights_digest") != model.digest:
        _others(f"this lens was trained on {lens.told.get('model')}", str(lens.told.get("weights_digest")), model)


def _others(what: str, digest: str, model: Model) -> NoReturn:
    raise CheckpointError(
        f"{what} ({digest[:20]}…), and this model is {model.name} with other weights ({model.digest[:20]}…). "
        f"Load the model that it belongs to, or train a lens for this one: wb.lens.train_tuned_lens(model, prompts)."
    )


def _texts(model: Model, ids: np.ndarray) -> np.ndarray:
    unique, place = np.unique(ids, return_inverse=True)
    tokenizer = model.tokenizer
    words = [tokenizer.str_tokens([int(i)])[0] if tokenizer else f"<{int(i)}>" for i in unique]
    return np.array(words, object)[place].reshape(ids.shape)
