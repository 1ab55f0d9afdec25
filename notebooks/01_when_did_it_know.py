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
# # When did it know?
#
# A chain of thought ends in an answer. Did the model have the answer before the chain reached it? Four measurements on
# one token axis: the answer that the model gives if it is forced to stop, the layer at which a prediction settles, the
# entropy of the next token, and what a linear probe decodes from the residual stream. Then the same over held-out
# problems.

# %% ask
from random import Random

import numpy as np
import xarray as xr

import workbench as wb
from workbench.pocket.families import make

model = wb.Model("pocket")
problem = make("hops", Random(4), length=4, split="test")  # never trained, in any wording
trace = model.generate(wb.chat(problem.question, reasoning="high"), record="lens residuals")
print(problem.question)
for number, step in enumerate(wb.steps(trace)):
    print(f"{number}  {step.text}")
print("answer:", trace.text(channel="final"))

# %% forced-text [markdown]
# ## Forced answers
#
# The chain is truncated after each step, the message is closed and the final one opened, and the probability of each
# answer is computed (early answering, Lanham et al. 2023). Before the first step pocket guesses. After each step it
# gives the name that it generated last, right or not.

# %% forced
names = [step.value for step in problem.steps]
curve = wb.reasoning.forced_answer(model, trace, [f"It is {name}." for name in names])
for after, p in enumerate(curve["p"].values):
    print(f"after {after} steps: {names[p.argmax()]:4} {p.max():.2f}   {problem.answer}: {p[-1]:.2f}")
print("the most likely answer is final after step", curve.attrs["commit_step"], "of", curve.attrs["n"])

# %% depth-text [markdown]
# ## At which layer a name is decided
#
# The logit lens applies the unembedding to every layer as if it were the last. For the token before each name: the
# layer from which the most likely next token no longer changes (prediction depth), and the entropy in nats.

# %% depth
settles, entropy, ends = wb.lens.prediction_depth(trace), np.asarray(trace["entropy"]), []
for step, name in zip(wb.steps(trace), names):
    ends.append(max(pos for pos in range(step.start, step.stop) if trace.str_tokens[pos].strip() == name))
    before = ends[-1] - 1  # a token is predicted at the position before it
    print(f"{step.text:14} settles at layer {int(settles[before])}, entropy {entropy[before]:.3f}")

# %% probe-text [markdown]
# ## What a probe can decode earlier
#
# A ridge regression is fitted on 100 other problems: at the end of each hop, it predicts the name that the next hop
# will reach. The layer is chosen on yet other problems: the first whose probe is about as good as the best. Here it is
# applied to this run at the same kind of positions; at other tokens, where it was not fitted,
# its output is meaningless. A score of 1 means that the probe predicts this name; without evidence the score is about
# 0.06.

# %% probe
from workbench.studies import answer_probe

LAYERS = {family: answer_probe.layer_of(model, family) for family in answer_probe.FAMILIES}
scores = answer_probe.scores(model, trace, ends[1:-1], "hops", "any value, a step before", layer=LAYERS["hops"])
decoded = scores.idxmax("label").values
lane = xr.DataArray(
    np.full(len(trace), np.nan), dims="pos", name="probe", attrs={"long_name": "probe for the next name"}
)
for place, (at, step, name) in enumerate(zip(ends[1:-1], wb.steps(trace)[1:], names[2:])):
    lane[at] = scores.sel(label=name)[place]
    print(f"after {step.text:14} the probe gives {decoded[place]}; the next name {name} scores {float(lane[at]):.2f}")

# %% sheet-text [markdown]
# ## All of it on one axis
#
# Below the transcript: the probability of the forced answer, the layer at which the next token settles, its entropy,
# and the probe. Once the chain is under way, the probability of the final answer is near 0 until the last name is
# generated, and then 1. Where the probe is right, it is right one step before the name is generated.

# %% sheet
answer = wb.reasoning.forced_answer(model, trace)  # of the generated final message
wb.views.score_sheet(trace, ["transcript", "forced_answer", "depth", "entropy", lane], forced_answer=answer)

# %% many-text [markdown]
# ## Over problems: forced answers
#
# Held-out problems of four families in which only the last step has the value of the answer. Does the forced answer
# settle at that step, and what is it one step earlier? It was noticed on other problems that pocket gives the value it
# generated last; the problems here are fresh. By chance the answer would settle there in one of five problems.
#
# The measurement is a function of the package, `workbench.studies.forced_answer.measure`. To read its code, run
# `forced_answer.measure??` after the next cell.

# %% many
from workbench.studies import forced_answer

forced = forced_answer.measure(model)
for family, settled in forced.settled.items():
    low, high = wb.statistics.wilson_interval(sum(settled), len(settled))
    print(f"{family:10} settles at the step that states it: {sum(settled)} of {len(settled)} ({low:.2f} to {high:.2f})")
# one step before the answer is stated
ahead = np.array([forced.share.value, forced.share.low, forced.share.high])[:, :, -2].T
print("one step before, share of the final answer: {:.2f} ({:.2f} to {:.2f})".format(*ahead[0]))
print("one step before, share of the value written last: {:.2f} ({:.2f} to {:.2f})".format(*ahead[1]))

# %% many-holds
hits = [hit for settled in forced.settled.values() for hit in settled]
assert len(hits) == 32 and np.mean(hits) > 0.95, hits
assert ahead[0][0] < 0.1 and ahead[1][0] > 0.9, ahead

# %% forced-figure
forced_answer.draw(model)[0]

# %% ahead-text [markdown]
# ## Over problems: the probe
#
# The same positions in 100 fresh problems per family, by layer. For each target: the accuracy of a probe on problems it
# was not fitted on, its accuracy with shuffled answers, and the accuracy of predicting from the token at that position
# alone, without any model. The layers were chosen on other problems, in hops, where names are looked up, for the next
# name, and in variables, where values are computed, for the value that is about to be generated.

# %% ahead
for family in answer_probe.FAMILIES:
    print(f"{family}, layer {LAYERS[family]}")
    for target in answer_probe.TARGETS:
        probe = answer_probe.measure(model, family, target).sel(layer=LAYERS[family])
        value, low, high, null, token = (float(probe[name]) for name in ("accuracy", "low", "high", "null", "baseline"))
        print(f"   {target:28} {value:.2f} ({low:.2f} to {high:.2f}), shuffled {null:.2f}, token {token:.2f}")

# %% ahead-holds
early = {family: answer_probe.measure(model, family, "any value, a step before") for family in ("hops", "variables")}
late = {family: answer_probe.measure(model, family, "the answer, a token before") for family in ("hops", "variables")}
assert early["hops"]["low"].sel(layer=LAYERS["hops"]) > early["hops"]["null"].max() + 0.1
assert early["variables"]["accuracy"].max() < early["variables"]["null"].max()
assert late["hops"]["low"].sel(layer=LAYERS["hops"]) > 0.9
assert late["variables"]["low"].sel(layer=LAYERS["variables"]) > 0.9
computed_in = int(np.argmax(late["variables"]["low"].values > 0.8))  # the first layer in which the value is decodable
assert computed_in > 0 and late["variables"]["accuracy"].sel(layer=0) < 0.35, late["variables"]["accuracy"].values
assert answer_probe.measure(model, "hops", "the answer, two steps before")["low"].max() < 0.12

# %% ahead-figure
answer_probe.draw(model)[0]

# %% effort-text [markdown]
# ## Low and high effort
#
# At low effort pocket generates no analysis. Is its answer the same as the forced answer at high effort before the
# first step?

# %% effort
from workbench.studies import answer_by_effort

for family, p in answer_by_effort.measure(model).items():
    cells = [f"{v:.2f} ({a:.2f} to {b:.2f})" for v, a, b in zip(p.value, p.low, p.high)]
    print(f"{family:10}", "   ".join(cells))

# %% effort-holds
chains = np.array([answer_by_effort.measure(model)[family].value for family in answer_by_effort.CHAINS])
assert chains[:, :2].max() < 0.45 and chains[:, 2].min() > 0.95, chains

# %% effort-figure
answer_by_effort.draw(model)[0]

# %% depths-text [markdown]
# ## Over problems: depth
#
# At which layer is the next token of an analysis decided? On other problems, digits were decided earlier than names,
# some of which only in the last layer. Here are fresh problems: by layer, the share of predictions that are final.

# %% depths
from workbench.studies import lens_depth

for kind, by_layer in zip(lens_depth.KINDS, lens_depth.measure(model)):
    value, low, high = (bound[0] for bound in by_layer[:3])
    print(f"{kind:12} settled, by layer: {value.round(2)}, {by_layer.n} tokens;", end=" ")
    print(f"one layer before the last: {value[-2]:.2f} ({low[-2]:.2f} to {high[-2]:.2f})")
digits, words, _ = lens_depth.measure(model)
assert digits.low[0][-2] > 0.9 and words.high[0][-2] < digits.low[0][-2], (digits, words)

# %% depths-figure
lens_depth.draw(model)[0]

# %% finding
from IPython.display import Markdown

settled, ahead_of = wb.statistics.wilson_interval(sum(hits), len(hits)), early["hops"].sel(layer=LAYERS["hops"])
value, low, high, null, token = (float(ahead_of[name]) for name in ("accuracy", "low", "high", "null", "baseline"))
Markdown(f"""**Finding.** The forced answer settles at the step that states the answer in {sum(hits)} of {len(hits)}
fresh problems of four families ({settled[0]:.2f} to {settled[1]:.2f}; by chance one in five); before that, it is the
value written last. But the answer that the model would give is not all that it has computed. In hops, the next name can
be decoded from layer {LAYERS["hops"]} when the previous one has just been generated, at many of the steps ({value:.2f},
{low:.2f} to {high:.2f}; {answer_probe.N} problems; shuffled {null:.2f}, from the token alone {token:.2f}), while the
forced answer is another name. That is a look ahead by one hop, not to the answer: two steps before the answer, nothing
can be decoded. In variables, where the next value must be computed, nothing can be decoded one step before either; the
value is in the residual stream from layer {computed_in} on at the token before it is generated. Effort changes little:
before thinking, the probability of the right answer is {chains[:, :2].max():.2f} or less in the five families that need
a chain, at low and at high effort, and after thinking it is nearly 1.""")

# %% twenty [markdown]
# ## With your 20b
#
# One line changes, and you name the answers. Forced answers cost one short pass per step; the lens costs nothing beyond
# the recording. `wb.estimate` predicts the size of the trace.
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")
# question = "What is 17*24? Think step by step."
# trace = model.generate(wb.chat(question, reasoning="high"), record="lens residuals")
# answer = wb.reasoning.forced_answer(model, trace)
# wb.views.score_sheet(trace, ["transcript", "forced_answer", "depth", "entropy"], forced_answer=answer)
# ```

# %% limits [markdown]
# ## Limits
#
# pocket is made for such problems, and it was trained to generate these chains: none of this is evidence about a large
# model. A forced answer follows a text that the model would not have generated itself. A probe shows what can be
# decoded, not what is used, and its accuracy depends a little on how the problems are split into folds. Forced answers
# were compared among the values of the last four steps only, and problems in which an earlier step has the
# answer's value by chance were excluded. Addition has no step that states its answer, so it is not in the first count.
