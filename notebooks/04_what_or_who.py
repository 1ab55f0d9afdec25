# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% title [markdown]
# # What or who?
#
# Hide a step of a chain of thought, and later steps change. In a mixture of experts that can happen in two ways: the
# same experts compute on something else (what), or other experts compute (who). Which is it? And when a method follows
# the gradient, which knows nothing of other experts, does it fail where they are switched?

# %% ask
import numpy as np
import torch

import workbench as wb
from workbench.studies import first_order, routes  # the two figures of this notebook, and what they measure

model = wb.Model("pocket")
trace = model.generate(wb.chat("List 47298. Do: drop, rotate, reverse.", reasoning="high"))
steps = wb.steps(trace)
print([step.text for step in steps], "|", trace.text(channel="final"))

# %% hide-text [markdown]
# ## Hide a step
#
# `suppression` hides each step from all later ones, in every layer and head, and measures how far what they predict
# moves. With `split_routing=True` it does so twice more, with experts that are held: with the experts and weights of
# the plain run (`content`: what they compute on), and with its experts alone (`reweighting` is what free weights add,
# and `rerouting` what free experts add on top). The three sum to the effect.

# %% hide
found = wb.reasoning.suppression(model, trace, split_routing=True)
print("step x hidden (column), change of step y (row), in nats")
for name in ("effect", "content", "reweighting", "rerouting"):
    print(f"{name}\n{found[name].values.round(2)}")

# %% view-text [markdown]
# The same as a matrix and as arcs; the menu of the view chooses the part. `routing` is the share of experts that are
# others: a matrix of its own, and nearly the same pattern.

# %% view
wb.views.steps(trace, {name: found[name] for name in ("effect", "content", "rerouting", "routing")})

# %% who-text [markdown]
# ## Who, without what
#
# The split takes "what" first. The other order can be run too: read the text with nothing hidden, but with the experts
# that ran while the second step was hidden. One edit hides, another holds; each is a function of the value at a hook
# point. What counts is the log-probability of the first token of the third step that the second one decides.

# %% who
hidden, later = steps[1], steps[2]
value = next(i for i in range(later.start, later.stop) if trace.str_tokens[i].isdigit())
after = slice(hidden.stop, len(trace))


def hide(x, hook):
    return x.index_fill(-1, torch.arange(hidden.start, hidden.stop), -torch.inf)


def held(source):
    experts = torch.tensor(np.array(source["expert_indices"]))
    return lambda x, hook: experts[hook.layer, hook.positions.start : hook.positions.stop].expand_as(x).clone()


scores, chosen = "blocks.*.attn.hook_attn_scores", "blocks.*.mlp.hook_expert_indices"
plain = model.trace(trace, record="")
with model.edit(scores, hide, positions=after):
    blind = model.trace(trace, record="")
    with model.edit(chosen, held(plain)):
        what = model.trace(trace, record="")
with model.edit(chosen, held(blind)):
    who = model.trace(trace, record="")
for name, run in (
    ("nothing hidden", plain),
    ("hidden", blind),
    ("hidden, experts of the plain run", what),
    ("nothing hidden, experts of the hidden run", who),
):
    print(f"{name:42} log p({trace.str_tokens[value]!r}) = {run['logprob'][value]:.2f}")
other = (plain["expert_indices"][..., None] == blind["expert_indices"][..., None, :]).any(-1)[
    :, later.start : later.stop
]
print(f"{1 - other.mean():.0%} of the experts of that step are others when the one before is hidden")

# %% many-text [markdown]
# ## Over problems
#
# `routes.measure` does the split on held-out problems of three families, for the pairs of steps in which the later one
# truly uses the hidden one; the true graph is known. The claim was made on other problems (`seed="figures"`).

# %% many
split = routes.measure(model)
print(f"n = {split.attrs['n']} problems a family; nats, and the share of the later step's experts that are others")
for family in split["family"].values:
    mean = wb.statistics.mean_interval(split["parts"].sel(family=family).values.T)
    moved = wb.statistics.mean_interval(split["shift"].sel(family=family).values.T)
    for part, value, low, high in zip(split["part"].values, *mean[:3]):
        print(f"{family:10} {part:14} {value:+.3f} ({low:+.3f} to {high:+.3f})")
    for pair, value, low, high in zip(split["pair"].values, *moved[:3]):
        print(f"{family:10} {pair:14} {value:.0%} ({low:.0%} to {high:.0%})")

# %% headline
shares = {}
for family in split["family"].values:
    nats = split["parts"].sel(family=family).values  # part problem
    shares[family] = wb.statistics.bootstrap_interval(
        lambda at, nats=nats: nats[:, at].mean(1) / nats[:, at].sum(0).mean(), nats.shape[1]
    )
    low, high = shares[family].low, shares[family].high
    for i, part in enumerate(split["part"].values):
        print(f"{family:10} {part:14} {shares[family].value[i]:4.0%} of the effect ({low[i]:.0%} to {high[i]:.0%})")
assert all(share.value[0] > 0.7 for share in shares.values()), shares  # what
assert all(share.value[2] < 0.3 for share in shares.values()), shares  # who
assert abs(shares["hops"].value[0] - 0.80) < 0.12, shares["hops"]
assert abs(shares["hops"].value[2] - 0.17) < 0.12, shares["hops"]
moved = wb.statistics.mean_interval(split["shift"].sel(pair="it uses it").mean("family").values)
assert abs(moved.value - 0.16) < 0.05, moved

# %% split-figure
routes.draw(model)[0]

# %% flips-text [markdown]
# ## The method that does not know
#
# Attribution patching replaces patching by its first order: the difference of two runs times a gradient. Which experts
# run is no smooth function of anything, so the gradient cannot know that a patch would switch them, and
# `attribution_patching` marks the places where the two runs chose others. Here two texts differ in the value of one
# step; the outcome is which value the next step goes on with.

# %% flips
[(clean, corrupted)] = first_order.pairs("lists", 1, 4, "one")
asked = (model, clean[:-1], corrupted[:-1], wb.patching.logit_diff(model, clean[-1], corrupted[-1]))
line, exact = (
    wb.patching.attribution_patching(*asked, site="mlp_out"),
    wb.patching.activation_patching(*asked, site="mlp_out"),
)
flips, error = line["flips"].values, abs(line["effect"] - exact).values
print(f"{flips.mean():.0%} of {flips.size} places have other experts")
print(f"mean error, in shares of the gap: {error[flips].mean():.3f} there, {error[~flips].mean():.3f} elsewhere")

# %% holding-text [markdown]
# Larger errors where routes flip: it is tempting to stop here. But flips come with large changes, and large changes
# bend everything that is not linear. So hold the routes: both texts then use the experts of the corrupted one, in
# patching and in its first order alike, and no route can flip. If flips were the reason, the error would go.

# %% holding
with model.edit(chosen, held(model.trace(corrupted[:-1], record=""))):
    calm, truth = (
        wb.patching.attribution_patching(*asked, site="mlp_out"),
        wb.patching.activation_patching(*asked, site="mlp_out"),
    )
assert not calm["flips"].any()
print(f"with routes held: {abs(calm['effect'] - truth).values[flips].mean():.3f} at the same places")

# %% pairs-text [markdown]
# Over pairs of texts, with intervals over pairs. Again the claim is from `seed="figures"`, the numbers are not.

# %% pairs
places, _ = first_order.measure(model)
sure = first_order.errors(places)
said = {
    "flip": "mean error where routes flip",
    "same": "mean error where they do not",
    "held_flip": "… where they flip, with routes held",
    "flip_share": "error per effect where routes flip",
    "same_share": "error per effect where they do not",
    "saved": "share of the error that holding routes takes off, where they flip",
}
print(f"n = {places.attrs['n']} of {places.attrs['of']} pairs, {places.sizes['place']} places")
for name, text in said.items():
    print(f"{text:66} {sure[name].value:.3f} ({sure[name].low:.3f} to {sure[name].high:.3f})")

# %% pairs-headline
assert sure["flip"].value > 3 * sure["same"].value  # flips mark the places where the method errs
assert sure["saved"].value < 0.35  # and are not the reason
assert sure["same_share"].low < sure["flip_share"].value < sure["same_share"].high  # per effect: cannot be told

# %% finding [markdown]
# **Finding.** More what than who. Hiding a step that a later one uses replaces about a sixth of the later step's
# experts. With the old experts and weights in place, the effect is there all the same: all of it in variables and
# lists, four fifths of it in hops, where other experts add a sixth (6 problems a family, intervals above). Free weights
# do not push one way: in variables they take some of the effect off. Routes are a good *trace* of what a step depends
# on, and a small part of the *cause*.
#
# The same holds of the method that ignores them. Attribution patching errs several times more where routes flip, so its
# mark is a good warning. But flips are not the reason: with routes held, the error at those places stays, within what
# 10 pairs can tell. What remains is the size of the change: it bends the model, and flips come along with it.
#
# One part of the claim could not be confirmed. On the problems it was made on, the error per effect was the same where
# routes flip and where not. On fresh ones it is larger where they flip, and elsewhere there is so little effect that
# the interval decides nothing.

# %% flip-figure
first_order.draw(model)[0]

# %% large [markdown]
# ## With your 20b
#
# ```python not-run model = wb.Model("openai/gpt-oss-20b")  # attribution_patching: dtype="float32", experts stay packed
# trace = model.generate(wb.chat("…", reasoning="medium"), max_tokens=600) found = wb.reasoning.suppression(model,
# trace, split_routing=True)  # three passes over the rest of the text for each step ```
#
# A chain of 40 steps and 600 tokens is 120 passes over 300 tokens on average, as much reading as 36,000 tokens. Give
# `segments=wb.steps(trace)[:8]` to try it. In 24 layers there is more that a switched expert can act through than in
# six: routes may matter more there, and this is the measurement that would say so.

# %% limits [markdown]
# ## Limits
#
# - The three parts depend on the order in which things are set free: content, weights, experts. "Who, without what"
#   shows the other order for one step, and is a text that no run would have: experts of one state, content of another.
# - Held experts are those of the plain run, also where the hidden step makes no sense of them. That is the point of the
#   question, and also a state that the model never met in training.
# - Places with other experts are those where the two texts differ most; the comparison per effect and the run with held
#   routes are two ways around that, and neither is perfect: with routes held, the clean run is another one too.
# - A place is an MLP's output at one layer and token. Heads and residual streams were not tried here; `SITE` in
#   `workbench/studies/first_order.py` is where to change that.
