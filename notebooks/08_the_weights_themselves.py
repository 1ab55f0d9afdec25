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
# # The weights themselves
#
# What can be said of heads, routers and experts before anything is run? This notebook reads it off the weights, and
# then asks runs whether it is so. A prediction from weights is a claim like any other: it is tried on held-out
# problems, beside a null, and in places it fails.

# %% ask
import numpy as np

import workbench as wb

model = wb.Model("pocket")
trace = model.generate(wb.chat("Mod 10: a=3, b=a+4, c=b*2. Find c.", reasoning="high"), record="attention")
print(trace.text(channel="analysis"), "->", trace.text(channel="final"))

# %% sinks-text [markdown]
# ## Heads: sinks and distances
#
# A head's sink is one number, on the scale of its scores: what it would take if all keys of a window scored 0. Scores
# depend on the distance too, whatever the tokens are: their mean over all pairs of tokens, by distance.

# %% sinks
learned = wb.circuits.sink_logits(model)
print("learned sinks (layer head)")
print(learned["logit"].values.round(2))
scores = wb.circuits.qk_distance(model, range(16))  # layer head distance
print("the distance at which each head scores highest, by weights alone")
print(scores.argmax("distance").values)
for layer, head in ((0, 0), (0, 1), (2, 0), (2, 1)):
    print(f"{layer}.{head}", scores[layer, head, :6].round(1).values, f"sink {float(scores['sink'][layer, head]):.1f}")

# %% built-in [markdown]
# Four heads stand out: 0.0, 0.1, 2.0 and 2.1 look 1, 2, 1 and 3 tokens back. Before training these four were set to
# look just that far (data/pocket/README.md). So this is no discovery. It is a test whose answer is known, and it is
# passed: training has left them what they were made for, and the weights say so.

# %% built-in-holds
assert scores.argmax("distance").values[[0, 0, 2, 2], [0, 1, 0, 1]].tolist() == [1, 2, 1, 3]

# %% circuits-text [markdown]
# ## Heads: what they look at, what they write
#
# QK: which token looks at which. OV: what is made likelier when a token is seen. In layer 0 a head reads embeddings, so
# both are what it does; above, they are the direct path only. `copying` is 1 for a head that raises what it sees.

# %% circuits
qk = wb.circuits.qk_circuit(model, 0, 2, distance=4, k=5)
for query, key, logit in zip(qk["query_text"].values, qk["key_text"].values, qk["logit"].values):
    print(f"0.2, four tokens back: {query!r} looks at {key!r}, score {logit:.1f} (sink {qk.attrs['sink']:.1f})")
ov = wb.circuits.ov_circuit(model, 5, 3, k=5)
for source, target, logit in zip(ov["source_text"].values, ov["target_text"].values, ov["logit"].values):
    print(f"5.3: seeing {source!r} raises {target!r} by {logit:.1f}")
heads = [[wb.circuits.ov_circuit(model, layer, head, k=1).attrs["copying"] for head in range(4)] for layer in range(6)]
print("copying (layer head)")
print(np.round(heads, 2))

# %% routers-text [markdown]
# ## Routers and experts
#
# A router's row is a direction in the residual stream: an expert is preferred for the tokens whose embeddings point
# along it. Only tokens that occur in the problems are listed; of others, which were never trained, rows say nothing.
# What an expert writes can be read through the unembedding.

# %% routers
from workbench.studies import router_rows

used = {token for text in router_rows.traces(model) for token in text.tokens}
rows = [wb.circuits.router_tokens(model, layer, k=6, tokens=used) for layer in (0, 5)]
ran = np.asarray(trace["expert_indices", 0])
for expert in wb.routing.expert_load(trace).sel(layer=0).values.argsort()[::-1][:4]:
    at = np.flatnonzero((ran == expert).any(1))
    print(f"expert {expert:2} is preferred for", *map(repr, rows[0]["text"].values[expert]))
    print("          and ran at      ", *dict.fromkeys(repr(trace.str_tokens[p]) for p in at))
digit = max(p for p, text in enumerate(trace.str_tokens) if text.isdigit())  # the answer
expert = int(np.asarray(trace["expert_weights", 5])[digit - 1].argmax())
writes = wb.circuits.expert_logit_effects(model, 5, expert, k=6, tokens=used)
print(f"{trace.str_tokens[digit]!r} was written with expert {expert} of layer 5, whose bias raises", end=" ")
print(*map(repr, writes["bias_text"].values))

# %% view-text [markdown]
# The view has all of it beside what the run did: sinks as learned over mass on sinks, preferred tokens over loads.

# %% view
wb.views.weights(trace, learned, rows, writes)

# %% heads-text [markdown]
# ## Do runs confirm it? Heads
#
# If scores were what they are on average over tokens, the softmax by distance and sink would be each head's pattern.
# That gives the mass on the previous token, and on the sink. Both are measured on thirty held-out problems and compared
# by rank over the twelve heads of each kind of layer, against heads in another order.

# %% heads
from workbench.studies import predicted_heads

found = predicted_heads.measure(model)
back = found.sel(name="previous")
for layer, head in np.argwhere(back["weights"].values > 0.5):
    low, high = float(back["low"][layer, head]), float(back["high"][layer, head])
    print(f"{layer}.{head}: weights say {float(back['weights'][layer, head]):.2f} on the previous token;", end=" ")
    print(f"runs {float(back['runs'][layer, head]):.2f} ({low:.2f} to {high:.2f}), n = {found.attrs['n']}")
for name, label in predicted_heads.NAMES.items():
    for kind in predicted_heads.KINDS:
        one = found.sel(name=name, kind=kind)
        print(f"{label}, {kind:7}: rank correlation {float(one['rank']):+.2f}, p = {float(one['p']):.4f}")

# %% heads-holds
strong, seen = back["weights"].values > 0.5, back["runs"].values > 0.5
assert strong.sum() == 2 and (strong == seen).all(), back  # one of 276 pairs, by lot
assert float(found["rank"].sel(name="sink", kind="sliding")) > 0.7, found["rank"]
assert float(found["p"].sel(name="sink", kind="full")) > 0.05, found["p"]

# %% heads-figure
predicted_heads.draw(model)[0]

# %% routes-text [markdown]
# ## Do runs confirm it? Routes
#
# For each token of thirty held-out problems: of the four experts that ran, how many would its embedding alone have
# chosen? Three other guesses stand beside it. The same rows for the tokens in another order are the null. The busiest
# experts of the layer need no token. The usual route of that token in the other texts is the most that the token can
# tell by itself, with nothing of its context.

# %% routes
routes = router_rows.measure(model)
share = wb.statistics.mean_interval(routes["share"].values)
for layer in range(share.value.shape[1]):
    told = "  ".join(f"{v:.2f} ({a:.2f} to {b:.2f})" for v, a, b in zip(*(part[:, layer] for part in share[:3])))
    print(f"layer {layer}: {told}  null {float(routes['null'].mean('text')[layer]):.2f}")
print("in this order:", "; ".join(router_rows.WAYS))

# %% routes-holds
rows_alone, usual, busiest = share.value
null = routes["null"].mean("text").values
assert abs(rows_alone[0] - 0.48) < 0.08 and abs(rows_alone[5] - 0.30) < 0.08, rows_alone
assert (share.low[0] > null).all() and (usual > rows_alone + 0.05).all(), share
assert usual[5] - rows_alone[5] > usual[0] - rows_alone[0], share  # what is lost is not the token

# %% routes-figure
router_rows.draw(model)[0]

# %% words-text [markdown]
# ## Do runs confirm it? Words
#
# What the experts of the last layer write goes straight to the logits. Do their biases, weighted as in the run, raise
# the token that comes next? For each place of the thoughts: the share of all words in these texts that are raised less
# than the one that came. The null has the experts of another place of the same text.

# %% words
biases = np.zeros((model.config.n_experts, model.config.d_vocab))
for expert in range(model.config.n_experts):
    one = wb.circuits.expert_logit_effects(model, 5, expert, neurons=[0], k=model.config.d_vocab)
    biases[expert, one["bias"].values] = one["bias_logit"].values
texts, rng = router_rows.traces(model), np.random.default_rng(0)
words = np.unique(np.concatenate([text.tokens for text in texts]))
ranks = []
for text in texts:
    thought = next(span for span in text.spans if span.channel == "analysis")
    at = np.arange(thought.content_start, thought.content_stop) - 1
    weights = np.asarray(text["expert_weights", 5])[at]
    pair = []
    for used in (weights, rng.permutation(weights)):
        push = used @ biases
        came = push[np.arange(len(at)), np.array(text.tokens)[at + 1]]
        pair.append((push[:, words] < came[:, None]).mean())
    ranks.append(pair)
real, by_lot = (wb.statistics.mean_interval(np.array(ranks)[:, i]) for i in (0, 1))
print(f"raised less than what came: {real.value:.2f} ({real.low:.2f} to {real.high:.2f}) of {len(words)} words")
print(f"experts of another place: {by_lot.value:.2f} ({by_lot.low:.2f} to {by_lot.high:.2f}); n = {real.n} texts")

# %% words-holds
assert abs(real.value - 0.82) < 0.08 and real.low > by_lot.high, (real, by_lot)

# %% finding-text [markdown]
# ## Finding
#
# Weights alone find the heads that look one token back. They foretell how much the heads of sliding layers sink, and
# nothing of the full ones, which meet more keys than a mean over tokens can stand for. The learned sink by itself, the
# number that one would look at first, foretells neither. A router's row tells half of the routes in the first layer and
# less in each layer above. It is not that the token matters no longer: what other texts did with the same token
# foretells the routes better everywhere, and by more in the last layer than in the first. There the rows read what the
# layers below made of the token, and not its embedding.

# %% finding
for layer in (0, 5):
    one, most = (
        f"{share.value[way, layer]:.2f} ({share.low[way, layer]:.2f} to {share.high[way, layer]:.2f})" for way in (0, 1)
    )
    print(
        f"Routes of layer {layer}: rows {one}, usual route of the token {most}, null {null[layer]:.2f}, n = 30 texts."
    )
ranks = {kind: found.sel(name="sink", kind=kind) for kind in predicted_heads.KINDS}
for kind, one in ranks.items():
    print(f"Sinks of {kind} layers: rank correlation {float(one['rank']):+.2f}, p = {float(one['p']):.4f}, 12 heads.")
mass, logit = found["runs"].sel(name="sink").values.ravel(), learned["logit"].values.ravel()
alone = np.corrcoef(logit, mass)[0, 1]
print(f"The learned sinks alone: r = {alone:+.2f} over {len(mass)} heads.")

# %% finding-holds
assert abs(alone) < 0.5, alone

# %% yours [markdown]
# ## With your 20b
#
# ```python not-run
# model = wb.Model("openai/gpt-oss-20b")  # or a folder
# ```
#
# What is read off the weights needs no run. `wb.circuits.sink_logits` is 1,536 numbers. A circuit or a router's rows
# read the embeddings once, 1.2 GB; no matrix of tokens by tokens is made, and `tokens=` asks about some of them only.
# Choose layers and heads: there are 24 and 64. For the runs that confirm or refute it, take texts of your own.

# %% limits [markdown]
# ## Limits
#
# * The two heads that look back were made to do so before training, and so were four of the twelve sliding heads, which
#   also sink least. Without these four there are eight heads left, too few to be sure of a rank correlation.
# * Means over all pairs of tokens stand for a head; the tokens of problems are not all tokens.
# * Circuits above layer 0 are shown, not tested here. That an OV circuit copies does not say when the head looks.
# * The usual route of a token was learned from the same kinds of problems, and knows which tokens come there. It bounds
#   what a token tells in these texts, not in all.
# * A bias is the part of an expert that does not depend on what it reads: it foretells words, and does not explain
#   them.
