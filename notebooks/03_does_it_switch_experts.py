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
# # Does it switch experts when it stops thinking?
#
# In gpt-oss-20b the answer is routed differently from the chain of thought. That much is public. It could be its words,
# which are others; its channel, which has a name; or its place. Here the three are taken apart, in a model that is
# small enough to ask.

# %% ask
import numpy as np

import workbench as wb
from workbench.studies import channel_drift  # the figure of this notebook, and what it measures

model = wb.Model("pocket")
trace = model.generate(wb.chat("What is 2741+5386?", reasoning="high"), record="lens")
thought, answer = (span.content for span in trace.spans if span.channel in ("analysis", "final"))
print(trace.text(channel="analysis"), "|", trace.text(channel="final"))

# %% views-text [markdown]
# ## Which experts run
#
# A column is a token, a colour an expert; the lower panel is one layer. The last message, after the second
# `<|channel|>`, is the answer. Look at its digits, and at the same digits in the analysis.

# %% routing
wb.views.routing(trace, layer=2)

# %% sheet-text [markdown]
# The score sheet of the same run: by how little an expert was chosen (`margin`), and how open the next token was. Where
# the margin is small, a route is an accident, and nothing should hang on it.

# %% sheet
wb.views.score_sheet(trace, ["transcript", "entropy", "margin", "depth"])

# %% raw-text [markdown]
# ## Raw: two channels, two loads
#
# How often each expert runs in the analysis and in the answer, and the Jensen-Shannon divergence of the two, by layer:
# 0 bits if they are the same, 1 if they share no expert. Two halves of one text differ by chance, the more the shorter
# they are. So `routing_drift` deals the positions of both out anew and takes off what that gives.

# %% raw
found = wb.routing.routing_drift(trace, [thought, answer], n_shuffles=200).sel(step=1, key_step=0)
for layer in found["layer"].values:
    at = found.sel(layer=layer)
    print(
        f"layer {layer}: {at['raw'].item():.2f} bits, {at['drift'].item():.2f} above chance (p = {at['p'].item():.3f})"
    )

# %% token-text [markdown]
# ## The same token
#
# "It is" stands in no analysis, and a router that sees other tokens chooses other experts. So compare a token with
# itself: the full stop at the end of the analysis and that at the end of the answer. Beside it, for scale, each `=` of
# the analysis with each other. 1 says that the same experts run with the same weights in all layers.

# %% token
ends = wb.routing.fixed_token_routing(trace, ".")
within = wb.routing.fixed_token_routing(trace, "=")
print("full stops, analysis and answer:", ends.values.round(2)[0, 1:])
print("`=` and `=`, within the analysis:", within.values[np.triu_indices(len(within), 1)].round(2))

# %% name-text [markdown]
# ## Is it the channel?
#
# Words can be matched; the channel can be changed. The header of the answer holds one token, `final`. Put `analysis`
# there instead and read the text again: every word and every position is as before, only the name differs. Then write
# the answer into the analysis, without a header at all.

# %% name
ids = list(trace.tokens)
named = model.trace([*ids[: answer.start - 2], ids[thought.start - 2], *ids[answer.start - 1 :]], record="")
joined = model.trace(ids[: thought.stop] + ids[answer.start : answer.stop], record="")
experts = trace["expert_indices"][:, answer]
for what, other, at in (
    ("another name", named, answer),
    ("no header", joined, slice(thought.stop, thought.stop + answer.stop - answer.start)),
):
    again = other["expert_indices"][:, at]
    kept = (experts[..., None] == again[..., None, :]).any(-1).mean((1, 2))
    print(f"{what}: {1 - kept.mean():.0%} of the answer's experts are others; by layer", (1 - kept).round(2))

# %% many-text [markdown]
# ## Over problems
#
# One text is an anecdote. `channel_drift.measure` asks held-out problems of five families the same questions. It pools
# the loads of a family, compares word by word (each token counts alike on both sides, and what chance gives is dealt
# within a token), and gives intervals over problems. Three yardsticks stand beside the answer: the last step of the
# analysis against the steps before it, and the analysis of another kind of problem, both word by word.
#
# What was expected when this was planned: that much of the raw drift is just other words. The claim below was made
# after looking at other problems (`seed="figures"`), and before the last course of pocket's training; the numbers are
# of problems that had no part in it.

# %% many
found = channel_drift.measure(model)
each = found["drift"].mean("layer")  # compared problem
mean = wb.statistics.mean_interval(each.values.T)
print(f"n = {found.attrs['n']} problems of each of {found.attrs['families']} families; bits, mean of the layers")
for name, value, low, high, null in zip(each["compared"].values, *mean[:3], found["null"].mean("layer").values):
    print(f"{name:26} {value:.3f} ({low:.3f} to {high:.3f}), chance {null:.3f}")

# %% paired-text [markdown]
# The same problems stand behind every line, so differences have intervals of their own.

# %% paired
answered, by_word, called, inside, step, kinds = each.values
for what, less in (
    ("matching the words takes off", answered - by_word),
    ("the name of the channel takes", by_word - called),
    ("header and place take", by_word - inside),
    ("beyond another kind of problem", by_word - kinds),
):
    value, low, high, *_ = wb.statistics.mean_interval(less)
    print(f"{what:32} {value:+.3f} ({low:+.3f} to {high:+.3f})")

# %% check-text [markdown]
# Another count of the same texts, by `specialisation`: what the expert that runs tells about the channel, and what it
# tells once the token is known. The scale is another one, bits about a label that is mostly "analysis". Here nearly
# half goes: "It" is in no analysis, so it says by itself where it stands, and leaves its experts nothing to tell.

# %% check
figure, traces = channel_drift.draw(model)  # the figure below, and the texts behind it
channels = []
for one in traces:
    channels.append([None] * len(one))
    for span in one.spans:
        channels[-1][span.content] = [span.channel] * len(one.str_tokens[span.content])
told = {
    given: wb.routing.expert_specialization(traces, channels, condition_on_token=given, n_shuffles=20)
    for given in (False, True)
}
for given, bits in told.items():
    print(
        "token known" if given else "not known  ",
        bits["information"].values.round(3),
        "chance",
        bits["null"].values.round(3),
    )
left = float(told[True]["information"].mean() / told[False]["information"].mean())
print(f"{left:.0%} are left")

# %% headline
assert abs(left - 0.55) < 0.12, left
assert abs(by_word.mean() - 0.245) < 0.05, by_word.mean()
assert abs(answered.mean() - 0.215) < 0.04, answered.mean()
assert abs(step.mean() - 0.04) < 0.03, step.mean()  # the steps of one analysis differ far less
assert wb.statistics.mean_interval(by_word - answered).low > -0.02  # matched, it is not less
assert abs((by_word - called).mean() - 0.015) < 0.015  # another name keeps nearly all of it
assert inside.mean() > 0.6 * by_word.mean()  # so does no header at all

# %% finding
from IPython.display import Markdown

n = found.attrs["n"] * found.attrs["families"]
Markdown(f"""**Finding.** pocket's answer is routed as differently from its analysis as the analyses of two kinds
of problem are from each other: {by_word.mean():.2f} bits word by word, where the last step differs from the
others by {step.mean():.2f} ({n} problems, intervals over problems above; what chance gives is taken off). Words
are part of it: once the token is known, {left:.0%} are left of what experts tell about the channel, for most
words stand on one side only. Among those that both sides have, nothing goes when they are matched. The channel's
name is worth {(by_word - called).mean():.3f} bits of the {by_word.mean():.2f}, and most of the rest stays when
the very same sentence is written into the analysis: what switches the experts is saying "It is …", not being in
`final`.

So "the model switches experts between channels" is true here, and a poor description.""")

# %% figure-text [markdown]
# ## The figure
#
# Left, by depth, with the public counts of gpt-oss-20b: 36,000 prompts, greedy, generated tokens only, not matched by
# token. It rises in the middle of the network (largest in layers 13 and 16 of 24), with answers that are short
# templates. The numbers are aggregated from
# [ExpertFingerprinting](https://github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting) (Priyanshu and Vijay 2025,
# Apache-2.0); `data/reference/gpt-oss-20b-routing.json` says how. Whether its curve is words, name or sentence nobody
# has said: the five lines of "Is it the channel?" would.

# %% figure
figure

# %% large [markdown]
# ## With your 20b
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")
# print(wb.estimate("What is 2741+5386?", model, record="", max_tokens=800))  # what its trace would take
# ```
#
# Everything up to "Over problems" then runs as it stands, on your own question. It takes the writing of one answer and
# two more readings of it: minutes on a laptop, seconds on a GPU. For an interval, give `passages` traces of your own
# problems; twenty texts suffice for what is shown here.

# %% limits [markdown]
# ## Limits
#
# - A full stop of the answer ends an answer. Word by word, the two sides have the same tokens, not the same neighbours:
#   "It is" comes before no digit of an analysis. What is left is all of the context, and "experts of the answer" is one
#   reading of it among others.
# - An answer in the name of the analysis, or glued to its end, is a text that pocket was never trained on. Part of what
#   changes there may be surprise.
# - Routes are counted by how often an expert runs; a heavy expert counts as much as a light one.
# - pocket has 6 layers, 32 experts and answers of a few tokens in one form. The curve of the 20b is another measurement
#   of another model, and depth is all they share.
