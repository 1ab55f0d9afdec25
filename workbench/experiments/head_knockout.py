"""Head knockout: how much less likely written tokens become if one head is removed, for every head of a model."""

import os
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import hooks
from workbench.checks import check_choice, check_count, check_seed, check_type
from workbench.errors import EditError
from workbench.experiments.activation_patching import token_id
from workbench.experiments.attention_knockout import Places, positions_of, selected_layers
from workbench.experiments.cached_run import CachedRun
from workbench.experiments.checkpoint import SweepCheckpoint, model_inputs
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import unembed
from workbench.model.kernels.rows import log_softmax
from workbench.model.model import Model
from workbench.progress import progress_bar
from workbench.recording.taps import Recorder
from workbench.taps import Chain, Tap
from workbench.traces import Trace

MODES = ("zero", "mean")
MAX_ELEMENTS_PER_PASS = 1 << 22  # elements of one residual stream in a pass, at most
MAX_LOGITS_PER_PASS = 1 << 26


def head_knockout(
    model: Model,
    trace: Trace,
    answer: Places,
    other: str | int | None = None,
    *,
    layers: str | Sequence[int] = "all",
    mode: str = "zero",
    n_controls: int = 1,
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """How much less likely the tokens `answer` become if a head is removed, for each head, beside random changes.

    One head at a time is removed at all positions, and the text is run again with its tokens unchanged. The effect is
    total: later layers respond. A head whose work another one takes over has a small effect. As `control`, the head
    stays, and at each position a random vector as long as its change is added to the output of attention.

    Args:
        model: the model.
        trace: the text.
        answer: the tokens that are to become less likely: a step, message, slice (as from `trace.find`), position, or a
            sequence of these.
        other: another token, as text or id; then the logit difference of each token of `answer` and this one is
            measured.
        layers: "all", "full", "sliding", or layer numbers.
        mode: "zero" sets the output of the head to 0; "mean" to its mean over the positions of this text.
        n_controls: number of random changes for each head.
        seed: of the random changes.
        resume: a file that keeps finished layers. The same call continues from it after an interruption.

    Returns:
        Dataset over (layer head):
        `effect`, by how much the log-probability of the tokens falls, in nats, or the logit difference, in logits; the
        mean over the tokens. Above 0, the head supports them;
        `control` (control layer head), the same for the random changes.
        `attrs` of both: `n`, the number of tokens. `attrs` of `effect`: `plain`, the mean over the tokens without a
        change; `null` and `null_sd`, mean and standard deviation of the controls.

    >>> trace = model.generate(wb.chat("What is 12+30?"))
    >>> found = wb.patching.head_knockout(model, trace, trace.find("42")[-1])
    >>> found["effect"].dims, found["effect"].attrs["units"], found["control"].dims
    (('layer', 'head'), 'nats', ('control', 'layer', 'head'))
    >>> wb.figures.heatmap(found["effect"]).note
    'n = 2.'

    Raises:
        EditError: no layer, or nothing comes before the tokens.
        ArgumentError: another mode.
        SelectionError: a layer or position that does not exist.
        PromptError: `other` is not exactly one token.
        ResumeError: the file holds another sweep, or is damaged.
        FileError: the file cannot be written.
    """
    check_type("head_knockout", model, Model)
    check_type("head_knockout", trace, Trace)
    layer_ids, mode = selected_layers(model, layers), check_choice("mode", mode, MODES)
    n_controls, seed = check_count("n_controls", n_controls, 0), check_seed(seed)
    written = positions_of(answer, len(trace))
    if written[0] == 0:
        raise EditError("answer holds position 0, which nothing predicts; leave it out")
    other_id = None if other is None else token_id(model, other)
    c, tokens = model.config, trace.tokens
    inputs = {"what": "head_knockout", "tokens": tokens[: written[-1] + 1], "written": written, "other": other_id}
    inputs |= {"layers": layer_ids, "mode": mode, "n_controls": n_controls, "seed": seed}
    points = [hooks.at_layer("blocks.*.attn.hook_z", layer) for layer in layer_ids]
    last = hooks.at_layer("blocks.*.hook_resid_post", c.n_layers - 1)
    values = np.zeros((1 + n_controls, len(layer_ids), c.n_heads))
    with (
        model.interruptible() as flag,
        torch.inference_mode(),
        SweepCheckpoint(resume, model_inputs(model) | inputs, shape=(1 + n_controls, c.n_heads)) as cells,
        progress_bar(desc="removing heads", unit="head", total=len(layer_ids) * c.n_heads) as bar,
    ):
        base = CachedRun(model, tokens[: written[-1]], points)
        score = _Score(model, written, [tokens[pos] for pos in written], other_id)
        plain = float(score(base.resid(c.n_layers))[0])
        rows = max(1, min(MAX_ELEMENTS_PER_PASS // (len(base) * c.d_model), score.max_rows))
        for number, layer in enumerate(layer_ids):
            if number not in cells:
                found = np.zeros((1 + n_controls, c.n_heads))
                changes = [(control, head) for head in range(c.n_heads) for control in range(1 + n_controls)]
                for start in range(0, len(changes), rows):
                    flag.check()
                    batch = changes[start : start + rows]
                    recorder = Recorder([last], device=model.device)
                    tap = Chain(_Changes(base, layer, batch, mode, seed), recorder)
                    resid = base.resid(layer).expand(len(batch), -1, -1)
                    model.forward_from(resid, layer, tap, KVCache(c), slice(0, 0))
                    for at, value in zip(batch, score(recorder[last])):
                        found[at] = plain - value
                cells.put(number, found)
            values[:, number] = cells[number]
            bar.update(c.n_heads)
    coords = {"layer": layer_ids, "head": np.arange(c.n_heads)}
    data = {"effect": (("layer", "head"), values[0]), "control": (("control", "layer", "head"), values[1:])}
    dataset = xr.Dataset(data, coords, {"mode": mode, "seed": seed, "n": len(written)})
    unit, label = (
        ("nats", "fall of the log-probability") if other is None else ("logits", "fall of the logit difference")
    )
    for name in ("effect", "control"):
        dataset[name].attrs = {"long_name": label, "units": unit, "n": len(written)}
    null = {"null": float(values[1:].mean()), "null_sd": float(values[1:].std())} if n_controls else {}
    dataset["effect"].attrs |= {"plain": plain} | null
    return dataset


class _Score:
    """The mean log-probability of the written tokens, or the mean logit difference, for each row of a pass."""

    def __init__(self, model: Model, written: Sequence[int], tokens: Sequence[int], other: int | None):
        self.model, self.other = model, other
        self.predicting = torch.tensor(written, device=model.device) - 1
        self.tokens = torch.tensor(tokens, device=model.device)
        self.max_rows = MAX_LOGITS_PER_PASS // (len(written) * model.config.d_vocab)

    def __call__(self, resid: Tensor) -> np.ndarray:
        logits = unembed(self.model.config, self.model.weights, resid[:, self.predicting]).float()
        values = log_softmax(logits) if self.other is None else logits - logits[..., self.other, None]
        written = values.gather(-1, self.tokens.expand(len(resid), -1)[..., None])
        return written.double().mean((1, 2)).cpu().numpy()


class _Changes(Tap):
    """In row i of the pass, a head is removed, or a random vector as long as the change is added instead."""

    def __init__(self, base: CachedRun, layer: int, changes: Sequence[tuple[int, int]], mode: str, seed: int):
        self.changes, self.layer, self.seed = changes, layer, seed
        self.z_point, self.out_point = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out"
        self.z = base.seen[self.z_point][0]  # (pos head d_head)
        self.new = self.z.mean(0, keepdim=True).expand_as(self.z) if mode == "mean" else torch.zeros_like(self.z)
        c, block = base.model.config, base.model.weights.blocks[layer]
        self.w_o = block.whole("w_o").reshape(c.d_model, c.n_heads, c.d_head)

    def wants(self, name: str) -> bool:
        return name in (self.z_point, self.out_point)

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name == self.z_point:
            x = x.clone()
            for row, (control, head) in enumerate(self.changes):
                if control == 0:
                    x[row, :, head] = self.new[offset : offset + x.shape[1], head]
        elif name == self.out_point and any(control for control, _ in self.changes):
            x = x.clone()
            for row, (control, head) in enumerate(self.changes):
                if control:
                    x[row] += self._random(control, head)[offset : offset + x.shape[1]].to(x.dtype)
        return x

    def _random(self, control: int, head: int) -> Tensor:
        """Random vectors (pos d_model), as long as the change of the attention output if the head is removed."""
        change = (self.new - self.z)[:, head].float() @ self.w_o[:, head].float().T
        rng = np.random.default_rng((self.seed, self.layer, head, control))
        random = torch.as_tensor(rng.standard_normal(change.shape, np.float32), device=change.device)
        return random * (change.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True))
