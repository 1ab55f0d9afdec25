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
# # Which thoughts matter?
#
# Several methods claim to find the steps of a chain of thought that a later step depends on: receiver heads, attention
# suppression, resampling from before and after a step, changing its value. Here the truth is known, because every
# problem of pocket comes with its dependency graph. So the methods can be scored and compared with a trivial baseline,
# nearness: a step depends on nearby steps.

# %% ask
from random import Random

import numpy as np
import xarray as xr

import workbench as wb
from workbench.pocket.families import slips
from workbench.pocket.rendering import render
from workbench.studies import far_edges
from workbench.studies.dependency_methods import METHODS

model = wb.Model("pocket")
# a problem with a step that uses one further back
problem = far_edges.far_edge_problems(model, "variables", 1, seed="shown")[0].problem
trace = model.generate(wb.chat(problem.question, reasoning="high"), record="attention")
assert trace.text(channel="analysis") == problem.analysis  # so the problem's graph is the true one
print(problem.question)
steps, n = wb.steps(trace), len(problem.steps)
for number, step in enumerate(steps):
    print(f"{number:2}  {step.text:22} {step.kind:20} uses {problem.edges[number]}")
truth = np.array([[j in problem.edges[i] for j in range(n)] for i in range(n)])

# %% heads-text [markdown]
# ## Receiver heads
#
# A receiver head concentrates the attention of later steps, at least four steps further on, on a few steps; the measure
# is the kurtosis of the attention that each step receives. The method gives one number per step, the same for every
# later step, and none for the last four steps.

# %% heads
heads = wb.attention.receiver_heads(wb.attention.step_attention(trace, steps))
order = np.argsort(-heads["kurtosis"].values, axis=None)[:4]
for layer, head in zip(*np.unravel_index(order, heads["kurtosis"].shape)):
    received, kurtosis = heads["vertical"][layer, head], float(heads["kurtosis"][layer, head])
    print(f"{layer}.{head}  kurtosis {kurtosis:5.2f}, most on step {int(received.argmax('step'))}")

# %% suppression-text [markdown]
# ## Hiding a step
#
# Each step is hidden from all later queries, in every layer and head. Its effect on a later step is the change of the
# predictions there, as KL divergence in nats. `queries="all"` hides it from its own tokens too, as in arXiv 2506.19143:
# that adds the diagonal, and it changes the effect on the next step, whose first token is predicted there. For steps
# further on, the number is the same, because no later token can attend to the changed step.

# %% suppression
hidden = wb.reasoning.suppression(model, trace)["effect"]
all_queries = wb.reasoning.suppression(model, trace, queries="all")["effect"].values
assert np.allclose(np.tril(all_queries, -2), np.tril(hidden.values, -2), atol=1e-6)
for i in range(n):
    strong = [
        f"{j} ({hidden.values[i, j]:.2f})" for j in np.argsort(-hidden.values[i])[:3] if hidden.values[i, j] > 0.05
    ]
    print(f"step {i:2} changes when hidden: {', '.join(strong) or '-':32} true: {problem.edges[i]}")

# %% value-text [markdown]
# ## Another value
#
# This method changes one step and measures the effect on each later step: the last digit of a step is raised by one,
# the rest of the text stays the same, and the drop in log-probability of a later step shows whether the model still
# expects it. This is the direct effect, because the steps in between are unchanged.

# %% value
other = METHODS["another value"](model, trace, [slice(step.start, step.stop - 1) for step in steps])
attrs = {"units": "nats a token", "long_name": "another value"}
other = xr.DataArray(other, dims=("step", "key_step"), attrs=attrs)
print(other.values[-1].round(2))

# %% view-text [markdown]
# ## Side by side
#
# The steps as a matrix, with arcs over the text; the method can be selected. Then the score sheet, with the effects of
# hiding a step as arcs.

# %% view
attention = wb.attention.step_attention(trace, steps)
wb.views.steps(trace, {"hiding a step": hidden, "another value": other, "attention": attention})

# %% sheet
wb.views.score_sheet(trace, ["transcript", "entropy", "arcs"], arcs=hidden)

# %% resampling-text [markdown]
# ## Resampling from before and after
#
# Resampling importance: many continuations are sampled from before a step and from after it, and their accuracies are
# compared. On a chain that pocket solves, continuations from every point are right, so no step matters by this measure.
# It needs a chain that goes wrong: here one value is wrong and is not corrected. A screen with few continuations finds
# the step, and a second run with more continuations and another seed confirms it.

# %% resampling
slip = next(slip for slip in slips(problem, Random(0), corrected=False))
wrong = problem.slipped(slip)
astray = model.trace(list(render(wrong, "high").ids), record="")
right = f"It is {problem.answer}."
screen = wb.reasoning.resampling(
    model, astray, right, n_samples=8, max_tokens=220, segments=wb.steps(astray)[slip.number - 1 :]
)
for step, gain in zip(wb.steps(astray)[slip.number - 1 :], screen["importance"].values):
    print(f"{gain:+.2f}  {step.text}")
print(f"the largest by chance is {screen.attrs['null_max']:.2f};", end=" ")
print(f"{screen.attrs['n']} continuations can detect {screen.attrs['detectable']:.2f}")

# %% confirm
worst = int(screen["importance"].argmin("step")) + slip.number - 1
confirmed = wb.reasoning.resampling(
    model, astray, right, n_samples=50, max_tokens=220, segments=[wb.steps(astray)[worst]], seed=1
)
for point, when in enumerate(("before", "after")):
    accuracy, low, high = (float(confirmed[name][point]) for name in ("accuracy", "low", "high"))
    print(f"{when} {wb.steps(astray)[worst].text!r}: right in {accuracy:.2f} ({low:.2f} to {high:.2f})")

# %% sentences-text [markdown]
# ## From sentence to sentence
#
# Such continuations also show which later steps depend on a step: how much more often a later step is generated
# verbatim if the earlier step is kept than if it is resampled (arXiv 2506.19143). This is the total effect, including
# all paths through the steps in between.

# %% sentences
first, texts = slip.number - 1, [step.text.strip() for step in wb.steps(astray)]
resampled = wb.reasoning.resampling(
    model,
    astray,
    n_samples=8,
    max_tokens=220,
    segments=wb.steps(astray)[first:],
    parse_answer=lambda ids: model.tokenizer.decode(ids),
)
verbatim = [
    [sum(n for text, n in counts.items() if step in text) for step in texts] for counts in resampled.attrs["answers"]
]
for j, gain in enumerate(np.diff(verbatim, axis=0) / resampled.attrs["n"], first):
    later = [f"{i} ({gain[i]:+.2f})" for i in range(j + 1, len(texts)) if abs(gain[i]) > resampled.attrs["detectable"]]
    print(f"keeping {j:2} {texts[j]:22} makes more likely: {', '.join(later) or '-'}")

# %% marks-text [markdown]
# ## Against the true graph: all pairs
#
# AUROC is the probability that a true pair, in which the later step uses the earlier one, scores above another pair.
# Look first at the AUROC of nearness.
#
# The measurement is a function of the package, `workbench.studies.which_method.measure`. To read its code, run
# `which_method.measure??` in a new cell.

# %% marks
from workbench.studies import which_method

for (method, family), area in which_method.measure(model).items():
    print(f"{family:10} {method:16} {area.value:.2f} ({area.low:.2f} to {area.high:.2f})")

# %% marks-hold
area = {key: float(each.value) for key, each in which_method.measure(model).items()}
assert min(area["nearness", family] for family in which_method.FAMILIES) > 0.93, area
assert min(area["suppression", family] for family in which_method.FAMILIES) > 0.95, area
assert max(area["receiver heads", family] for family in which_method.FAMILIES) < 0.5, area

# %% marks-figure
which_method.draw(model)[0]

# %% far-text [markdown]
# ## Against the true graph: dependencies on distant steps
#
# Nearness alone does well, so almost any score that falls with distance looks good. A better question: among pairs at
# the same distance, does a method find the true ones? Nearness then has an AUROC of 0.5, by construction. Such
# dependencies are rare: a variable with a second operand further back, and, in lists, a step that corrects a wrong one
# and starts from the step before both. In hops, swaps and addition, a step uses only the step before it.

# %% far
far = far_edges.measure(model)
for family, (true, others) in far.pairs.items():
    print(f"{family}: {true} true pairs, {others} others, from {far_edges.SETS[family]} problems")
    for method in METHODS:
        a, (used, unused) = far.auroc[method, family], far.medians[method, family]
        print(f"   {method:24} {a.value:.2f} ({a.low:.2f} to {a.high:.2f})   medians {used:.3f} and {unused:.3f}")

# %% far-holds
area = {key: float(each.value) for key, each in far.auroc.items()}
assert area["nearness", "variables"] == area["nearness", "lists"] == 0.5
assert min(area["suppression", "variables"], area["another value", "variables"], area["attention", "lists"]) > 0.97, (
    area
)
assert abs(area["attention", "variables"] - 0.95) < 0.03 and abs(area["suppression", "lists"] - 0.90) < 0.05, area
assert far.auroc["receiver heads", "variables"].low < 0.5 < far.auroc["attention", "variables"].low, far.auroc

# %% far-figure
far_edges.draw(model)[0]

# %% correction-text [markdown]
# ## What a correction depends on
#
# In lists, hiding a step finds less than attention does. A hypothesis: the wrong row has the same digits as the right
# one, so either of the two rows before is enough. Then hiding one has little effect, and hiding both has much more than
# the sum of the two.

# %% correction
hiding = []
for one in far_edges.far_edge_problems(model, "lists", far_edges.SETS["lists"]):
    kinds = [one.problem.steps[step].kind for step in far_edges.computed_steps(one.problem)]
    at = kinds.index("correction")
    source, mistake, correction = one.steps[at - 2 : at + 1]
    both = slice(source.start, mistake.stop)
    effects = [wb.reasoning.suppression(model, one.trace, [part, correction]) for part in (source, mistake, both)]
    hiding.append([effect["effect"][1, 0] for effect in effects])
hiding = np.array(hiding)
for name, each in zip(("the row before", "the wrong row", "both"), hiding.T):
    mean = wb.statistics.mean_interval(each)
    print(f"hiding {name:15} {mean.value:.2f} nats ({mean.low:.2f} to {mean.high:.2f})")
excess = wb.statistics.mean_interval(hiding @ [-1, -1, 1])
print(f"both, minus the two alone: {excess.value:.2f} ({excess.low:.2f} to {excess.high:.2f})")
assert excess.low < 0 < excess.high, excess  # the hypothesis is not confirmed: the two effects add up

# %% finding
from IPython.display import Markdown


def auroc(method, family):
    return "{:.2f} ({:.2f} to {:.2f})".format(*far.auroc[method, family][:3])


pairs = {
    family: f"{far_edges.SETS[family]} problems, {true} true pairs and {others} others"
    for family, (true, others) in far.pairs.items()
}
near = min(float(which_method.measure(model)["nearness", family].value) for family in which_method.FAMILIES)
Markdown(f"""**Finding.** AUROC over all pairs of steps shows nothing: nearness alone reaches {near:.2f} or more, and
attention and hiding a step are about as good ({len(which_method.FAMILIES)} families of {which_method.N} problems).
So compare pairs at the same distance, where nearness has 0.50. In variables ({pairs["variables"]}) changing a value
finds the true pairs with an AUROC of {auroc("another value", "variables")}, hiding a step with
{auroc("suppression", "variables")}, and plain attention, which needs one pass in all, with
{auroc("attention", "variables")}. Receiver heads are not significantly above chance there,
{auroc("receiver heads", "variables")}; over all pairs they are below chance, because they give one number per step,
and none for the last four steps, which are used most here. In lists ({pairs["lists"]}) hiding a step has
{auroc("suppression", "lists")}, less than attention with {auroc("attention", "lists")}. The reason is open: the
hypothesis that the wrong row replaces the hidden one was not confirmed. Resampling finds a step only where the chain
goes wrong: the wrong step takes accuracy from 1 to 0, and no other step changes it.""")

# %% twenty [markdown]
# ## With your 20b
#
# One line changes. Attention from step to step is part of the recording; hiding a step costs one pass over the rest of
# the text. Resampling generates: 60 steps times 20 continuations of about 500 tokens are 600,000 tokens, so screen a
# few steps and confirm fewer. For your own problems there is no true graph, so compare steps at equal distance, and
# report the score of nearness.
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")
# trace = model.generate(wb.chat("What is 17*24? Think step by step.", reasoning="high"), record="steps")
# arrays = {"attention": wb.attention.step_attention(trace), "hiding a step": wb.reasoning.suppression(model, trace)}
# wb.views.steps(trace, arrays)
# ```

# %% limits [markdown]
# ## Limits
#
# pocket's chains are short, its steps are terse and its words fixed: a step names what it uses, so the text alone shows
# the dependency, and attention has an easy task. Receiver heads were proposed for chains of a hundred sentences; chains
# of eleven steps leave little to concentrate on. A pair is true by the rules of the problem. Whether pocket takes the
# value from that step or from a second occurrence is not known; it is what the methods estimate. In lists, all true
# pairs involve steps that begin with "Wait", so such a step and a true dependency always occur together.
