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
# Several methods claim to say which steps of a chain of thought a later step hangs on: heads that single steps out,
# hiding a step, writing on from before and after it, changing its value. Here the truth is known, for every problem of
# pocket comes with its reasoning graph. So the methods can be marked, also against a rule that knows nothing: what is
# near is used.

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
problem = far_edges.read(model, "variables", 1, seed="shown")[0].problem  # with a step that uses one further back
trace = model.generate(wb.chat(problem.question, reasoning="high"), record="attention")
assert trace.text(channel="analysis") == problem.analysis  # so its true graph is that of the problem
print(problem.question)
parts, n = wb.steps(trace), len(problem.steps)
for number, step in enumerate(parts):
    print(f"{number:2}  {step.text:22} {step.kind:20} uses {problem.edges[number]}")
truth = np.array([[j in problem.edges[i] for j in range(n)] for i in range(n)])

# %% heads-text [markdown]
# ## Receiver heads
#
# A head is a receiver head if it singles a few steps out, as seen from steps at least four further on: by the kurtosis
# of what each step receives. One number a step, the same for every later one, and none for the last four.

# %% heads
heads = wb.attention.receiver_heads(wb.attention.step_attention(trace, parts))
order = np.argsort(-heads["kurtosis"].values, axis=None)[:4]
for layer, head in zip(*np.unravel_index(order, heads["kurtosis"].shape)):
    seen, kurtosis = heads["vertical"][layer, head], float(heads["kurtosis"][layer, head])
    print(f"{layer}.{head}  kurtosis {kurtosis:5.2f}, most on step {int(seen.argmax('step'))}")

# %% suppression-text [markdown]
# ## Hiding a step
#
# Each step is hidden from all later queries, in every layer and head, and the change of what is predicted in each later
# step is its effect, as KL in nats. `queries="all"` hides it from its own tokens too, as in arXiv 2506.19143: that adds
# the diagonal, and changes the next step, whose first token is predicted there. Further on it is the same number, for
# nobody can see what the step has become.

# %% suppression
hidden = wb.reasoning.suppression(model, trace)["effect"]
every = wb.reasoning.suppression(model, trace, queries="all")["effect"].values
assert np.allclose(np.tril(every, -2), np.tril(hidden.values, -2), atol=1e-6)
for i in range(n):
    strong = [
        f"{j} ({hidden.values[i, j]:.2f})" for j in np.argsort(-hidden.values[i])[:3] if hidden.values[i, j] > 0.05
    ]
    print(f"step {i:2} changes when hidden: {', '.join(strong) or '-':32} true: {problem.edges[i]}")

# %% value-text [markdown]
# ## Another value
#
# From sentence to sentence: the last digit of a step becomes one more, the rest of the text stays, and the loss of
# log-probability in each later step says whether it still follows. This is the direct effect, for what lies between is
# kept.

# %% value
other = METHODS["another value"](model, trace, [slice(step.start, step.stop - 1) for step in parts])
attrs = {"units": "nats a token", "long_name": "another value"}
other = xr.DataArray(other, dims=("step", "key_step"), attrs=attrs)
print(other.values[-1].round(2))

# %% view-text [markdown]
# ## Side by side
#
# The steps as a matrix, with arcs over the text; the reader chooses the method. Then the score sheet, with what hiding
# does as arcs.

# %% view
attention = wb.attention.step_attention(trace, parts)
wb.views.steps(trace, {"hiding a step": hidden, "another value": other, "attention": attention})

# %% sheet
wb.views.score_sheet(trace, ["transcript", "entropy", "arcs"], arcs=hidden)

# %% resampling-text [markdown]
# ## Writing on from before and after
#
# Resampling importance: from before a step and from after it the text is written on many times, and the accuracies are
# compared. On a chain that pocket solves, every point gets there, so no step matters by this measure. It needs a chain
# that goes astray: here a value is wrong and is passed over. A screen with few continuations finds the step, and a
# second look with more confirms it, on fresh draws.

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
print(
    f"by chance the largest is {screen.attrs['null_max']:.2f}; {screen.attrs['n']} see {screen.attrs['detectable']:.2f}"
)

# %% confirm
worst = int(screen["importance"].argmin("step")) + slip.number - 1
sure = wb.reasoning.resampling(
    model, astray, right, n_samples=50, max_tokens=220, segments=[wb.steps(astray)[worst]], seed=1
)
for point, when in enumerate(("before", "after")):
    found = [float(sure[name][point]) for name in ("accuracy", "low", "high")]
    print(f"{when} {wb.steps(astray)[worst].text!r}: right in {found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})")

# %% sentences-text [markdown]
# ## From sentence to sentence
#
# The same continuations say which later steps hang on a step: how much more often a step is written, word for word, if
# an earlier one is kept than if it is written anew (arXiv 2506.19143). This is the whole effect, through all between.

# %% sentences
first, texts = slip.number - 1, [step.text.strip() for step in wb.steps(astray)]
found = wb.reasoning.resampling(
    model,
    astray,
    n_samples=8,
    max_tokens=220,
    segments=wb.steps(astray)[first:],
    parse_answer=lambda ids: model.tokenizer.decode(ids),
)
written = [[sum(n for said, n in got.items() if text in said) for text in texts] for got in found.attrs["answers"]]
for j, gain in enumerate(np.diff(written, axis=0) / found.attrs["n"], first):
    later = [f"{i} ({gain[i]:+.2f})" for i in range(j + 1, len(texts)) if abs(gain[i]) > found.attrs["detectable"]]
    print(f"keeping {j:2} {texts[j]:22} makes likelier: {', '.join(later) or '-'}")

# %% marks-text [markdown]
# ## Against the true graph: all pairs
#
# AUROC is the probability that a pair of which the later step truly uses the earlier one scores above one that does
# not. The first number to look at is that of nearness.

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
# ## Against the true graph: what is not the neighbour
#
# So almost anything that falls off with distance looks good. The question with an answer is another one: of steps that
# are equally far apart, does a method tell those that are used? Nearness then has 0.5, by construction. Such edges are
# rare: a variable with a second operand further back, and, in lists, a step that puts a wrong one right and works from
# the step before both. In hops, swaps and addition, a step uses its neighbour only.

# %% far
made = far_edges.measure(model)
for family, (true, others) in made.pairs.items():
    print(f"{family}: {true} used, {others} not, of {far_edges.SETS[family]} problems")
    for method in METHODS:
        a, (used, unused) = made.auroc[method, family], made.medians[method, family]
        print(f"   {method:24} {a.value:.2f} ({a.low:.2f} to {a.high:.2f})   medians {used:.3f} and {unused:.3f}")

# %% far-holds
area = {key: float(each.value) for key, each in made.auroc.items()}
assert area["nearness", "variables"] == area["nearness", "lists"] == 0.5
assert min(area["suppression", "variables"], area["another value", "variables"], area["attention", "lists"]) > 0.97, (
    area
)
assert abs(area["attention", "variables"] - 0.95) < 0.03 and abs(area["suppression", "lists"] - 0.90) < 0.05, area
assert made.auroc["receiver heads", "variables"].low < 0.5 < made.auroc["attention", "variables"].low, made.auroc

# %% far-figure
far_edges.draw(model)[0]

# %% correction-text [markdown]
# ## What a correction hangs on
#
# In lists hiding says less than attention. A guess: the wrong row has the digits of the right one, so either of the two
# rows before is enough, hiding one does little, and hiding both much more than the two alone.

# %% correction
hiding = []
for one in far_edges.read(model, "lists", far_edges.SETS["lists"]):
    at = next(i for i, step in enumerate(far_edges.worked(one.problem)) if one.problem.steps[step].kind == "correction")
    source, mistake, fixed = one.parts[at - 2 : at + 1]
    both = slice(source.start, mistake.stop)
    hiding.append(
        [wb.reasoning.suppression(model, one.trace, [part, fixed])["effect"][1, 0] for part in (source, mistake, both)]
    )
hiding = np.array(hiding)
for name, each in zip(("the row before", "the wrong row", "both"), hiding.T):
    mean = wb.statistics.mean_interval(each)
    print(f"hiding {name:15} {mean.value:.2f} nats ({mean.low:.2f} to {mean.high:.2f})")
more = wb.statistics.mean_interval(hiding @ [-1, -1, 1])
print(f"both, less the two alone: {more.value:.2f} ({more.low:.2f} to {more.high:.2f})")
assert more.low < 0 < more.high, more  # the guess is not borne out: the two add up

# %% finding
from IPython.display import Markdown


def told(method, family):
    return "{:.2f} ({:.2f} to {:.2f})".format(*made.auroc[method, family][:3])


pairs = {
    family: f"{far_edges.SETS[family]} problems, {used} used pairs and {not_used} others"
    for family, (used, not_used) in made.pairs.items()
}
near = min(float(which_method.measure(model)["nearness", family].value) for family in which_method.FAMILIES)
Markdown(f"""**Finding.** Over all pairs of steps nothing is shown: nearness alone has an AUROC of {near:.2f} and
more, and attention and hiding a step stand beside it ({len(which_method.FAMILIES)} families of {which_method.N}
problems). So compare what is equally far apart, where nearness has 0.50. In variables ({pairs["variables"]})
changing a value tells the used ones with {told("another value", "variables")}, hiding with
{told("suppression", "variables")}, and plain attention, which costs one pass in all, with
{told("attention", "variables")}. Receiver heads are not shown to, {told("receiver heads", "variables")}; over all
pairs they are below chance, for they say one number a step, and none for the last four, which are used most here.
In lists ({pairs["lists"]}) hiding has {told("suppression", "lists")}, less than attention with
{told("attention", "lists")}, and why is open: that the wrong row stands in for the hidden one was a guess that
the measurement did not bear out. Resampling sees a step only where the chain goes astray: the wrong one takes
accuracy from 1 to 0, and no other moves it at all.""")

# %% twenty [markdown]
# ## With your 20b
#
# One line changes. Attention from step to step is part of the recording; hiding costs one pass over the rest of the
# text a step. Resampling writes: 60 steps times 20 continuations of some 500 tokens are 600,000 tokens, so screen a few
# steps, and confirm fewer. There is no true graph then, so compare at equal distance, and say what nearness reaches.
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
# pocket's chains are short, its steps are terse and its words fixed: what is used is named in the step that uses it, so
# a reader of the text finds it too, and attention has an easy task. Receiver heads were proposed for chains of a
# hundred sentences; in eleven there is little for them to single out. Used means used by the rules of the problem: that
# pocket reads a value there, and not where it stands a second time, is what the methods say and not what is known. In
# lists all the used pairs are of steps that begin with "Wait", so there being such a step and being used go together.
