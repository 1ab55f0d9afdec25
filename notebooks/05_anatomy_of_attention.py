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
# gpt-oss has two things that textbook attention has not: a learned sink in every head, to which a head can give its
# attention away, and layers that see a short window only, in turns with layers that see everything. What do they do?
# Which heads follow a rule that can be named? And what breaks when sinks, or long edges, are taken away?

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
# The scores of a head meet its sink in the softmax, and what the sink takes is missing from the row. So 1 - sink is a
# gate on the head's output. Some heads are open always, some are shut for most tokens and open for a few.

# %% sinks
mass = wb.attention.sink_mass(trace)  # layer head query
print(mass.mean("query").round(2).values)
thought = next(span for span in trace.spans if span.channel == "analysis")
inside = slice(thought.content_start, thought.content_stop)
swing = mass.isel(query=inside).std("query")
layer, head = np.unravel_index(swing.values.argmax(), swing.shape)
print(f"the gate that moves most within the thought: layer {layer}, head {head}")
at = range(len(trace))[inside]
print(" ".join(f"{trace.str_tokens[query].strip() or '_'}:{float(mass[layer, head, query]):.1f}" for query in at))

# %% sheet-text [markdown]
# The same on the token axis: the lane of sinks is a mean over heads; a click on it goes to a layer and a head.

# %% sheet
wb.views.score_sheet(trace, ["transcript", "sink", "entropy"])

# %% heads-text [markdown]
# ## Patterns
#
# Rows are queries, columns keys; beside the large pattern stands what its rows gave to the sink. Layer 1 is a full one.

# %% heads
wb.views.heads(trace, layer=1, head=1)

# %% ledger-text [markdown]
# ## Where attention goes
#
# The ledger splits each head's attention into sink, the token itself, the first token, the window, and what lies beyond
# it, which a sliding layer cannot see. The parts sum to 1.

# %% ledger
book = wb.attention.breakdown(trace).mean("head")
for layer, kind in enumerate(kinds):
    parts = "  ".join(f"{part} {float(book[part][layer]):.2f}" for part in ("sink", "self", "first", "local", "beyond"))
    print(f"layer {layer} {kind:8} {parts}")

# %% many-text [markdown]
# ## Over problems: sinks and ledger
#
# Thirty held-out problems of five families, read as they should be solved. Two nulls: for the sinks, heads in another
# order; for what lies beyond the window, the same attention spread evenly over all keys.

# %% many
from workbench.studies import ledger as where
from workbench.studies import sinks

found = sinks.measure(model)
shut = int((found["mass"] > 0.05).sum())
print(f"{shut} of {found['mass'].size} heads give their sink more than 0.05, the most {float(found['mass'].max()):.2f}")
print(f"learned logit against mass, over heads: r = {found.attrs['r']:.2f}, p = {found.attrs['p']:.3f}")
far = where.measure(model)
(beyond, low, high), even = far["beyond"].values, far["even"].values
print(f"beyond the window, full layers: {beyond:.2f} ({low:.2f} to {high:.2f}), n = {far.attrs['n']}")
print(f"spread evenly it would be {even[0]:.2f} ({even[1]:.2f} to {even[2]:.2f})")

# %% many-holds
assert abs(shut - 14) <= 2, shut
assert abs(beyond - 0.35) < 0.05 and high < even[1], far

# %% many-said [markdown]
# Full layers have a third of their attention beyond the window, and still less than they would without any preference:
# they too look near. How much attention goes far does not say what it is worth; that is measured below.

# %% ledger-figure
where.draw(model)[0]

# %% sinks-figure
sinks.draw(model)[0]

# %% rules-text [markdown]
# ## Heads by their rule
#
# On one text first: the mass that each head gives to the token before, to earlier places of the same token, and to what
# followed those.

# %% rules
scores = wb.attention.head_scores(trace)


def place_of(number):
    return divmod(int(number), trace.config["n_heads"])


for rule in scores:
    best = np.argsort(-scores[rule].values, None)[:3]
    told = [f"{layer}.{head} {float(scores[rule][layer, head]):.2f}" for layer, head in map(place_of, best)]
    print(f"{rule:16}", ", ".join(told))

# %% random-text [markdown]
# A text in sentences has repetitions of its own, at distances that a head may know by heart. So words are drawn at
# random and said twice, 10 apart (within the window) and 30 apart (beyond it). The null has the same second half after
# other words: what differs is only that the words return. The p-values are for all heads, rules and periods together.

# %% random
from workbench.studies import rules

found, follows = rules.measure(model), rules.followers(model)
for rule, period in (("previous token", 10), ("duplicate token", 10), ("induction", 10), ("induction", 30)):
    here = found.sel(rule=rule, period=period)
    for layer, head in np.argwhere(follows.sel(rule=rule, period=period).values):
        mass = wb.statistics.mean_interval(here["mass"].values[:, layer, head])
        print(f"{rule}, {period:2}: {layer}.{head} {mass.value:.2f} ({mass.low:.2f} to {mass.high:.2f})", end=", ")
        print(f"null {float(here['null'][:, layer, head].mean()):.2f}")

# %% random-holds
back = follows.sel(rule="previous token", period=10).values
assert back[0, 0] and back[2, 0], back
inducing = {period: follows.sel(rule="induction", period=period).values for period in rules.PERIODS}
assert inducing[10][1].sum() >= 3 and inducing[30][1].sum() >= 3, inducing
assert not inducing[30][[0, 2, 4]].any()  # sliding layers cannot
best = found["mass"].sel(rule="induction").mean("sequence").isel(layer=1).max("head")
assert abs(float(best.sel(period=10)) - 0.25) < 0.1 and abs(float(best.sel(period=30)) - 0.18) < 0.1, best

# %% rules-figure
rules.draw(model)[0]

# %% built-on [markdown]
# To find what followed a word, layer 1 must know of each key which word came before it. Does it have that from the
# heads of layer 0 that look back? Each head of layer 0 is silenced in turn, and the induction of layer 1 is measured
# again, on ten of the sequences that return after 30. The heads that do not look back are the controls.

# %% silenced
left = []
for twice, _ in rules.runs(model)[30][:10]:
    row = [rules.told(twice, 30)[2][1].mean()]
    for head in range(trace.config["n_heads"]):
        with model.edit("blocks.0.attn.hook_z", wb.ablate(head=head)):
            row.append(rules.told(model.trace(twice, record="attention"), 30)[2][1].mean())
    left.append(row)
left = wb.statistics.mean_interval(np.array(left))
for number, name in enumerate(["as it is", "without 0.0", "without 0.1", "without 0.2", "without 0.3"]):
    print(f"{name:12} {left.value[number]:.2f} ({left.low[number]:.2f} to {left.high[number]:.2f}), n = {left.n}")

# %% silenced-holds
assert left.high[1] < 0.5 * left.value[0] and left.high[1] < left.low[3:].min(), left

# %% copies-text [markdown]
# ## Heads that retrieve
#
# In a chain of passes, the last name stands in the question once, and is written twice: at the end of the thought, and
# in the answer. How often did a head look at its place in the question when it was written? A head that looked at one
# token of the question by lot would score one over its length.

# %% copies
from random import Random

from workbench.pocket.families import make

rng, copies, lots = Random("copies"), [], []
for _ in range(6):
    ask = wb.chat(make("hops", rng, length=3, split="test").question, reasoning="high")
    told = model.generate(ask, record="attention", max_tokens=60)
    question = next(span for span in told.spans if span.role == "user")
    copies.append(wb.attention.retrieval_scores(told, question.content).values)
    lots.append(1 / (question.content_stop - question.content_start))
sure = wb.statistics.mean_interval(np.array(copies))
for number in np.argsort(-sure.value, None)[:5]:
    (layer, head), parts = place_of(number), (part.flat[number] for part in sure[:3])
    print(f"{layer}.{head} {{:.2f}} ({{:.2f}} to {{:.2f}})".format(*parts))
print(f"by lot {np.mean(lots):.2f}; n = {sure.n} problems")

# %% copies-said [markdown]
# One half is the most that is seen: the name is looked up in the question when it is thought, and in the thought when
# it is answered.

# %% copies-holds
best = sure.value.argmax()
assert best // sure.value.shape[1] == 1 and abs(sure.value.flat[best] - 0.5) < 0.15, sure
assert sure.low.flat[best] > 3 * np.mean(lots), sure

# %% gates-text [markdown]
# ## What sinks and far edges are worth
#
# An edit at `hook_sink` sets what the sink takes; the keys share the rest, in the proportions that they had. An edit of
# the scores hides keys before the softmax. On this question:

# %% gates
window = trace.config["window"]


def far(scores, hook):
    behind = torch.tensor(hook.positions)[:, None] - torch.arange(scores.shape[-1])
    return scores.masked_fill(behind >= window, -torch.inf)


for name, where_to, fn in (
    ("no sinks", "blocks.*.attn.hook_sink", lambda sink: 0 * sink),
    ("no far edges", "blocks.*.attn.hook_attn_scores", far),
):
    with model.edit(where_to, fn):
        edited = model.generate(trace.tokens[: trace.prompt_length], record="", max_tokens=50)
    print(f"{name:12} {''.join(edited.str_tokens[edited.prompt_length :])!r}")

# %% worth-text [markdown]
# Over sixty held-out problems: is the solution still written, word by word? One pass tells, for greedy text is the text
# that was read exactly if each of its tokens is the likeliest in its place. Taking sinks away does two things: heads
# speak louder on average, and they no longer fall silent where they used to. Two controls keep the amount and take the
# timing: each head's sink is held at its mean, or moved to other tokens of the text. For the far edges the
# contrast is the near ones, in the same full layers, where a token still sees itself.

# %% worth
from workbench.studies import gates

done = gates.measure(model)
for name in gates.SETS:
    hits, tokens = (
        done["written"].sel(set=name).values,
        wb.statistics.mean_interval(done["tokens"].sel(set=name).values),
    )
    low, high = wb.statistics.wilson_interval(int(hits.sum()), len(hits))
    print(f"{name:13} {hits.mean():.2f} ({low:.2f} to {high:.2f}); tokens {tokens.value:.3f}", end=" ")
    print(f"({tokens.low:.3f} to {tokens.high:.3f})")
share = done["written"].mean("problem")
lost = done["written"].sel(set="as it is") - done["written"].sel(set="no sinks")
timing = done["written"].sel(set="no sinks") - done["written"].sel(set="sinks moved")
still = done["written"].sel(set="no sinks") - done["written"].sel(set="sinks held")
print("p, no sinks against as it is:", float(wb.statistics.sign_flip_test(lost.values).round(4)))
print("p, sinks held against none:", float(wb.statistics.sign_flip_test(still.values).round(4)))
print("p, sinks moved against none:", float(wb.statistics.sign_flip_test(timing.values).round(4)))

# %% worth-holds
assert float(share.sel(set="as it is")) > 0.9, share
assert abs(float(share.sel(set="no sinks")) - 0.85) < 0.12, share
assert float(wb.statistics.sign_flip_test(lost.values)) < 0.05
assert float(share.sel(set="sinks held")) < float(share.sel(set="no sinks")), share
assert abs(float(share.sel(set="sinks moved")) - 0.13) < 0.15, share
assert float(wb.statistics.sign_flip_test(timing.values)) < 0.01
assert float(share.sel(set="no far edges")) < 0.1, share
tokens = done["tokens"].mean("problem")
assert float(tokens.sel(set="no far edges")) + 0.1 < float(tokens.sel(set="no near edges")), tokens

# %% gates-figure
gates.draw(model)[0]

# %% finding-text [markdown]
# ## Finding
#
# Taken away, sinks are missed in one text of six or seven, most of them additions. (Forty problems could not tell; the
# card of the model, with 300 a family, says the same.) Held at their mean they are worse than taken away, and given to
# the wrong tokens they break most texts. So they are gates, and what matters is when they are shut, more than how much
# they take. Induction is the work of one full layer, on top of a head of a sliding layer that looks one token back, and
# it does not end at the window. Far edges carry less than their even share of attention, and without them nothing is
# solved.

# %% finding
told = {}
for name in ("no sinks", "sinks moved", "no far edges"):
    hits = done["written"].sel(set=name).values
    told[name] = "{:.2f} ({:.2f} to {:.2f})".format(
        hits.mean(), *wb.statistics.wilson_interval(int(hits.sum()), len(hits))
    )
print(f"Of n = {done.sizes['problem']} held-out problems, {told['no sinks']} are solved word by word without sinks,")
print(f"{told['sinks moved']} with sinks of other tokens, {told['no far edges']} without far edges; as it is,", end=" ")
print(f"{float(share.sel(set='as it is')):.2f}.")
near, far_off = (float(tokens.sel(set=f"no {which} edges")) for which in ("near", "far"))
print(f"Without near edges {near:.2f} of the tokens are still the likeliest, without far ones {far_off:.2f}.")
for period in rules.PERIODS:
    here = found.sel(rule="induction", period=period)
    layer, head = place_of((here["mass"] - here["null"]).mean("sequence").values.argmax())
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
# The cells on one trace run as they are; the held-out problems are pocket's own. The window is 128 there: ask something
# that is thought about for longer, and take periods of 50 and 200. Queries and keys, from which patterns are made, take
# 24 layers × 72 heads × 64 numbers × 2 bytes = 0.22 MB a token; `wb.estimate(ask, model, record="attention")` tells
# before it runs. An edit is one more run each.

# %% limits [markdown]
# ## Limits
#
# * Heads 0.0, 0.1, 2.0 and 2.1 were set to look 1, 2, 1 and 3 tokens back before training, and heads of the full layers
#   to read what those write (data/pocket/README.md). That layer 1 does induction is what it was given a start for.
# * All sinks are edited at once; which of them matters is not said. Sinks that are held or moved come from the unedited
#   run, though the edited one drifts away from it.
# * Written word by word is strict: a text that corrects itself counts as lost, and may have the right answer.
# * Far and near edges differ in number and mass. The contrast says that far ones are needed, not how much each is
#   worth; `wb.patching.attention_knockout` cuts chosen edges against as much attention elsewhere.
# * Words at random are nothing that pocket was trained on, which is the point, and lowers all scores.
