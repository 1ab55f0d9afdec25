"""Sparse autoencoders: the features of a trace, edits by feature, and how much the reconstruction costs the model.

With

    a = activation((n(x) - b_dec) @ W_enc + b_enc)      x' = n⁻¹(a @ W_dec + b_dec)

n is the identity, a layer norm, or a scaling to length √d_model. The activation is ReLU, JumpReLU (a feature below its
threshold is 0) or TopK. BatchTopK selects among the features of a whole batch during training. At inference it is the
JumpReLU with the threshold learned in training, so that a token's features do not depend on other texts in the batch.
This module is independent of file formats; `interop/sae_formats.py` reads those of other libraries.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.checks import (
    check_flag,
    check_index,
    check_indices,
    check_number,
    check_numbers,
    check_type,
    check_whole,
)
from workbench.errors import ArgumentError, CheckpointError, EditError
from workbench.experiments.sae_site import site_of
from workbench.experiments.sae_tensors import check_plain_tensor, with_width
from workbench.text import shown, visible
from workbench.traces import Trace
from workbench.units import with_units

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.model.model import Model

NORMS = ("none", "layer_norm", "constant_norm_rescale")
MAX_WIDTH = 1 << 14  # of an `identity`, whose matrices have 2 · d_model² entries
MAX_ELEMENTS_PER_PASS = 1 << 24  # feature activations in memory at a time
EPS = 1e-5


class SAE:
    """A sparse autoencoder: `d_sae` features of the `d_model` values per position at one `site`, in float32.

    Attributes: `W_enc` (d_model feature), `b_enc` (feature), `W_dec` (feature d_model), `b_dec` (d_model), `threshold`
    (feature, or None), `k` (the most active features per position, or None), and `digest`, a hash of all that
    determines its outputs. `model.edit(sae.site, …)` accepts `sae.splice()`, `sae.ablate(7)` and `sae.steer(7, 4.0)`.

    Args:
        site: a hook point with d_model values per position, or another library's name for it (see `site_of`).
        W_enc: the encoder, (d_model feature).
        b_enc: the encoder's bias, (feature); 0 unless given.
        W_dec: the decoder, (feature d_model).
        b_dec: the decoder's bias, (d_model); 0 unless given.
        threshold: of a JumpReLU, (feature) or one number.
        k: of a TopK.
        subtracts: whether b_dec is subtracted from the input before encoding.
        rescaled: whether activations are in units of the norm of the feature's decoder row.
        norm: of the input: "none", "layer_norm" or "constant_norm_rescale".

    >>> import torch
    >>> SAE("blocks.2.hook_resid_post", torch.ones(128, 512), W_dec=torch.ones(512, 128), k=3)
    <SAE 512 features of blocks.2.hook_resid_post, 128 wide, top 3>

    Raises:
        CheckpointError: the shapes do not match, a value is not a finite real number, or `norm` or `k` is not allowed.
        ArgumentTypeError: an argument has another type.
        HookNameError: the site is not suitable.
    """

    # Tensors are slots, outside __dict__: `edits.fingerprint` hashes the __dict__ of an edit, where the digest
    # represents them, so that gigabytes are hashed once and not in every run.
    __slots__ = ("W_dec", "W_enc", "__dict__", "b_dec", "b_enc", "threshold")

    def __init__(
        self,
        site: str,
        W_enc: "Tensor",
        b_enc: "Tensor | None" = None,
        *,
        W_dec: "Tensor",
        b_dec: "Tensor | None" = None,
        threshold: "Tensor | float | None" = None,
        k: int | None = None,
        subtracts: bool = True,
        rescaled: bool = False,
        norm: str = "none",
    ):
        import torch

        from workbench.edits.fingerprint import fingerprint

        self.site = site_of(site)
        self.norm = norm
        self.subtracts = check_flag("subtracts", subtracts)  # b_dec is subtracted from the input
        self.rescaled = check_flag("rescaled", rescaled)  # activations are in units of the decoder row's norm
        for name, tensor in (("W_enc", W_enc), ("W_dec", W_dec), ("b_enc", b_enc), ("b_dec", b_dec)):
            if tensor is not None or name.startswith("W"):
                check_plain_tensor(name, tensor)
        if isinstance(threshold, torch.Tensor):
            check_plain_tensor("threshold", threshold)
        if threshold is not None:
            several = isinstance(threshold, torch.Tensor | np.ndarray | Sequence) and np.ndim(threshold)
            values = check_numbers("threshold", threshold) if several else [check_number("threshold", threshold)]
            threshold = torch.as_tensor(values)
        if W_enc.ndim != 2 or W_dec.shape != W_enc.shape[::-1]:
            raise CheckpointError(
                f"W_enc is {list(W_enc.shape)}, so W_dec must be {list(W_enc.shape[::-1])}, got {list(W_dec.shape)}"
            )
        self.d_model, self.d_sae = W_enc.shape
        self.k = None if k is None else check_whole("k", k)
        zero = W_enc.new_zeros(1)
        vectors = {
            "b_enc": (zero if b_enc is None else b_enc, self.d_sae),
            "b_dec": (zero if b_dec is None else b_dec, self.d_model),
            "threshold": (zero if threshold is None else torch.as_tensor(threshold), self.d_sae),
        }
        for name, (vector, width) in vectors.items():
            if vector.numel() != 1 and vector.shape != (width,):
                raise CheckpointError(
                    f"{name} must have the shape [{width}] with these matrices, got {list(vector.shape)}"
                )
        self.W_enc, self.W_dec = W_enc.float(), W_dec.float().contiguous()  # rows of W_dec are gathered
        self.b_enc, self.b_dec, threshold_vector = (v.float().to(W_enc.device).expand(n) for v, n in vectors.values())
        self.threshold = None if threshold is None else threshold_vector
        tensors = {
            "W_enc": self.W_enc,
            "W_dec": self.W_dec,
            "b_enc": self.b_enc,
            "b_dec": self.b_dec,
            "threshold": threshold_vector,
        }
        not_finite = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if not_finite:
            raise CheckpointError(f"{not_finite[0]} contains NaN or infinity")
        if not isinstance(norm, str) or norm not in NORMS:
            raise CheckpointError(f"norm must be one of {', '.join(NORMS)}, got {shown(norm)}")
        if self.k is not None and not 0 < self.k <= self.d_sae:
            raise CheckpointError(f"k must be a whole number between 1 and {self.d_sae}, got {self.k}")
        self.digest = fingerprint([tensors, threshold is None, self.k, self.subtracts, self.rescaled, norm])

    def __repr__(self) -> str:
        kind = f"top {self.k}" if self.k else "relu" if self.threshold is None else "jumprelu"
        return f"<SAE {self.d_sae} features of {visible(self.site)}, {self.d_model} wide, {kind}>"

    def at(self, site: str) -> "SAE":
        """The same autoencoder for another site of the same width.

        Nothing checks that it was trained for that site.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> sae.at("blocks.3.hook_resid_post").site
        'blocks.3.hook_resid_post'
        """
        other = object.__new__(SAE)
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            setattr(other, name, getattr(self, name))
        vars(other).update(vars(self), site=site_of(site))
        return other

    def encode(self, x: "Tensor") -> "Tensor":
        """Feature activations of x: (… d_model) to (… feature); 0 where a feature is inactive.

        >>> import torch
        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> sae.encode(torch.tensor(trace["resid_post", 2])).shape == (len(trace), sae.d_sae)
        True
        """
        x = self._normed(with_width("x", x, self.d_model))[0]
        pre = (x - self.b_dec if self.subtracts else x) @ self.W_enc + self.b_enc
        if self.rescaled:
            pre = pre * self._lengths()
        if self.k is not None:
            best = pre.topk(self.k, dim=-1)
            return pre.new_zeros(pre.shape).scatter(-1, best.indices, best.values.relu())
        return pre.relu() if self.threshold is None else pre.relu() * (pre > self.threshold)

    def decode(self, features: "Tensor", x: "Tensor | None" = None) -> "Tensor":
        """The reconstruction from feature activations: (… feature) to (… d_model).

        `x` is the encoded input. It is needed only with a norm, whose scale and shift it restores.

        >>> import torch
        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> x = torch.tensor(trace["resid_post", 2])
        >>> bool((sae.decode(sae.encode(x)) == x).all())  # `identity` has a feature for each value and its negative
        True
        """
        features = with_width("features", features, self.d_sae)
        reconstructed = self.decode_linear(features) + self.b_dec
        if x is not None:
            x = with_width("x", x, self.d_model)
        if self.norm == "none":
            return reconstructed
        if x is None:
            raise ArgumentError(
                f"this SAE normalizes its input ({self.norm}), so decode needs it too: pass the x that was encoded"
            )
        _, scale, shift = self._normed(x)
        return reconstructed * scale + shift

    def decode_linear(self, features: "Tensor") -> "Tensor":
        """The decoder rows weighted by feature activations, before bias and scale: (… feature) to (… d_model).

        >>> import torch
        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> float(sae.decode_linear(2 * torch.eye(256)[7]).sum())
        2.0
        """
        from torch.nn.functional import embedding_bag

        features = with_width("features", features, self.d_sae)
        if self.rescaled:
            features = features / self._lengths()
        flat = features.reshape(-1, self.d_sae)
        active = flat != 0
        counts = active.sum(-1)
        if int(counts.sum()) * 16 > flat.numel():
            return features @ self.W_dec
        row, number = active.nonzero(as_tuple=True)  # few are active: gather only their rows
        bags = {"offsets": counts.cumsum(0) - counts, "mode": "sum", "per_sample_weights": flat[row, number]}
        return embedding_bag(number, self.W_dec, **bags).reshape(*features.shape[:-1], self.d_model)

    def _lengths(self) -> "Tensor":
        return self.W_dec.norm(dim=-1).clamp(min=1e-30)  # avoids NaN for a row of zeros

    def scale(self, x: "Tensor") -> Any:
        """The scale by which the norm divides x; 1 without a norm."""
        return self._normed(with_width("x", x, self.d_model))[1]

    def _normed(self, x: "Tensor") -> tuple["Tensor", Any, Any]:
        """The normalized input, and the scale and shift that were removed."""
        x = x.to(self.W_enc)
        if self.norm == "layer_norm":  # as in SAELens: std with n - 1, eps outside the root
            shift = x.mean(-1, keepdim=True)
            scale = (x - shift).std(-1, keepdim=True)
            return (x - shift) / (scale + EPS), scale, shift
        if self.norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_model**0.5
            return x / scale, scale, 0.0
        return x, 1.0, 0.0

    # Edits: for model.edit(sae.site, …).

    def splice(self, *, error: bool = False) -> "Splice":
        """An edit that replaces the value by its reconstruction, so that the reconstruction error is lost.

        With `error`, the reconstruction error is added back. The value is then unchanged, and single features can be
        edited.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> with model.edit(sae.site, sae.splice(error=True)): same = model.trace(trace)
        >>> same.edits[0]["n_positions"] == len(trace), same.edits[0]["n_changed_calls"]
        (True, 0)
        """
        return Splice(self, check_flag("error", error))

    def ablate(self, feature: int | Sequence[int]) -> "Clamp":
        """An edit that sets features to 0 and leaves everything else, the reconstruction error included.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> with model.edit(sae.site, sae.ablate([7, 200])): without = model.trace(trace)

        Raises SelectionError for a feature that does not exist.
        """
        return self.steer(feature, 0.0)

    def steer(self, feature: int | Sequence[int], value: float) -> "Clamp":
        """An edit that sets features to `value` at every position and leaves everything else; see also `direction`.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> with model.edit(sae.site, sae.steer(7, 4.0), positions=slice(20, None)): pushed = model.trace(trace)

        Raises SelectionError for a feature that does not exist, ArgumentError for no feature or a value that is not
        finite.
        """
        several = isinstance(feature, Sequence | np.ndarray) and not isinstance(feature, str | bytes)
        feature_ids = check_indices("feature", feature if several and np.ndim(feature) else [feature], self.d_sae)
        return Clamp(self, tuple(feature_ids), check_number("value", value))

    def direction(self, feature: int) -> np.ndarray:
        """What one unit of a feature adds to the value (d_model): for `wb.steer(sae.direction(7), 4.0)`.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> sae.direction(7).shape
        (128,)

        Raises SelectionError for a feature that does not exist.
        """
        row = self.W_dec[check_index("feature", feature, self.d_sae)]
        return (row / row.norm() if self.rescaled else row).cpu().numpy()

    def rows(self, x: "Tensor") -> Iterator["Tensor"]:
        """x (… d_model) in chunks of rows whose feature activations fit into memory."""
        x = with_width("x", x, self.d_model)
        return iter(x.reshape(-1, x.shape[-1]).split(max(1, MAX_ELEMENTS_PER_PASS // self.d_sae)))


def identity(site: str, d_model: int) -> SAE:
    """A lossless SAE for tests: two features per value of the input, for its positive and its negative part.

    >>> identity("blocks.2.hook_resid_post", 128)
    <SAE 256 features of blocks.2.hook_resid_post, 128 wide, relu>
    """
    import torch

    eye = torch.eye(check_whole("d_model", d_model, 1, MAX_WIDTH))
    return SAE(site, torch.cat([eye, -eye], 1), W_dec=torch.cat([eye, -eye]))


@dataclass(frozen=True)
class Splice:
    """The edit of `SAE.splice`."""

    sae: SAE
    error: bool

    def __call__(self, x: "Tensor", hook) -> "Tensor":
        return _edit_features(self.sae, x, hook, lambda features: features, self.error)


@dataclass(frozen=True)
class Clamp:
    """The edit of `SAE.ablate` and `SAE.steer`."""

    sae: SAE
    features: tuple[int, ...]
    value: float

    def __call__(self, x: "Tensor", hook) -> "Tensor":
        import torch

        def change(features: "Tensor") -> "Tensor":
            return features.index_fill(-1, torch.tensor(self.features, device=features.device), self.value)

        return _edit_features(self.sae, x, hook, change, True)


def _edit_features(sae: SAE, x: "Tensor", hook, change: Callable[["Tensor"], "Tensor"], error: bool) -> "Tensor":
    """The value with its features changed.

    With `error`, the change of the features is decoded and added to x, which equals reconstruction plus error. Where
    no feature changes, the result is x to the last bit.
    """
    import torch

    if hook.name != sae.site:
        raise EditError(
            f"this SAE is for {sae.site!r} and was used at {hook.name!r}; use sae.at({hook.name!r}) if that is intended"
        )
    if x.shape[-1] != sae.d_model:
        raise EditError(f"{hook.name!r} has {x.shape[-1]} values per position; the SAE needs {sae.d_model}")
    chunks = []
    for part in sae.rows(x):
        features = sae.encode(part)
        changed = change(features)
        if error:
            new = part.to(features) + sae.decode_linear(changed - features) * sae.scale(part)
        else:
            new = sae.decode(changed, part)
        chunks.append(new.to(x))
    return torch.cat(chunks).reshape(x.shape)


def features(trace: Trace, sae: SAE) -> xr.DataArray:
    """Which features are active where, and how strongly: one row for each nonzero activation (activation).

    The coordinates `pos` and `feature` say which. Positions are in order, the strongest feature of each first.

    >>> sae = identity("blocks.2.hook_resid_post", 128)
    >>> active = features(trace, sae)
    >>> active.dims, int((active["pos"] == 9).sum())  # number of active features at position 9
    (('activation',), 128)

    Raises NotRecorded if the trace does not hold the site, CheckpointError if it has another width.
    """
    check_type("features", trace, Trace)
    check_type("features", sae, SAE)
    values, pos, feature_ids = [], [], []
    for start, part in _parts(trace, sae):
        active = sae.encode(part).cpu().numpy()
        rows, columns = active.nonzero()
        order = np.lexsort((columns, -active[rows, columns], rows))
        values.append(active[rows, columns][order])
        pos.append(start + rows[order])
        feature_ids.append(columns[order])
    coords = {"pos": ("activation", np.concatenate(pos)), "feature": ("activation", np.concatenate(feature_ids))}
    attrs = _about(sae) | {"long_name": "feature activation", "units": "activation", "n": len(trace)}
    return xr.DataArray(np.concatenate(values), coords, ("activation",), attrs=attrs)


def reconstruction(trace: Trace, sae: SAE) -> xr.Dataset:
    """How well an SAE reconstructs a trace, for each token (pos).

    Returns a Dataset over (pos):
    `fvu`, fraction of variance unexplained: squared error over the squared distance from the mean of all positions;
    `cosine` of value and reconstruction;
    `l0`, the number of active features;
    `norm` and `error`, the lengths of the value and of the reconstruction error.
    `attrs["fvu"]` is that of all tokens, with sums taken before dividing. The first token of a text can be hundreds of
    times as long as the others and dominate this sum, so look at both. A small error does not show that the model works
    as well with the reconstruction: see `splice_cost`.

    >>> sae = identity("blocks.2.hook_resid_post", 128)
    >>> quality = reconstruction(trace, sae)
    >>> quality.attrs["fvu"], int(quality["l0"].max())
    (0.0, 128)

    Raises NotRecorded if the trace does not hold the site, CheckpointError if it has another width.
    """
    check_type("reconstruction", trace, Trace)
    check_type("reconstruction", sae, SAE)
    x = np.asarray(_values(trace, sae), np.float64)
    chunks, l0 = [], []
    for _, part in _parts(trace, sae):
        active = sae.encode(part)
        l0.append((active != 0).sum(-1).cpu().numpy())
        chunks.append(sae.decode(active, part).double().cpu().numpy())
    reconstructed = np.concatenate(chunks)
    error, spread = ((x - y) ** 2 for y in (reconstructed, x.mean(0)))
    error, spread = error.sum(-1), spread.sum(-1)
    norm = np.linalg.norm(x, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        data = {
            "fvu": error / spread,
            "cosine": (x * reconstructed).sum(-1) / norm / np.linalg.norm(reconstructed, axis=-1),
            "l0": np.concatenate(l0),
            "norm": norm,
            "error": np.sqrt(error),
        }
        attrs = _about(sae) | {"fvu": float(error.sum() / spread.sum()), "n": len(x)}
    dataset = xr.Dataset({k: ("pos", v) for k, v in data.items()}, {"pos": np.arange(len(x))}, attrs)
    return with_units(dataset, "1", l0="features", norm="activation", error="activation")


def splice_cost(model: "Model", trace: Trace, sae: SAE) -> xr.Dataset:
    """How much predictions change when the model continues from the reconstruction, without the error term (pos).

    `kl` is KL(unedited || spliced) of the prediction at each position, in nats. `kl_zero` is the baseline: the same
    with zeros in place of the value. 1 - kl.mean() / kl_zero.mean() is the share recovered.

    >>> sae = identity("blocks.2.hook_resid_post", 128)
    >>> cost = splice_cost(model, trace, sae)
    >>> float(cost["kl"].max()), bool((cost["kl_zero"] > 0).all())
    (0.0, True)

    Raises EditError if the model has another width, HookNameError if it does not have the site.
    """
    import torch

    from workbench.experiments.cached_run import CachedRun, divergence
    from workbench.model.model import Model

    check_type("splice_cost", model, Model)
    check_type("splice_cost", trace, Trace)
    check_type("splice_cost", sae, SAE)
    n = model.config.n_layers
    kls = {}
    with model.interruptible() as flag, torch.inference_mode():
        unedited = CachedRun(model, trace.tokens).resid(n)
        for name, fn in (("kl", sae.splice()), ("kl_zero", torch.zeros_like)):
            flag.check()
            with model.edit(sae.site, fn):
                edited = CachedRun(model, trace.tokens).resid(n)
            kls[name] = divergence(model, unedited, edited)[0].double().cpu().numpy()
    dataset = xr.Dataset({k: ("pos", v) for k, v in kls.items()}, {"pos": np.arange(len(trace))}, _about(sae))
    return with_units(dataset, "nats")


def _about(sae: SAE) -> dict[str, Any]:
    return {"site": sae.site, "n_features": sae.d_sae, "sae": sae.digest}


def _values(trace: Trace, sae: SAE) -> np.ndarray:
    x = trace[sae.site]
    if x.shape[-1] != sae.d_model:
        raise CheckpointError(
            f"the SAE needs {sae.d_model} values per position and {sae.site!r} of this trace has {x.shape[-1]}; "
            f"it was trained on another model than {visible(trace.manifest.model['name'])}"
        )
    return x


def _parts(trace: Trace, sae: SAE) -> Iterator[tuple[int, "Tensor"]]:
    import torch

    start = 0
    for part in sae.rows(torch.tensor(_values(trace, sae)).to(sae.W_enc)):
        yield start, part
        start += len(part)
