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
# A chain of thought ends in an answer. Was the answer there before the chain came to it? Four measurements are laid on
# one token axis: what the model would answer if it had to stop, at which layer a prediction settles, how open the next
# token is, and what a linear probe reads off the residual stream. Then the same over held-out problems.

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

# %% belief-text [markdown]
# ## What it would say if it stopped
#
# The chain is cut after each step, the message closed, the final one opened, and the probability of answers read off.
# Before it has thought, pocket guesses. Then it names what it wrote last, right or not, and the guess is gone.

# %% belief
names = [step.value for step in problem.steps]
curve = wb.reasoning.forced_answer(model, trace, [f"It is {name}." for name in names])
for after, p in enumerate(curve["p"].values):
    print(f"after {after} steps: {names[p.argmax()]:4} {p.max():.2f}   {problem.answer}: {p[-1]:.2f}")
print("it stays with one answer after step", curve.attrs["commit"], "of", curve.attrs["n"])

# %% depth-text [markdown]
# ## At which layer a name is decided
#
# The logit lens reads every layer as if it were the last. For the token before each name, the layer from which on the
# likeliest next token stays what it is in the end; and how open that token is, in nats.

# %% depth
settles, entropy, ends = wb.lens.prediction_depth(trace), np.asarray(trace["entropy"]), []
for step, name in zip(wb.steps(trace), names):
    ends.append(max(pos for pos in range(step.start, step.stop) if trace.str_tokens[pos].strip() == name))
    before = ends[-1] - 1  # a token is predicted at the one before
    print(f"{step.text:14} settles at layer {int(settles[before])}, entropy {entropy[before]:.3f}")

# %% probe-text [markdown]
# ## What can be read off before
#
# A ridge regression is fitted on 100 other problems: at the end of each hop, to the name that the next one will come
# to. Here it is tried on this run, at the same places; at other tokens it was not fitted, and would say anything. A
# score of 1 is yes; where it knows nothing, it is about 0.06.

# %% probe
from workbench.studies import known_before_said

scores = known_before_said.scores(model, trace, ends[1:-1], "hops", "any value, a step before", layer=1)
said = scores.idxmax("label").values
lane = xr.DataArray(
    np.full(len(trace), np.nan), dims="pos", name="probe", attrs={"long_name": "probe for the next name"}
)
for place, (at, step, name) in enumerate(zip(ends[1:-1], wb.steps(trace)[1:], names[2:])):
    lane[at] = scores.sel(label=name)[place]
    print(f"after {step.text:14} it says {said[place]}, and next comes {name} with {float(lane[at]):.2f}")

# %% sheet-text [markdown]
# ## All of it on one axis
#
# The transcript, and under it belief in the answer, the layer at which the next token settles, its entropy, and the
# probe. Belief, once it thinks, is a step: 0 until the last name is written, then 1. Where the probe is right, it is so
# a step before the name is written.

# %% sheet
answer = wb.reasoning.forced_answer(model, trace)  # of the message that it wrote
wb.views.score_sheet(trace, ["transcript", "forced_answer", "depth", "entropy", lane], forced_answer=answer)

# %% many-text [markdown]
# ## Over problems: belief
#
# Held-out problems of four families, of which only the last step has the value of the answer. Does belief settle with
# that very step, and what does it say before? That it names what was written last was noticed on other problems; these
# are fresh. By chance it would settle there once in five.

# %% many
from workbench.studies import belief

found = belief.measure(model)
for family, settled in found.settled.items():
    low, high = wb.statistics.wilson_interval(sum(settled), len(settled))
    print(
        f"{family:10} settled with the step that states it: {sum(settled)} of {len(settled)} ({low:.2f} to {high:.2f})"
    )
ahead = np.array([found.share.value, found.share.low, found.share.high])[:, :, -2].T  # a step before it is stated
print("one step before, share of the answer in the end: {:.2f} ({:.2f} to {:.2f})".format(*ahead[0]))
print("one step before, share of what was written last: {:.2f} ({:.2f} to {:.2f})".format(*ahead[1]))

# %% many-holds
hits = [hit for settled in found.settled.values() for hit in settled]
assert len(hits) == 32 and np.mean(hits) > 0.95, hits
assert ahead[0][0] < 0.1 and ahead[1][0] > 0.9, ahead

# %% belief-figure
belief.draw(model)[0]

# %% ahead-text [markdown]
# ## Over problems: the probe
#
# The same places in 100 fresh problems a family, by layer. For each place: what a probe on other problems reaches, what
# it reaches on shuffled answers, and what the token at the place tells without any model. The layers were chosen on
# other problems: 1 for hops, where names are looked up, and 3 for variables, where values are worked out.

# %% ahead
for family in known_before_said.FAMILIES:
    for place in known_before_said.PLACES:
        got = known_before_said.measure(model, family, place).sel(layer=1 if family == "hops" else 3)
        value, low, high, null, token = (float(got[name]) for name in ("accuracy", "low", "high", "null", "baseline"))
        print(f"{family:9} {place:28} {value:.2f} ({low:.2f} to {high:.2f}), shuffled {null:.2f}, token {token:.2f}")

# %% ahead-holds
early = {
    family: known_before_said.measure(model, family, "any value, a step before") for family in ("hops", "variables")
}
late = {
    family: known_before_said.measure(model, family, "the answer, a token before") for family in ("hops", "variables")
}
assert abs(float(early["hops"]["accuracy"].sel(layer=1)) - 0.46) < 0.06 and early["hops"]["null"].max() < 0.2
assert early["variables"]["accuracy"].max() < early["variables"]["null"].max()
assert late["hops"]["low"].sel(layer=1) > 0.9 and late["variables"]["low"].sel(layer=3) > 0.9
assert late["variables"]["low"].sel(layer=2) > 0.8 > 0.3 > late["variables"]["accuracy"].sel(layer=1)
assert known_before_said.measure(model, "hops", "the answer, two steps before")["low"].max() < 0.12

# %% ahead-figure
known_before_said.draw(model)[0]

# %% effort-text [markdown]
# ## With effort and without
#
# At low effort pocket writes no analysis. Is what it says then what it believes at high effort before it thinks?

# %% effort
from workbench.studies import efforts

for family, p in efforts.measure(model).items():
    cells = [f"{v:.2f} ({a:.2f} to {b:.2f})" for v, a, b in zip(p.value, p.low, p.high)]
    print(f"{family:10}", "   ".join(cells))

# %% effort-holds
chains = np.array([efforts.measure(model)[family].value for family in efforts.CHAINS])
assert chains[:, :2].max() < 0.45 and chains[:, 2].min() > 0.95, chains

# %% effort-figure
efforts.draw(model)[0]

# %% depths-text [markdown]
# ## Over problems: depth
#
# At which layer is the next token of an analysis decided? On other problems it was seen that digits are by layer 3, and
# that some names wait for the last layer. The same on fresh ones.

# %% depths
from workbench.studies import lens_depth

for kind, by_layer in zip(lens_depth.KINDS, lens_depth.measure(model)):
    shares = [f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in np.stack(by_layer[:3], 1)[0].T[3:5]]
    print(f"{kind:12} settled at layer 3: {shares[0]}, at layer 4: {shares[1]}, {by_layer.n} tokens")
digits, words, _ = (each.value[0] for each in lens_depth.measure(model))
assert abs(digits[3] - 0.92) < 0.05 and abs(words[4] - 0.74) < 0.07, (digits, words)

# %% depths-figure
lens_depth.draw(model)[0]

# %% finding
from IPython.display import Markdown

settled, ahead_of = wb.statistics.wilson_interval(sum(hits), len(hits)), early["hops"].sel(layer=1)
value, low, high, null, token = (float(ahead_of[name]) for name in ("accuracy", "low", "high", "null", "baseline"))
Markdown(f"""**Finding.** Belief settles with the step that states the answer, in {sum(hits)} of {len(hits)} fresh
problems of four families ({settled[0]:.2f} to {settled[1]:.2f}; by chance one in five), and before that it is in
what was written last. But "what would it say" is not "what does it have". In hops, the name that comes next can
be read off layer 1 when the one before it has just been written, at many of the steps ({value:.2f}, {low:.2f} to
{high:.2f}; {known_before_said.N} problems; shuffled {null:.2f}, from the token alone {token:.2f}), while belief
is elsewhere. That is a look ahead by one hop, not of the answer: two steps before it there is nothing. In
variables, where the next value must be worked out, there is nothing a step before either; it stands in the stream
at the token before it is written, from layer 2 on. Effort changes little of that: before it thinks, pocket is
right with {chains[:, :2].max():.2f} or less in the five families that need a chain, at low effort and at high,
and nearly always after.""")

# %% twenty [markdown]
# ## With your 20b
#
# One line changes, and the answers are yours to name; belief costs one short pass for each step, the lens nothing
# beside the recording. `wb.estimate` says before how big it will be.
#
# ```python not-run model = wb.Model("openai/gpt-oss-20b") trace = model.generate(wb.chat("What is 17*24? Think step by
# step.", reasoning="high"), record="lens residuals") wb.views.score_sheet(trace, ["transcript", "forced_answer",
# "depth", "entropy"], forced_answer=wb.reasoning.forced_answer(model, trace)) ```

# %% limits [markdown]
# ## Limits
#
# pocket is made for such problems, and its chains are what it was taught to write: none of this is evidence about a
# large model. Belief is what a forced answer says, which is another text than the model would have written. A probe
# shows what can be read, not what is used; with the same problems dealt into other folds it had 0.51 in place of 0.46.
# Belief was asked about the values of the last four steps only, and problems whose answer came up earlier by chance
# were left out. Addition has no step that states its answer, so it is not in the first count.
