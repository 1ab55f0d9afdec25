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
# # Anatomy of attention
#
# gpt-oss has two features that textbook attention lacks: a learned sink in every head, which can absorb the head's
# attention, and sliding layers, which attend within a short window only and alternate with full layers. What do they
# do? Which heads follow a simple rule? And what breaks when sinks or long-range attention are ablated?

# %% ask
import numpy as np
import torch

import workbench as wb

model = wb.Model("pocket")
trace = model.generate(wb.chat("Mod 10: a=3, b=a+4, c=b*2. Find c.", reasoning="high"), record="attention")
kinds = [kind.split("_")[0] for kind in trace.config["layer_types"]]
print(trace.text(channel="analysis"), "->", trace.text(channel="final"))
print(f"{len(trace)} tokens; layers: {', '.join(kinds)}; window {trace.config['window']}")

# %% sinks-text [markdown]
# ## Sinks
#
# A head's sink is an extra logit in the softmax over its scores, and the sink's mass is missing from the row. So
# 1 - sink is a gate on the head's output. Some heads are always open; some are closed for most tokens and open for a
# few.

# %% sinks
mass = wb.attention.sink_mass(trace)  # layer head query
print(mass.mean("query").round(2).values)
thought = next(span for span in trace.spans if span.channel == "analysis")
inside = slice(thought.content_start, thought.content_stop)
swing = mass.isel(query=inside).std("query")
layer, head = np.unravel_index(swing.values.argmax(), swing.shape)
print(f"the gate that varies most within the thought: layer {layer}, head {head}")
at = range(len(trace))[inside]
print(" ".join(f"{trace.str_tokens[query].strip() or '_'}:{float(mass[layer, head, query]):.1f}" for query in at))

# %% sheet-text [markdown]
# The same on the token axis: the lane of sinks is a mean over heads; click on it to select a layer and a head.

# %% sheet
wb.views.score_sheet(trace, ["transcript", "sink", "entropy"])

# %% heads-text [markdown]
# ## Patterns
#
# Rows are queries, columns are keys; the sink mass of each row is shown next to the large pattern. Layer 1 is a full
# layer.

# %% heads
wb.views.heads(trace, layer=1, head=1)

# %% breakdown-text [markdown]
# ## Where attention goes
#
# `breakdown` splits each head's attention into the sink, the token itself, the first token, the window, and the tokens
# beyond the window, which a sliding layer cannot see. The parts sum to 1.

# %% breakdown
shares = wb.attention.breakdown(trace).mean("head")
names = ("sink", "self", "first", "local", "beyond")
for layer, kind in enumerate(kinds):
    print(f"layer {layer} {kind:8}", "  ".join(f"{name} {float(shares[name][layer]):.2f}" for name in names))

# %% many-text [markdown]
# ## Over problems: sinks and breakdown
#
# The reference solutions of thirty held-out problems of five families. Two nulls: for the sinks, heads in shuffled
# order; for the share beyond the window, the same attention spread evenly over all keys.
#
# The measurement is a function of the package, `workbench.studies.sinks.measure`. To read its code, run
# `sinks.measure??` after the next cell.

# %% many
from workbench.studies import attention_breakdown, sinks

by_head = sinks.measure(model)
n_with_sink = int((by_head["mass"] > 0.05).sum())
print(f"{n_with_sink} of {by_head['mass'].size} heads have a sink mass above 0.05,", end=" ")
print(f"the largest is {float(by_head['mass'].max()):.2f}")
print(f"learned logit against mass, over heads: r = {by_head.attrs['r']:.2f}, p = {by_head.attrs['p']:.3f}")
breakdown = attention_breakdown.measure(model)
(beyond, low, high), even = breakdown["beyond"].values, breakdown["even"].values
print(f"beyond the window, full layers: {beyond:.2f} ({low:.2f} to {high:.2f}), n = {breakdown.attrs['n']}")
print(f"spread evenly it would be {even[0]:.2f} ({even[1]:.2f} to {even[2]:.2f})")

# %% many-holds
assert 0.3 < n_with_sink / by_head["mass"].size < 0.9, n_with_sink  # many heads use their sink, others do not
assert beyond > 0.2 and high < even[1], breakdown

# %% many-read [markdown]
# In full layers a good part of the attention goes beyond the window, but less than with evenly spread attention: full
# layers too prefer nearby tokens. How much attention goes far does not show how important it is; that is measured
# below.

# %% breakdown-figure
attention_breakdown.draw(model)[0]

# %% sinks-figure
sinks.draw(model)[0]

# %% rules-text [markdown]
# ## Previous-token, duplicate-token and induction heads
#
# First on one text: the attention of each head to the previous token, to earlier occurrences of the same token, and to
# the tokens that followed these occurrences.

# %% rules
scores = wb.attention.head_scores(trace)


def layer_and_head(number):
    return divmod(int(number), trace.config["n_heads"])


for rule in scores:
    best = np.argsort(-scores[rule].values, None)[:3]
    top = [f"{layer}.{head} {float(scores[rule][layer, head]):.2f}" for layer, head in map(layer_and_head, best)]
    print(f"{rule:16}", ", ".join(top))

# %% random-text [markdown]
# A natural text has repetitions of its own, at distances that a head may have learned. So sequences of random words are
# repeated once, at a distance of 10 (within the window) or 30 (beyond it). The null has the same second half after
# other words: the only difference is the repetition. The p-values are adjusted for all heads, rules and periods.

# %% random
from workbench.studies import induction_heads

by_rule, follows = induction_heads.measure(model), induction_heads.followers(model)
for rule, period in (("previous token", 10), ("duplicate token", 10), ("induction", 10), ("induction", 30)):
    here = by_rule.sel(rule=rule, period=period)
    for layer, head in np.argwhere(follows.sel(rule=rule, period=period).values):
        mass = wb.statistics.mean_interval(here["mass"].values[:, layer, head])
        print(f"{rule}, {period:2}: {layer}.{head} {mass.value:.2f} ({mass.low:.2f} to {mass.high:.2f})", end=", ")
        print(f"null {float(here['null'][:, layer, head].mean()):.2f}")

# %% random-holds
previous_token = follows.sel(rule="previous token", period=10).values
assert previous_token[0, 0] and previous_token[2, 0], previous_token
induction = {period: follows.sel(rule="induction", period=period).values for period in induction_heads.PERIODS}
assert induction[10][1].sum() >= 2 and induction[30][1].sum() >= 2, induction
assert not induction[30][::2].any()  # sliding layers cannot attend 30 tokens back
best = by_rule["mass"].sel(rule="induction").mean("sequence").isel(layer=1).max("head")
assert float(best.min()) > 0.1, best

# %% rules-figure
induction_heads.draw(model)[0]

# %% built-on [markdown]
# To find the token that followed a word, an induction head of layer 1 needs to know at each key which token comes
# before it. Does it get that from the previous-token heads of layer 0? Each head of layer 0 is ablated in turn, and the
# induction score of layer 1 is measured again, on ten of the sequences that repeat after 30 tokens. The heads that do
# not attend to previous tokens are the controls.

# %% ablated
rows = []
for repeated, _ in induction_heads.runs(model)[30][:10]:
    row = [induction_heads.masses(repeated, 30)[2][1].mean()]
    for head in range(trace.config["n_heads"]):
        with model.edit("blocks.0.attn.hook_z", wb.ablate(head=head)):
            row.append(induction_heads.masses(model.trace(repeated, record="attention"), 30)[2][1].mean())
    rows.append(row)
mean = wb.statistics.mean_interval(np.array(rows))
for number, name in enumerate(["unedited", "without 0.0", "without 0.1", "without 0.2", "without 0.3"]):
    print(f"{name:12} {mean.value[number]:.2f} ({mean.low[number]:.2f} to {mean.high[number]:.2f}), n = {mean.n}")

# %% ablated-holds
assert mean.high[1] < 0.5 * mean.value[0] and mean.high[1] < mean.low[3:].min(), mean

# %% copies-text [markdown]
# ## Retrieval heads
#
# In a problem of the family hops, the last name occurs once in the question and is generated twice: at the end of the
# chain of thought, and in the answer. How often does a head attend to its position in the question when it is
# generated? A head that attended to a random token of the question would score one over the question's length.

# %% copies
from random import Random

from workbench.pocket.families import make

rng, copies, chance = Random("copies"), [], []
for _ in range(6):
    ask = wb.chat(make("hops", rng, length=3, split="test").question, reasoning="high")
    run = model.generate(ask, record="attention", max_tokens=60)
    question = next(span for span in run.spans if span.role == "user")
    copies.append(wb.attention.retrieval_scores(run, question.content).values)
    chance.append(1 / (question.content_stop - question.content_start))
retrieval = wb.statistics.mean_interval(np.array(copies))
for number in np.argsort(-retrieval.value, None)[:5]:
    (layer, head), bounds = layer_and_head(number), (bound.flat[number] for bound in retrieval[:3])
    print(f"{layer}.{head} {{:.2f}} ({{:.2f}} to {{:.2f}})".format(*bounds))
print(f"by chance {np.mean(chance):.2f}; n = {retrieval.n} problems")

# %% copies-read [markdown]
# The highest score is one half: the name is taken from the question when it is generated in the thought, and from the
# thought when it is generated in the answer.

# %% copies-holds
best = retrieval.value.argmax()
assert best // retrieval.value.shape[1] == 1 and abs(retrieval.value.flat[best] - 0.5) < 0.15, retrieval
assert retrieval.low.flat[best] > 3 * np.mean(chance), retrieval

# %% gates-text [markdown]
# ## Ablating sinks and long-range attention
#
# An edit at `hook_sink` sets the sink mass; the keys share the rest in unchanged proportions. An edit of the scores
# masks keys before the softmax. On this question:

# %% gates
window = trace.config["window"]


def mask_far(scores, hook):
    distance = torch.tensor(hook.positions)[:, None] - torch.arange(scores.shape[-1])
    return scores.masked_fill(distance >= window, -torch.inf)


for name, hook_point, fn in (
    ("no sinks", "blocks.*.attn.hook_sink", lambda sink: 0 * sink),
    ("no far edges", "blocks.*.attn.hook_attn_scores", mask_far),
):
    with model.edit(hook_point, fn):
        edited = model.generate(trace.tokens[: trace.prompt_length], record="", max_tokens=50)
    print(f"{name:12} {''.join(edited.str_tokens[edited.prompt_length :])!r}")

# %% worth-text [markdown]
# Over sixty held-out problems: is the solution still reproduced token by token? One forward pass is enough: greedy
# decoding reproduces a text if and only if each of its tokens is the most likely one at its position. Removing sinks
# has two effects: a head's output is larger on average, and the head no longer closes at particular tokens. Two
# controls keep the mean sink mass and destroy its timing: each head's sink mass is set to its mean over the text, or
# shuffled over the tokens of the text. Masking far edges (query-key pairs beyond the window) is compared with masking
# near edges in the same full layers; a token can then still attend to itself.

# %% worth
from workbench.studies import sink_and_edge_ablation

ablation = sink_and_edge_ablation.measure(model)
reproduced = ablation["reproduced"]
for name in sink_and_edge_ablation.CONDITIONS:
    hits = reproduced.sel(condition=name).values
    tokens = wb.statistics.mean_interval(ablation["tokens"].sel(condition=name).values)
    low, high = wb.statistics.wilson_interval(int(hits.sum()), len(hits))
    print(f"{name:14} {hits.mean():.2f} ({low:.2f} to {high:.2f}); tokens {tokens.value:.3f}", end=" ")
    print(f"({tokens.low:.3f} to {tokens.high:.3f})")
share = reproduced.mean("problem")
removal = reproduced.sel(condition="unedited") - reproduced.sel(condition="no sinks")
shuffling = reproduced.sel(condition="no sinks") - reproduced.sel(condition="sinks shuffled")
averaging = reproduced.sel(condition="no sinks") - reproduced.sel(condition="sinks at mean")
print("p, no sinks against unedited:", float(wb.statistics.sign_flip_test(removal.values).round(4)))
print("p, sinks at mean against no sinks:", float(wb.statistics.sign_flip_test(averaging.values).round(4)))
print("p, sinks shuffled against no sinks:", float(wb.statistics.sign_flip_test(shuffling.values).round(4)))

# %% worth-holds
assert float(share.sel(condition="unedited")) > 0.9, share
assert float(share.sel(condition="no sinks")) > 0.5, share  # most texts survive
assert float(wb.statistics.sign_flip_test(removal.values)) < 0.05
assert float(share.sel(condition="sinks at mean")) < float(share.sel(condition="no sinks")), share
assert float(share.sel(condition="sinks shuffled")) < 0.4, share
assert float(wb.statistics.sign_flip_test(shuffling.values)) < 0.01
assert float(share.sel(condition="no far edges")) < 0.1, share
tokens = ablation["tokens"].mean("problem")
assert float(tokens.sel(condition="no far edges")) + 0.1 < float(tokens.sel(condition="no near edges")), tokens

# %% gates-figure
sink_and_edge_ablation.draw(model)[0]

# %% finding-text [markdown]
# ## Finding
#
# Without sinks some texts are lost. (The model card, data/pocket/README.md, has 300 problems per family.) Setting sinks
# to their mean is worse than removing them, and shuffling them breaks most texts. So sinks act as gates, and it matters
# more at which tokens a gate is closed than how much mass the sink takes on average. Induction is done by one full
# layer, built on a previous-token head of a sliding layer, and it reaches beyond the window. Far edges have less
# attention than they would if it were spread evenly, and without them nothing is solved.

# %% finding
shares = {}
for name in ("no sinks", "sinks shuffled", "no far edges"):
    hits = reproduced.sel(condition=name).values
    shares[name] = "{:.2f} ({:.2f} to {:.2f})".format(
        hits.mean(), *wb.statistics.wilson_interval(int(hits.sum()), len(hits))
    )
print(f"Of n = {ablation.sizes['problem']} held-out solutions, {shares['no sinks']} are reproduced without sinks,")
print(f"{shares['sinks shuffled']} with shuffled sinks, {shares['no far edges']} without far edges; unedited,", end=" ")
print(f"{float(share.sel(condition='unedited')):.2f}.")
no_near, no_far = (float(tokens.sel(condition=f"no {edges} edges")) for edges in ("near", "far"))
print(f"Without near edges {no_near:.2f} of the tokens are still the most likely, without far ones {no_far:.2f}.")
for period in induction_heads.PERIODS:
    here = by_rule.sel(rule="induction", period=period)
    layer, head = layer_and_head((here["mass"] - here["null"]).mean("sequence").values.argmax())
    mass, null = (wb.statistics.mean_interval(here[name].values[:, layer, head]) for name in ("mass", "null"))
    print(
        f"Induction over {period} tokens: {layer}.{head} {mass.value:.2f} ({mass.low:.2f} to {mass.high:.2f}),", end=" "
    )
    print(f"null {null.value:.2f} ({null.low:.2f} to {null.high:.2f}), n = {mass.n} sequences.")

# %% yours [markdown]
# ## With your 20b
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")  # or a folder
# ```
#
# The cells on one trace run unchanged; the held-out problems are pocket's own. The window is 128 there: choose a
# question with a longer chain of thought, and periods of 50 and 200. Queries and keys, from which patterns are
# computed, take 24 layers × 72 heads × 64 numbers × 2 bytes = 0.22 MB per token; `wb.estimate(ask, model,
# record="attention")` predicts the size before the run. Each edit needs one more run.

# %% limits [markdown]
# ## Limits
#
# * Heads 0.0, 0.1, 2.0 and 2.1 were initialized to attend 1, 2, 1 and 3 tokens back before training, and heads of the
#   full layers to read the output of those (data/pocket/README.md). So induction in layer 1 was favored by the
#   initialization.
# * All sinks are edited at once; the experiment does not show which of them matter. Mean and shuffled sink masses come
#   from the unedited run, although the edited run drifts away from it.
# * Token-by-token reproduction is a strict criterion: a text that corrects itself counts as lost, but may have the
#   right answer.
# * Far and near edges differ in number and mass. The contrast shows that far ones are needed, not how much each one
#   matters; `wb.patching.attention_knockout` compares chosen edges with the same amount of attention elsewhere.
# * pocket was not trained on random words. That is intended, because no head can have learned their repetitions, but it
#   lowers all scores.
