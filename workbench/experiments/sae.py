"""Sparse autoencoders: a trace in their features, edits by feature, and what a reconstruction costs the model.

With

    a = activation((n(x) - b_dec) @ W_enc + b_enc)      x' = n⁻¹(a @ W_dec + b_dec)

n is nothing, a layer norm or a scaling to length √d_model; the activation is ReLU, JumpReLU (a feature below its
threshold is 0) or TopK. BatchTopK chooses among the features of a whole batch while it is trained; in use it is the
JumpReLU whose threshold training left, so that a token's features do not hang on the texts beside it.
Knows no file formats: those of other libraries are read by `interop/sae_formats.py`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench import hooks
from workbench.checks import check_index
from workbench.errors import ArgumentError, CheckpointError, EditError, HookNameError
from workbench.text import visible
from workbench.traces import Trace

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.model.model import Model

NORMS = ("none", "layer_norm", "constant_norm_rescale")
MAX_ELEMENTS_PER_PASS = 1 << 24  # features computed at a time, at most
EPS = 1e-5

_ELSEWHERE = (  # what others call a place where d_model numbers pass; {0} is the layer
    (r"(?:model\.)?layers\.(\d+)", "blocks.{0}.hook_resid_post"),
    (r"(?:model\.)?layers\.(\d+)\.self_attn", "blocks.{0}.hook_attn_out"),
    (r"(?:model\.)?layers\.(\d+)\.mlp", "blocks.{0}.hook_mlp_out"),
    (r"(?:model\.)?layers\.(\d+)\.input_layernorm", "blocks.{0}.ln1.hook_normalized"),
    (r"(?:model\.)?layers\.(\d+)\.post_attention_layernorm", "blocks.{0}.ln2.hook_normalized"),
    (r"resid_post_layer_(\d+)(?:[_/]trainer_\d+)?", "blocks.{0}.hook_resid_post"),  # andyrdt, dictionary_learning
    (r"(\d+)-resid-post-\w+", "blocks.{0}.hook_resid_post"),  # Neuronpedia
)


def site_of(name: str) -> str:
    """The hook point that a site of somebody else's is: TransformerLens's name, a module of transformers, a source of
    Neuronpedia, a folder of the published SAEs.

    >>> site_of("model.layers.3"), site_of("resid_post_layer_7_trainer_0"), site_of("11-resid-post-aa")
    ('blocks.3.hook_resid_post', 'blocks.7.hook_resid_post', 'blocks.11.hook_resid_post')

    Raises HookNameError for a name that is none of these, and for a place where not d_model numbers a position pass.
    """
    for pattern, ours in _ELSEWHERE:
        if found := re.fullmatch(pattern, name):
            return ours.format(int(found[1]))
    if hooks.axes(name) != ("pos", "d_model") or "*" in name:
        raise HookNameError(
            f"{name!r} holds {' '.join(hooks.axes(name))}. An SAE here reads d_model numbers a position of one layer, "
            f"as at 'blocks.3.hook_resid_post'."
        )
    return name


class SAE:
    """A sparse autoencoder: `d_sae` features for the `d_model` numbers a position at one `site`, in float32.

    `W_enc` (d_model feature), `b_enc` (feature), `W_dec` (feature d_model), `b_dec` (d_model), `threshold` (feature, or
    None); `k` features at most, or None; `digest` of all that decides what it gives. `model.edit(sae.site, …)` takes
    `sae.splice()`, `sae.ablate(7)` and `sae.steer(7, 4.0)`.

    >>> import torch
    >>> SAE("blocks.2.hook_resid_post", torch.ones(128, 512), W_dec=torch.ones(512, 128), k=3)
    <SAE 512 features of blocks.2.hook_resid_post, 128 wide, top 3>

    Raises CheckpointError if the shapes do not fit each other or a number is not finite, HookNameError for the site.
    """

    # Tensors lie outside __dict__: an edit is told from another by what is in it (`edits.fingerprint`), and there
    # the digest stands for them, so that gigabytes are hashed once and not in every run.
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
        self.k, self.norm = k, norm
        self.subtracts = subtracts  # b_dec is taken from what is read
        self.rescaled = rescaled  # features are in units of their decoder row's length
        if W_enc.ndim != 2 or W_dec.shape != W_enc.shape[::-1]:
            raise CheckpointError(f"W_enc is {list(W_enc.shape)} and W_dec {list(W_dec.shape)}: they do not fit")
        self.d_model, self.d_sae = W_enc.shape
        zero = W_enc.new_zeros(1)
        vectors = {
            "b_enc": (zero if b_enc is None else b_enc, self.d_sae),
            "b_dec": (zero if b_dec is None else b_dec, self.d_model),
            "threshold": (zero if threshold is None else torch.as_tensor(threshold), self.d_sae),
        }
        for name, (vector, width) in vectors.items():
            if vector.numel() != 1 and vector.shape != (width,):
                raise CheckpointError(f"{name} is {list(vector.shape)}; with these matrices it is [{width}]")
        self.W_enc, self.W_dec = W_enc.float(), W_dec.float().contiguous()  # rows of W_dec are read one by one
        self.b_enc, self.b_dec, limits = (v.float().to(W_enc.device).expand(n) for v, n in vectors.values())
        self.threshold = None if threshold is None else limits
        every = {
            "W_enc": self.W_enc,
            "W_dec": self.W_dec,
            "b_enc": self.b_enc,
            "b_dec": self.b_dec,
            "threshold": limits,
        }
        bad = [name for name, tensor in every.items() if not bool(tensor.isfinite().all())]
        if bad:
            raise CheckpointError(f"{bad[0]} holds NaN or infinity")
        if norm not in NORMS:
            raise CheckpointError(f"norm is one of {', '.join(NORMS)}, not {norm!r}")
        if k is not None and not 0 < k <= self.d_sae:
            raise CheckpointError(f"{k} of {self.d_sae} features cannot be kept")
        self.digest = fingerprint([every, threshold is None, k, subtracts, rescaled, norm])

    def __repr__(self) -> str:
        kind = f"top {self.k}" if self.k else "relu" if self.threshold is None else "jumprelu"
        return f"<SAE {self.d_sae} features of {self.site}, {self.d_model} wide, {kind}>"

    def at(self, site: str) -> "SAE":
        """The same autoencoder for another site: nothing is refused there that fits in width.

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
        """The features of x (… d_model): … feature, 0 where one is silent.

        >>> import torch
        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> sae.encode(torch.tensor(trace["resid_post", 2])).shape == (len(trace), sae.d_sae)
        True
        """
        x = self._normed(x)[0]
        pre = (x - self.b_dec if self.subtracts else x) @ self.W_enc + self.b_enc
        if self.rescaled:
            pre = pre * self._lengths()
        if self.k is not None:
            best = pre.topk(self.k, dim=-1)
            return pre.new_zeros(pre.shape).scatter(-1, best.indices, best.values.relu())
        return pre.relu() if self.threshold is None else pre.relu() * (pre > self.threshold)

    def decode(self, features: "Tensor", x: "Tensor | None" = None) -> "Tensor":
        """What features (… feature) stand for: … d_model. `x`, which they were read from, gives back the scale that a
        norm took; without a norm it is not needed.

        >>> import torch
        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> x = torch.tensor(trace["resid_post", 2])
        >>> bool((sae.decode(sae.encode(x)) == x).all())  # this one keeps every number, and minus it
        True
        """
        made = self.written(features) + self.b_dec
        if self.norm == "none":
            return made
        if x is None:
            raise ArgumentError(f"this SAE normalizes its input by {self.norm}: give decode the x that was encoded.")
        _, scale, shift = self._normed(x)
        return made * scale + shift

    def written(self, features: "Tensor") -> "Tensor":
        """The rows of W_dec that features (… feature) add up to, before bias and scale: … d_model.

        >>> import torch
        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> float(sae.written(2 * torch.eye(256)[7]).sum())
        2.0
        """
        from torch.nn.functional import embedding_bag

        if self.rescaled:
            features = features / self._lengths()
        flat = features.reshape(-1, self.d_sae)
        active = flat != 0
        counts = active.sum(-1)
        if int(counts.sum()) * 16 > flat.numel():
            return features @ self.W_dec
        row, number = active.nonzero(as_tuple=True)  # few of many: their rows are read, and no others
        bags = {"offsets": counts.cumsum(0) - counts, "mode": "sum", "per_sample_weights": flat[row, number]}
        return embedding_bag(number, self.W_dec, **bags).reshape(*features.shape[:-1], self.d_model)

    def _lengths(self) -> "Tensor":
        return self.W_dec.norm(dim=-1).clamp(min=1e-30)  # a row of zeros writes nothing, and is no reason for a NaN

    def scale(self, x: "Tensor") -> Any:
        """What a norm divides x by, on its way in: 1 where there is none."""
        return self._normed(x)[1]

    def _normed(self, x: "Tensor") -> tuple["Tensor", Any, Any]:
        """What is read of x, and the scale and shift that it lost."""
        x = x.to(self.W_enc)
        if self.norm == "layer_norm":  # SAELens's: std with n - 1, eps outside of the root
            shift = x.mean(-1, keepdim=True)
            scale = (x - shift).std(-1, keepdim=True)
            return (x - shift) / (scale + EPS), scale, shift
        if self.norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_model**0.5
            return x / scale, scale, 0.0
        return x, 1.0, 0.0

    # Edits: for model.edit(sae.site, …).

    def splice(self, *, error: bool = False) -> "Splice":
        """An edit that puts the reconstruction in the place of the value: what is lost then, the SAE does not hold.

        With `error`, what the reconstruction misses is added again: no number changes, and the features may be edited.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> with model.edit(sae.site, sae.splice(error=True)): same = model.trace(trace)
        >>> same.edits[0]["n_positions"] == len(trace), same.edits[0]["n_changed_calls"]
        (True, 0)
        """
        return Splice(self, error)

    def ablate(self, feature: int | Sequence[int]) -> "Clamp":
        """An edit that silences features: what they wrote is taken out, all else stays, the reconstruction's error too.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> with model.edit(sae.site, sae.ablate([7, 200])): without = model.trace(trace)

        Raises SelectionError for a feature that there is not.
        """
        return self.steer(feature, 0.0)

    def steer(self, feature: int | Sequence[int], value: float) -> "Clamp":
        """An edit that sets features to `value` at every position, and leaves all else; see also `direction`.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> with model.edit(sae.site, sae.steer(7, 4.0), positions=slice(20, None)): pushed = model.trace(trace)

        Raises SelectionError for a feature that there is not, EditError for none and for a value that is not finite.
        """
        several = [feature] if np.ndim(feature) == 0 else feature
        wanted = tuple(check_index("feature", each, self.d_sae) for each in several)  # pyright: ignore[reportGeneralTypeIssues]
        if not wanted:
            raise EditError("feature is empty: give at least one feature.")
        if not np.isfinite(value):
            raise EditError(f"a feature is set to a finite value, not {value}")
        return Clamp(self, wanted, float(value))

    def direction(self, feature: int) -> np.ndarray:
        """What one unit of a feature writes (d_model): for `wb.steer(sae.direction(7), 4.0)`, which adds to it.

        >>> sae = identity("blocks.2.hook_resid_post", 128)
        >>> sae.direction(7).shape
        (128,)

        Raises SelectionError for a feature that there is not.
        """
        [feature] = self.ablate(feature).features
        row = self.W_dec[feature]
        return (row / row.norm() if self.rescaled else row).cpu().numpy()

    def rows(self, x: "Tensor") -> Iterator["Tensor"]:
        """x (… d_model) in parts of few enough rows that their features fit the memory."""
        return iter(x.reshape(-1, x.shape[-1]).split(max(1, MAX_ELEMENTS_PER_PASS // self.d_sae)))


def identity(site: str, d_model: int) -> SAE:
    """An SAE that loses nothing: every number is one feature, and its opposite another. To try things with.

    >>> identity("blocks.2.hook_resid_post", 128)
    <SAE 256 features of blocks.2.hook_resid_post, 128 wide, relu>
    """
    import torch

    eye = torch.eye(d_model)
    return SAE(site, torch.cat([eye, -eye], 1), W_dec=torch.cat([eye, -eye]))


@dataclass(frozen=True)
class Splice:
    """The edit of `SAE.splice`."""

    sae: SAE
    error: bool

    def __call__(self, x: "Tensor", hook) -> "Tensor":
        return _through(self.sae, x, hook, lambda features: features, self.error)


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

        return _through(self.sae, x, hook, change, True)


def _through(sae: SAE, x: "Tensor", hook, change: Callable[["Tensor"], "Tensor"], error: bool) -> "Tensor":
    """The value with its features changed. The error term is never formed: x and what the change of features writes
    are the same sum, and where no feature changes it is x to the last bit.
    """
    import torch

    if hook.name != sae.site:
        raise EditError(
            f"this SAE reads {sae.site!r} and was put at {hook.name!r}; sae.at({hook.name!r}) if that is meant"
        )
    if x.shape[-1] != sae.d_model:
        raise EditError(f"{hook.name!r} has {x.shape[-1]} numbers a position; the SAE reads {sae.d_model}")
    made = []
    for part in sae.rows(x):
        features = sae.encode(part)
        changed = change(features)
        if error:
            new = part.to(features) + sae.written(changed - features) * sae.scale(part)
        else:
            new = sae.decode(changed, part)
        made.append(new.to(x))
    return torch.cat(made).reshape(x.shape)


def features(trace: Trace, sae: SAE) -> xr.DataArray:
    """Which features fire where, and how strongly (activation): one row for each that is not 0.

    The coordinates `pos` and `feature` say which; positions in order, the strongest feature of each first.

    >>> sae = identity("blocks.2.hook_resid_post", 128)
    >>> found = features(trace, sae)
    >>> found.dims, int((found["pos"] == 9).sum())  # features that fire at position 9
    (('activation',), 128)

    Raises NotRecorded if the trace does not hold the site, CheckpointError if it is of another width.
    """
    value, pos, number = [], [], []
    for start, part in _parts(trace, sae):
        active = sae.encode(part).cpu().numpy()
        at, which = active.nonzero()
        order = np.lexsort((which, -active[at, which], at))
        value.append(active[at, which][order])
        pos.append(start + at[order])
        number.append(which[order])
    coords = {"pos": ("activation", np.concatenate(pos)), "feature": ("activation", np.concatenate(number))}
    attrs = _about(sae) | {"long_name": "feature activation", "n": len(trace)}
    return xr.DataArray(np.concatenate(value), coords, ("activation",), attrs=attrs)


def reconstruction(trace: Trace, sae: SAE) -> xr.Dataset:
    """How much of a trace an SAE holds, token by token (pos).

    `fvu`, the fraction of variance unexplained: the squared error over the squared distance from the mean of all
    positions; `cosine` of value and reconstruction; `l0`, how many features fire; `norm` and `error`, the lengths of
    the value and of what is missing. `attrs["fvu"]` is that of all tokens, summed before it is divided. The first token
    of a text can be hundreds of times as long as the others and decide such a sum: look at both.

    >>> sae = identity("blocks.2.hook_resid_post", 128)
    >>> held = reconstruction(trace, sae)
    >>> held.attrs["fvu"], int(held["l0"].max())
    (0.0, 128)

    Raises NotRecorded if the trace does not hold the site, CheckpointError if it is of another width.
    """
    x = np.asarray(_values(trace, sae), np.float64)
    made, l0 = [], []
    for _, part in _parts(trace, sae):
        active = sae.encode(part)
        l0.append((active != 0).sum(-1).cpu().numpy())
        made.append(sae.decode(active, part).double().cpu().numpy())
    again = np.concatenate(made)
    error, spread = ((x - y) ** 2 for y in (again, x.mean(0)))
    error, spread = error.sum(-1), spread.sum(-1)
    norm = np.linalg.norm(x, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        data = {
            "fvu": error / spread,
            "cosine": (x * again).sum(-1) / norm / np.linalg.norm(again, axis=-1),
            "l0": np.concatenate(l0),
            "norm": norm,
            "error": np.sqrt(error),
        }
        attrs = _about(sae) | {"fvu": float(error.sum() / spread.sum()), "n": len(x)}
    return xr.Dataset({k: ("pos", v) for k, v in data.items()}, {"pos": np.arange(len(x))}, attrs)


def splice_cost(model: "Model", trace: Trace, sae: SAE) -> xr.Dataset:
    """What the model loses when it goes on from the reconstruction, without the error term (pos).

    `kl` is KL(as it was || spliced) of the predictions made at each position, in nats; `kl_zero` the same with zeros in
    its place, for scale: 1 - kl.mean() / kl_zero.mean() is the share that is recovered.

    >>> sae = identity("blocks.2.hook_resid_post", 128)
    >>> cost = splice_cost(model, trace, sae)
    >>> float(cost["kl"].max()), bool((cost["kl_zero"] > 0).all())
    (0.0, True)

    Raises EditError if the model is of another width, HookNameError if it has not the site.
    """
    import torch

    from workbench.experiments.cached_run import CachedRun, divergence

    n = model.config.n_layers
    found = {}
    with model.interruptible() as flag, torch.inference_mode():
        plain = CachedRun(model, trace.tokens).resid(n)
        for name, fn in (("kl", sae.splice()), ("kl_zero", torch.zeros_like)):
            flag.check()
            with model.edit(sae.site, fn):
                other = CachedRun(model, trace.tokens).resid(n)
            found[name] = divergence(model, plain, other)[0].double().cpu().numpy()
    made = xr.Dataset({k: ("pos", v) for k, v in found.items()}, {"pos": np.arange(len(trace))}, _about(sae))
    for name in found:
        made[name].attrs["units"] = "nats"
    return made


def _about(sae: SAE) -> dict[str, Any]:
    return {"site": sae.site, "n_features": sae.d_sae, "sae": sae.digest}


def _values(trace: Trace, sae: SAE) -> np.ndarray:
    x = trace[sae.site]
    if x.shape[-1] != sae.d_model:
        raise CheckpointError(
            f"the SAE reads {sae.d_model} numbers a position and {sae.site!r} of this trace has {x.shape[-1]}: "
            f"it was trained on another model than {visible(trace.manifest.model['name'])}"
        )
    return x


def _parts(trace: Trace, sae: SAE) -> Iterator[tuple[int, "Tensor"]]:
    import torch

    start = 0
    for part in sae.rows(torch.tensor(_values(trace, sae)).to(sae.W_enc)):
        yield start, part
        start += len(part)
