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
# Public counts show that gpt-oss-20b routes the answer differently from the chain of thought. The reason could be the
# tokens of the answer, which differ; its channel, which is named in the header; or its position. This notebook
# separates the three, in a model that is small enough for experiments.

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
# A column is a token, a color is an expert; the lower panel shows one layer. The last message, after the second
# `<|channel|>`, is the answer. Compare its digits with the same digits in the analysis.

# %% routing
wb.views.routing(trace, layer=2)

# %% sheet-text [markdown]
# The score sheet of the same run: the router margin (`margin`), the router logit of the last chosen expert minus that
# of the next one, and the entropy of the next token. Where the margin is small, the choice is close to arbitrary, and
# no conclusion should depend on it.

# %% sheet
wb.views.score_sheet(trace, ["transcript", "entropy", "margin", "depth"])

# %% raw-text [markdown]
# ## Raw: the expert loads of two channels
#
# How often each expert runs in the analysis and in the answer, and the Jensen-Shannon divergence of the two loads, by
# layer: 0 bits if they are the same, 1 if they share no expert. Two halves of one text also differ by chance, and more
# so if they are short. So `routing_drift` shuffles positions between the two and subtracts the mean divergence of the
# shuffles.

# %% raw
drift = wb.routing.routing_drift(trace, [thought, answer], n_shuffles=200).sel(step=1, key_step=0)
for layer in drift["layer"].values:
    at = drift.sel(layer=layer)
    print(
        f"layer {layer}: {at['raw'].item():.2f} bits, {at['drift'].item():.2f} above chance (p = {at['p'].item():.3f})"
    )

# %% token-text [markdown]
# ## The same token
#
# "It is" occurs in no analysis, and a router chooses other experts for other tokens. So compare a token with itself:
# the full stop at the end of the analysis and the one at the end of the answer. For scale, each `=` of the analysis is
# compared with every other. 1 means that the same experts run with the same weights in all layers.

# %% token
ends = wb.routing.fixed_token_routing(trace, ".")
within = wb.routing.fixed_token_routing(trace, "=")
print("full stops, analysis and answer:", ends.values.round(2)[0, 1:])
print("`=` and `=`, within the analysis:", within.values[np.triu_indices(len(within), 1)].round(2))

# %% name-text [markdown]
# ## Is it the channel?
#
# Tokens can be matched, and the channel can be changed. In the header of the answer, one token names the channel:
# `final`. Replace it by `analysis` and run the text again; all other tokens and all positions stay the same. Then put
# the answer into the analysis, without a header.

# %% name
ids = list(trace.tokens)
renamed = model.trace([*ids[: answer.start - 2], ids[thought.start - 2], *ids[answer.start - 1 :]], record="")
joined = model.trace(ids[: thought.stop] + ids[answer.start : answer.stop], record="")
experts = trace["expert_indices"][:, answer]
for edit, edited, span in (
    ("renamed channel", renamed, answer),
    ("no header", joined, slice(thought.stop, thought.stop + answer.stop - answer.start)),
):
    edited_experts = edited["expert_indices"][:, span]
    unchanged = (experts[..., None] == edited_experts[..., None, :]).any(-1).mean((1, 2))
    print(f"{edit}: {1 - unchanged.mean():.0%} of the answer's experts change; by layer", (1 - unchanged).round(2))

# %% many-text [markdown]
# ## Over problems
#
# One text is an anecdote. `channel_drift.measure` makes the same comparisons on held-out problems of five families. It
# pools the loads of a family, matches tokens (each token has the same weight on both sides, and positions are shuffled
# only among those with the same token), and gives intervals over problems. Two comparisons, both matched by token, show
# how large the numbers are: the last step of the analysis against the steps before it, and the analyses of two kinds of
# problem.
#
# The hypothesis when this study was planned: much of the raw drift is only due to different tokens. The claim below was
# made after looking at other problems (`seed="figures"`), and before the last training run of pocket; the numbers are
# from problems that had no part in it.
#
# The measurement is a function of the package, `workbench.studies.channel_drift.measure`. To read its code, run
# `channel_drift.measure??` in a new cell.

# %% many
drifts = channel_drift.measure(model)
by_problem = drifts["drift"].mean("layer")  # compared problem
mean = wb.statistics.mean_interval(by_problem.values.T)
print(f"n = {drifts.attrs['n']} problems of each of {drifts.attrs['families']} families; bits, mean of the layers")
for name, value, low, high, null in zip(by_problem["compared"].values, *mean[:3], drifts["null"].mean("layer").values):
    print(f"{name:26} {value:.3f} ({low:.3f} to {high:.3f}), chance {null:.3f}")

# %% paired-text [markdown]
# Every row uses the same problems, so differences have intervals of their own.

# %% paired
answer_drift, matched, renamed_drift, within, last_step, other_kind = by_problem.values
for label, difference in (
    ("due to unmatched tokens", answer_drift - matched),
    ("due to the name of the channel", matched - renamed_drift),
    ("due to header and position", matched - within),
    ("beyond another kind of problem", matched - other_kind),
):
    value, low, high, *_ = wb.statistics.mean_interval(difference)
    print(f"{label:32} {value:+.3f} ({low:+.3f} to {high:+.3f})")

# %% check-text [markdown]
# A second measure on the same texts, `expert_specialization`: the mutual information of expert choice and channel,
# plain and conditioned on the token. The scale is different: bits about a label that is mostly "analysis". A part of
# the information is lost by conditioning: "It" occurs in no analysis, so the token alone determines the channel, and
# its experts add no information.

# %% check
figure, traces = channel_drift.draw(model)  # the figure below, and the traces it was computed from
channels = []
for one in traces:
    channels.append([None] * len(one))
    for span in one.spans:
        channels[-1][span.content] = [span.channel] * len(one.str_tokens[span.content])
information = {
    given_token: wb.routing.expert_specialization(traces, channels, condition_on_token=given_token, n_shuffles=20)
    for given_token in (False, True)
}
for given_token, bits in information.items():
    print(
        "given the token" if given_token else "plain          ",
        bits["information"].values.round(3),
        "chance",
        bits["null"].values.round(3),
    )
remaining = float(information[True]["information"].mean() / information[False]["information"].mean())
print(f"{remaining:.0%} remain")

# %% headline
assert 0.2 < remaining < 0.9, remaining  # a part is lost, not all
assert 0.7 < matched.mean() / other_kind.mean() < 1.5, (matched.mean(), other_kind.mean())
assert last_step.mean() < 0.4 * matched.mean(), last_step.mean()  # the steps of one analysis differ far less
assert wb.statistics.mean_interval(matched - answer_drift).low > -0.02  # matching tokens does not reduce it
assert abs((matched - renamed_drift).mean()) < 0.2 * matched.mean()  # renaming the channel keeps nearly all of it
assert within.mean() > 0.6 * matched.mean()  # so does removing the header

# %% finding
from IPython.display import Markdown

n = drifts.attrs["n"] * drifts.attrs["families"]
Markdown(f"""**Finding.** pocket's answer is routed as differently from its analysis as the analyses of two kinds of
problem are from each other: {matched.mean():.2f} bits matched by token, while the last step differs from earlier
steps by {last_step.mean():.2f} ({n} problems, intervals over problems above; the chance level is subtracted). Tokens
are part of the reason: given the token, {remaining:.0%} of the information of experts about the channel remains,
because most tokens occur on one side only. Among tokens that occur on both sides, matching does not reduce the drift.
The channel's name accounts for {(matched - renamed_drift).mean():.3f} bits of the {matched.mean():.2f}, and most of
the rest stays when the same sentence is put into the analysis: the experts are switched by the sentence "It is …",
not by the channel `final`.

So "the model switches experts between channels" is true here, but a poor description.""")

# %% figure-text [markdown]
# ## The figure
#
# Top: the divergence by depth, with the public counts of gpt-oss-20b: 36,000 prompts, greedy decoding, generated tokens
# only, not matched by token. Its divergence is largest in the middle of the network (layers 13 and 16 of 24), and its
# answers are short templates. The numbers are aggregated from
# [ExpertFingerprinting](https://github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting) (Priyanshu and Vijay 2025,
# Apache-2.0); `data/reference/gpt-oss-20b-routing.json` documents how. Whether that curve is due to tokens, channel
# name or sentence is not known; running the cell under "Is it the channel?" on gpt-oss-20b would measure it.

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
# Everything up to "Over problems" then runs unchanged, on your own question. It needs the generation of one answer and
# two more prefills of that text: minutes on a laptop, seconds on a GPU. For an interval, call `passages` on traces of
# your own problems; twenty texts suffice for the results shown here.

# %% limits [markdown]
# ## Limits
#
# - Matching by token gives both sides the same tokens, but not the same neighbors: the full stop of an answer follows
#   an answer, and "It is" precedes no digit of an analysis. The remaining difference is due to the whole context;
#   "experts of the answer" is only one interpretation.
# - An answer with "analysis" in its header, or appended to the analysis, is a text that pocket was never trained on.
#   Part of the change there may be due to that.
# - Routes are counted by how often an expert runs; an expert with a large weight counts as much as one with a small
#   weight.
# - pocket has few layers, 32 experts and answers of a few tokens in one form. The curve of the 20b is another
#   measurement of another model; the two share only the depth axis.
