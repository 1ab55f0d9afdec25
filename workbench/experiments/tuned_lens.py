"""The tuned lens (arXiv 2303.08112): what a layer would predict after a learned affine map into the last layer's basis.

The logit lens reads a layer as if it were the last. The tuned lens first applies h + W h + b, with W and b trained so
that the prediction is as close as possible to the final one. A lens belongs to the weights it was trained on.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import numpy as np
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from workbench import hooks
from workbench.analysis import statistics
from workbench.checks import check_count, check_items, check_number, check_seed, check_type
from workbench.errors import CheckpointError, EditError, PromptError
from workbench.files import atomic_write
from workbench.model.arrays import tensor
from workbench.model.gpt_oss import unembed
from workbench.model.kernels.rows import entropy, log_softmax
from workbench.model.model import Model, Prompt
from workbench.paths import expanded
from workbench.progress import progress_bar
from workbench.recording.taps import Recorder
from workbench.text import shown, visible
from workbench.traces import Trace
from workbench.units import with_units
from workbench.untrusted import parse_json, regular_file

MAX_LOGPROBS = 1 << 24  # log-probabilities in memory at a time, of all layers at some positions
EPS = 1e-4  # of Adam: gradients of a layer that is right already are rounding errors (1e-9) and must not move it
FORMAT = "workbench tuned lens 3"
WITHOUT_HASH = ("workbench tuned lens", "workbench tuned lens 2")  # formats of earlier versions
DTYPES = {"float32": torch.float32, "float64": torch.float64}  # of the affine maps; bf16 would round Adam's steps away


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Affine maps of all layers but the last, which needs none. `training` records the data, model and settings."""

    weight: Tensor  # (layer d_model d_model), added to the identity
    bias: Tensor  # (layer d_model)
    training: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        n = len(self.bias) + 1
        model, tokens = (visible(str(self.training.get(key))) for key in ("model", "tokens"))
        return f"<TunedLens of {model}: {n} layers, {tokens} tokens>"

    def __call__(self, resid: Tensor) -> Tensor:
        """Residual streams after every layer (layer pos d_model), mapped to the last layer's basis."""
        below = resid[:-1].to(self.weight)
        moved = below + torch.einsum("lpd,led->lpe", below, self.weight) + self.bias[:, None]
        return torch.cat((moved, resid[-1:].to(moved)))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Saves to one .safetensors file, atomically, and returns its path; the file holds its own hash.

        Raises CheckpointError if the path exists, FileError if it cannot be written.
        """
        path = expanded(path)
        if os.path.lexists(path):
            raise CheckpointError(f"{visible(str(path))} exists already; give another name, or delete it first")
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        training = json.dumps(self.training)
        metadata = {"format": FORMAT, "training": training, "sha256": _digest(tensors, training)}
        return atomic_write(path, save(tensors, metadata))


def train_tuned_lens(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    epochs: int = 4,
    lr: float = 0.002,
    seed: int = 0,
    dtype: torch.dtype | str = "float32",
) -> TunedLens:
    """Trains a tuned lens of a model on prompts.

    Training starts from the logit lens. Adam takes one step per prompt on the mean KL(final || layer) over layers and
    positions, with a learning rate that falls linearly to 0.

    Args:
        model: the model the lens is for. Its weights do not change.
        prompts: prompts, token ids or traces; best texts that the model generated itself, some thousand tokens for a
            small model. Keep others for `wb.lens.lens_kl`, which measures the improvement.
        epochs: how many times each prompt is used.
        lr: the learning rate of the first step.
        seed: of the order of the prompts.
        dtype: of the affine maps and their training, float32 or float64 (a torch dtype or its name). The model runs in
            the dtype that it was loaded with; `lens.training` and the saved file name both.

    Returns:
        A TunedLens: weight (layer d_model d_model) and bias (layer d_model) for all layers but the last.

    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> lens
    <TunedLens of pocket: 6 layers, 64 tokens>

    Raises:
        PromptError: there are no prompts.
        CheckpointError: another dtype.
        EditError: an edit is in force.

    Ctrl-C stops it at the next hook point.
    """
    check_type("train_tuned_lens", model, Model)
    epochs, lr, seed = check_count("epochs", epochs), check_number("lr", lr, above=0), check_seed(seed)
    ids = [model.to_tokens(text) for text in check_items("prompts", prompts, low=0)]
    if not ids:
        raise PromptError("a lens needs prompts to train on; give traces, prompts or token ids")
    for tokens in ids:
        model.check_prompt(tokens)
    if model.active_edits():
        raise EditError("a lens is trained on the unedited model; leave `with model.edit(…)` first")
    dtype_name = str(dtype).removeprefix("torch.") if isinstance(dtype, str | torch.dtype) else shown(dtype)
    if dtype_name not in DTYPES:
        raise CheckpointError(f"dtype of a lens must be one of {', '.join(map(repr, DTYPES))}, got {dtype_name!r}")
    c = model.config
    on = {"device": model.device, "dtype": DTYPES[dtype_name]}
    weight = torch.zeros(c.n_layers - 1, c.d_model, c.d_model, **on, requires_grad=True)
    bias = torch.zeros(c.n_layers - 1, c.d_model, **on, requires_grad=True)
    lens = TunedLens(weight, bias)
    adam = torch.optim.Adam([weight, bias], lr=lr, eps=EPS)
    order = [i for n in range(epochs) for i in Random(f"{seed} {n}").sample(range(len(ids)), len(ids))]
    with model.interruptible() as flag:
        for done, i in enumerate(progress_bar(order, desc="training", unit="text")):
            flag.check()
            for group in adam.param_groups:
                group["lr"] = lr * (1 - done / len(order))
            resid = _residuals(model, ids[i])
            adam.zero_grad()
            for part in _parts(model, resid):
                loss = _kl(model, lens(part))[:-1].sum() / (max(1, c.n_layers - 1) * resid.shape[1])
                loss.backward()
            adam.step()
    training = {
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
    return TunedLens(weight.detach(), bias.detach(), training)


def load_tuned_lens(path: str | os.PathLike[str], model: Model) -> TunedLens:
    """Loads a lens saved with `TunedLens.save`, for the model it was trained on; exact to the last bit.

    >>> from tempfile import mkdtemp
    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> wb.lens.load_tuned_lens(lens.save(Path(mkdtemp()) / "pocket.safetensors"), model)
    <TunedLens of pocket: 6 layers, 64 tokens>

    Raises CheckpointError if the file is missing, damaged or not a lens, or if it was trained on other weights.
    """
    check_type("load_tuned_lens", model, Model)
    path = regular_file(path, CheckpointError)
    name = visible(str(path))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # damaged bytes can make it raise anything
        raise CheckpointError(f"{name} cannot be read as a tuned lens: {error}") from None
    if metadata.get("format") in WITHOUT_HASH:
        raise CheckpointError(
            f"{name} was saved by an earlier version of workbench, without a hash, so its numbers cannot be checked. "
            f"Train the lens again and save it: wb.lens.train_tuned_lens(model, prompts).save(path)"
        )
    training = parse_json(metadata.get("training", "null"), f"the training record of {name}", CheckpointError)
    if metadata.get("format") != FORMAT or not isinstance(training, dict):
        raise CheckpointError(f"{name} is not a tuned lens saved by `lens.save(path)`")
    if metadata.get("sha256") != _digest(tensors, metadata["training"]):
        raise CheckpointError(f"{name} is damaged or was changed: its content does not match its hash. Restore it")
    c = model.config
    shapes = {"weight": (c.n_layers - 1, c.d_model, c.d_model), "bias": (c.n_layers - 1, c.d_model)}
    _check_weights(TunedLens(torch.empty(0), torch.empty(0), training), model)
    found_shapes = {key: tuple(t.shape) for key, t in tensors.items()}
    dtypes = {t.dtype for t in tensors.values()}
    if found_shapes != shapes or len(dtypes) > 1 or not dtypes <= set(DTYPES.values()):
        raise CheckpointError(
            f"{name} must hold tensors of the shapes {shapes} in one of {', '.join(DTYPES)}, got "
            f"{visible(str(found_shapes))[:500]} in {', '.join(sorted(map(str, dtypes)))}"
        )
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise CheckpointError(f"{name} holds NaN or infinity; train the lens again with a smaller `lr`")
    return TunedLens(tensors["weight"].to(model.device), tensors["bias"].to(model.device), training)


def tuned_lens(model: Model, trace: Trace, lens: TunedLens) -> xr.Dataset:
    """What each layer would predict through a tuned lens, in the same form as `wb.lens.logit_lens`.

    Returns a Dataset: `token`, `text` and `logprob` (layer pos rank), `entropy` and `kl` (layer pos), in nats; `kl` is
    KL(final || layer). The last layer is the model's own prediction. The maps are trained to imitate the final
    prediction, so a good early prediction shows what is linearly available there, not that the model has computed its
    answer.

    >>> trace = wb.trace("What is 12+30?", record="residuals")
    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> predictions = wb.lens.tuned_lens(model, trace, lens)
    >>> predictions["token"].dims, bool(abs(predictions["kl"].isel(layer=-1)).max() < 1e-5)
    (('layer', 'pos', 'rank'), True)

    Raises NotRecorded if the trace was not recorded with record="residuals", CheckpointError if lens, model and trace
    do not have the same weights.
    """
    check_type("tuned_lens", model, Model)
    check_type("tuned_lens", trace, Trace)
    check_type("tuned_lens", lens, TunedLens)
    _check_weights(lens, model)
    if trace.manifest.model["weights_digest"] != model.digest:
        _raise_other_weights(
            f"this trace was made by {trace.manifest.model['name']}", trace.manifest.model["weights_digest"], model
        )
    points = [hooks.at_layer("blocks.*.hook_resid_post", layer) for layer in range(model.config.n_layers)]
    k = min(hooks.RANKS["lens_ids"], model.config.d_vocab)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("token", "logprob", "entropy", "kl")}
    with model.interruptible() as flag, torch.inference_mode():
        resid = torch.stack([tensor(trace.raw(point)) for point in points]).to(model.device)
        for part in _parts(model, resid):
            flag.check()
            logprobs = _predictions(model, lens(part))
            top = logprobs.topk(k, -1)
            chunk = {
                "token": top.indices,
                "logprob": top.values,
                "entropy": entropy(logprobs),
                "kl": _from_last(logprobs),
            }
            for name, x in chunk.items():
                rows[name].append(x.cpu().numpy())
    whole = {name: np.concatenate(parts, 1) for name, parts in rows.items()}
    dims = ("layer", "pos", "rank")
    data = {name: (dims[: a.ndim], a) for name, a in whole.items()} | {"text": (dims, _texts(model, whole["token"]))}
    coords = {dim: np.arange(n) for dim, n in zip(dims, whole["token"].shape)}
    return with_units(xr.Dataset(data, coords, {"lens": dict(lens.training)}), "nats", token="token id")


def lens_kl(model: Model, lens: TunedLens, prompts: Sequence[Prompt]) -> xr.Dataset:
    """KL of each layer's prediction from the final one, with the tuned lens and the logit lens (layer), in nats.

    `tuned` and `logit` are KL(final || layer), averaged over positions and then over prompts. `gain` is logit - tuned,
    with bounds `low` and `high` by bootstrap over prompts. Use prompts that the lens was not trained on.

    >>> lens = wb.lens.train_tuned_lens(model, [trace], epochs=1)
    >>> wb.lens.lens_kl(model, lens, ["What is 12+30?"])["tuned"].dims
    ('layer',)

    Raises CheckpointError for the lens of another model, PromptError if there are no prompts.
    """
    check_type("lens_kl", model, Model)
    check_type("lens_kl", lens, TunedLens)
    _check_weights(lens, model)
    prompts = check_items("prompts", prompts, low=0)
    if not prompts:
        raise PromptError("a lens needs prompts to be measured on; give traces, prompts or token ids")
    per_prompt = []
    with model.interruptible() as flag, torch.inference_mode():
        for text in progress_bar(prompts, desc="measuring", unit="text"):
            flag.check()
            parts = _parts(model, _residuals(model, model.to_tokens(text)))
            kl = [torch.cat([_kl(model, read(part)) for part in parts], 1).mean(1) for read in (lens, _logit_lens)]
            per_prompt.append(torch.stack(kl).double().cpu().numpy())
    kl_by_prompt = np.stack(per_prompt)  # (text lens layer)
    interval = statistics.mean_interval(kl_by_prompt[:, 1] - kl_by_prompt[:, 0])
    data = {"tuned": kl_by_prompt[:, 0].mean(0), "logit": kl_by_prompt[:, 1].mean(0)}
    data |= {"gain": interval.value, "low": interval.low, "high": interval.high}
    layers = {"layer": np.arange(model.config.n_layers)}
    dataset = xr.Dataset({name: ("layer", values) for name, values in data.items()}, layers, {"n": len(per_prompt)})
    return with_units(dataset, "nats")


def _logit_lens(resid: Tensor) -> Tensor:
    """The logit lens."""
    return resid


@torch.no_grad()
def _residuals(model: Model, tokens: Sequence[int]) -> Tensor:
    """The residual streams after every layer (layer pos d_model)."""
    model.check_prompt(tokens)
    points = [hooks.at_layer("blocks.*.hook_resid_post", layer) for layer in range(model.config.n_layers)]
    seen = Recorder(points, device=model.device)
    model.forward(torch.tensor([list(tokens)], device=model.device), seen, None, slice(0, 0))
    return torch.cat([seen[point] for point in points])


def _parts(model: Model, resid: Tensor) -> tuple[Tensor, ...]:
    """Residual streams in chunks of positions."""
    return resid.split(max(1, MAX_LOGPROBS // (model.config.n_layers * model.config.d_vocab)), 1)


def _predictions(model: Model, resid: Tensor) -> Tensor:
    """Log-probabilities (layer pos d_vocab)."""
    return log_softmax(unembed(model.config, model.weights, resid.to(model.dtype)))


def _from_last(logp: Tensor) -> Tensor:
    """KL(last layer || layer) in nats (layer pos)."""
    final = logp[-1:].detach()
    return (final.exp() * (final - logp)).nan_to_num(0.0).sum(-1)


def _kl(model: Model, resid: Tensor) -> Tensor:
    return _from_last(_predictions(model, resid))


def _digest(tensors: Mapping[str, Tensor], training: str) -> str:
    """The sha256 of everything in the file of a lens."""
    total = sha256(training.encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        total.update(f"\0{name} {values.dtype} {list(values.shape)}\0".encode())
        total.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _check_weights(lens: TunedLens, model: Model) -> None:
    if lens.training.get("weights_digest") != model.digest:
        _raise_other_weights(
            f"this lens was trained on {lens.training.get('model')}", str(lens.training.get("weights_digest")), model
        )


def _raise_other_weights(what: str, digest: str, model: Model) -> NoReturn:
    raise CheckpointError(
        f"{what} ({digest[:20]}…), and this model is {model.name} with other weights ({model.digest[:20]}…). "
        f"Load that model, or train a lens for this one: wb.lens.train_tuned_lens(model, prompts)."
    )


def _texts(model: Model, ids: np.ndarray) -> np.ndarray:
    unique, place = np.unique(ids, return_inverse=True)
    tokenizer = model.tokenizer
    texts = [tokenizer.str_tokens([int(i)])[0] if tokenizer else f"<{int(i)}>" for i in unique]
    return np.array(texts, object)[place].reshape(ids.shape)
