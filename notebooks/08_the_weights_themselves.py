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
# What can be predicted about heads, routers and experts before anything is run? This notebook derives predictions from
# the weights and then tests them on runs. A prediction from weights is a claim like any other: it is tested on held-out
# problems, against a null, and some of the predictions fail.

# %% ask
import numpy as np

import workbench as wb

model = wb.Model("pocket")
trace = model.generate(wb.chat("Mod 10: a=3, b=a+4, c=b*2. Find c.", reasoning="high"), record="attention")
print(trace.text(channel="analysis"), "->", trace.text(channel="final"))

# %% sinks-text [markdown]
# ## Heads: sinks and distances
#
# A head's sink is one learned logit, on the scale of the head's scores; its `share` is the mass it would take if all
# keys of a window scored 0. Scores also depend on the distance, for any tokens: below is the mean score over all pairs
# of tokens, by distance.

# %% sinks
learned = wb.circuits.sink_logits(model)
print("learned sinks (layer head)")
print(learned["logit"].values.round(2))
scores = wb.circuits.qk_distance(model, range(16))  # layer head distance
print("the distance with the highest mean score of each head, from weights alone")
print(scores.argmax("distance").values)
for layer, head in ((0, 0), (0, 1), (2, 0), (2, 1)):
    print(f"{layer}.{head}", scores[layer, head, :6].round(1).values, f"sink {float(scores['sink'][layer, head]):.1f}")

# %% built-in [markdown]
# Four heads stand out: 0.0, 0.1, 2.0 and 2.1 attend 1, 2, 1 and 3 tokens back. These four were initialized to attend
# exactly that far (data/pocket/README.md), so this is not a discovery. It is a test with a known answer, and the method
# passes: the heads kept their function in training, and the weights show it.

# %% built-in-holds
assert scores.argmax("distance").values[[0, 0, 2, 2], [0, 1, 0, 1]].tolist() == [1, 2, 1, 3]

# %% circuits-text [markdown]
# ## Heads: what they attend to, what they write
#
# QK circuit: which token attends to which. OV circuit: which tokens become more likely when a token is attended to. In
# layer 0 a head reads embeddings, so the circuits describe it fully; in later layers they are the direct path only.
# `copying` is 1 for a head that raises the logit of every token it attends to.

# %% circuits
qk = wb.circuits.qk_circuit(model, 0, 2, distance=4, k=5)
for query, key, logit in zip(qk["query_text"].values, qk["key_text"].values, qk["logit"].values):
    print(f"0.2, four tokens back: {query!r} attends to {key!r}, score {logit:.1f} (sink {qk.attrs['sink']:.1f})")
heads = [
    [wb.circuits.ov_circuit(model, layer, head, k=1).attrs["copying"] for head in range(model.config.n_heads)]
    for layer in range(model.config.n_layers)
]
last = model.config.n_layers - 1
copier = int(np.argmax(heads[last]))  # the head of the last layer that copies most
ov = wb.circuits.ov_circuit(model, last, copier, k=5)
for source, target, logit in zip(ov["source_text"].values, ov["target_text"].values, ov["logit"].values):
    print(f"{last}.{copier}: attending to {source!r} raises {target!r} by {logit:.1f}")
print("copying (layer head)")
print(np.round(heads, 2))

# %% routers-text [markdown]
# ## Routers and experts
#
# Each expert has a row in the router, a direction in the residual stream: the expert is preferred for the tokens whose
# embeddings point along it. Only tokens that occur in the problems are listed; other tokens were never trained, so
# their preferences are meaningless. The output of an expert can be projected through the unembedding.

# %% routers
from workbench.studies import router_rows

used = sorted({token for text in router_rows.traces(model) for token in text.tokens})
rows = [wb.circuits.router_tokens(model, layer, k=6, tokens=used) for layer in (0, last)]
ran = np.asarray(trace["expert_indices", 0])
for expert in wb.routing.expert_load(trace).sel(layer=0).values.argsort()[::-1][:4]:
    at = np.flatnonzero((ran == expert).any(1))
    print(f"expert {expert:2} is preferred for", *map(repr, rows[0]["text"].values[expert]))
    print("          and ran at      ", *dict.fromkeys(repr(trace.str_tokens[p]) for p in at))
digit = max(p for p, text in enumerate(trace.str_tokens) if text.isdigit())  # the answer
expert = int(np.asarray(trace["expert_weights", last])[digit - 1].argmax())
writes = wb.circuits.expert_logit_effects(model, last, expert, k=6, tokens=used)
print(f"{trace.str_tokens[digit]!r} was generated with expert {expert} of layer {last}, whose bias raises", end=" ")
print(*map(repr, writes["bias_text"].values))

# %% view-text [markdown]
# The view shows all of it next to the run: learned sinks above sink masses, preferred tokens above expert loads.

# %% view
wb.views.weights(trace, learned, rows, writes)

# %% heads-text [markdown]
# ## Do runs confirm it? Heads
#
# If every score equaled its mean over tokens, the softmax over distances and sink would be each head's pattern. That
# predicts the mass on the previous token and the sink mass. Both are measured on thirty held-out problems and compared
# by rank over the heads of each kind of layer, against shuffled heads.
#
# The measurement is a function of the package, `workbench.studies.predicted_heads.measure`. To read its code, run
# `predicted_heads.measure??` after the next cell.

# %% heads
from workbench.studies import predicted_heads

masses = predicted_heads.measure(model)
previous = masses.sel(name="previous")
for layer, head in np.argwhere(previous["weights"].values > 0.5):
    low, high = float(previous["low"][layer, head]), float(previous["high"][layer, head])
    print(f"{layer}.{head}: predicted {float(previous['weights'][layer, head]):.2f} on the previous token;", end=" ")
    print(f"measured {float(previous['runs'][layer, head]):.2f} ({low:.2f} to {high:.2f}), n = {masses.attrs['n']}")
for name, label in predicted_heads.NAMES.items():
    for kind in predicted_heads.KINDS:
        one = masses.sel(name=name, kind=kind)
        print(f"{label}, {kind:7}: rank correlation {float(one['rank']):+.2f}, p = {float(one['p']):.4f}")

# %% heads-holds
predicted, measured = previous["weights"].values > 0.5, previous["runs"].values > 0.5
assert predicted.any() and (predicted == measured).all(), previous
assert float(masses["rank"].sel(name="sink", kind="sliding")) > 0.7, masses["rank"]
assert float(masses["p"].sel(name="sink", kind="full")) > 0.05, masses["p"]

# %% heads-figure
predicted_heads.draw(model)[0]

# %% routes-text [markdown]
# ## Do runs confirm it? Routing
#
# For each token of thirty held-out problems: which share of the four chosen experts do the router's rows predict from
# the token's embedding alone? This is compared with three other predictions. The null applies the rows to the tokens in
# shuffled order. The most frequent experts of the layer use no token. The most frequent experts of the same token in
# the other texts are an upper bound for a prediction from the token alone, without its context.

# %% routes
routes = router_rows.measure(model)
share = wb.statistics.mean_interval(routes["share"].values)
for layer in range(share.value.shape[1]):
    cells = [f"{v:.2f} ({low:.2f} to {high:.2f})" for v, low, high in zip(*(part[:, layer] for part in share[:3]))]
    print(f"layer {layer}: {'  '.join(cells)}  null {float(routes['null'].mean('text')[layer]):.2f}")
print("in this order:", "; ".join(router_rows.PREDICTORS))

# %% routes-holds
rows_alone, usual, _ = share.value
null = routes["null"].mean("text").values
assert 0.35 < rows_alone[0] < 0.65 and rows_alone[last] < rows_alone[0] - 0.1, rows_alone
assert (share.low[0] > null).all() and (usual > rows_alone + 0.05).all(), share
lost = usual - rows_alone  # by layer
assert lost[last] > lost[0], share  # the loss is not one of information in the token

# %% routes-figure
router_rows.draw(model)[0]

# %% words-text [markdown]
# ## Do runs confirm it? Tokens
#
# The output of the experts of the last layer goes directly to the logits. Do their biases, weighted as in the run,
# raise the next token? For each position of the chain of thought: the share of all tokens of these texts that are
# raised less than the actual next one. The null uses the experts of another position of the same text.

# %% words
biases = np.zeros((model.config.n_experts, model.config.d_vocab))
for expert in range(model.config.n_experts):
    one = wb.circuits.expert_logit_effects(model, last, expert, neurons=[0], k=model.config.d_vocab)
    biases[expert, one["bias"].values] = one["bias_logit"].values
texts, rng = router_rows.traces(model), np.random.default_rng(0)
words = np.unique(np.concatenate([text.tokens for text in texts]))
ranks = []
for text in texts:
    thought = next(span for span in text.spans if span.channel == "analysis")
    at = np.arange(thought.content_start, thought.content_stop) - 1
    weights = np.asarray(text["expert_weights", last])[at]
    pair = []
    for expert_weights in (weights, rng.permutation(weights)):
        effect = expert_weights @ biases
        on_next = effect[np.arange(len(at)), np.array(text.tokens)[at + 1]]
        pair.append((effect[:, words] < on_next[:, None]).mean())
    ranks.append(pair)
real, shuffled = (wb.statistics.mean_interval(np.array(ranks)[:, i]) for i in (0, 1))
print(f"raised less than the next token: {real.value:.2f} ({real.low:.2f} to {real.high:.2f}) of {len(words)} tokens")
print(f"experts of another position: {shuffled.value:.2f} ({shuffled.low:.2f} to {shuffled.high:.2f});", end=" ")
print(f"n = {real.n} texts")

# %% words-holds
assert real.value > 0.7 and real.low > shuffled.high, (real, shuffled)

# %% finding-text [markdown]
# ## Finding
#
# Weights alone find the previous-token heads. They predict the sink mass of heads in sliding layers, but not in full
# layers, which have more keys than a mean over tokens can represent. The learned sink alone, the first number one would
# look at, predicts neither. A router's rows predict about half of the routing in the first layer and less in the
# last. The reason is not that the token stops mattering: the most frequent experts of the same token in other texts
# predict the routing better in every layer, and by a larger margin in the last layer than in the first. There the rows
# act on what earlier layers computed from the token, not on its embedding.

# %% finding
for layer in (0, last):
    one, most = (
        f"{share.value[way, layer]:.2f} ({share.low[way, layer]:.2f} to {share.high[way, layer]:.2f})" for way in (0, 1)
    )
    print(f"Routing of layer {layer}: rows {one}, the token's most frequent experts {most},", end=" ")
    print(f"null {null[layer]:.2f}, n = 30 texts.")
ranks = {kind: masses.sel(name="sink", kind=kind) for kind in predicted_heads.KINDS}
n_heads = masses["runs"].sel(name="sink").size // len(ranks)  # half of the layers are sliding
for kind, one in ranks.items():
    print(f"Sinks of {kind} layers: rank correlation {float(one['rank']):+.2f}, p = {float(one['p']):.4f},", end=" ")
    print(f"n = {n_heads} heads.")
mass, logit = masses["runs"].sel(name="sink").values.ravel(), learned["logit"].values.ravel()
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
# The predictions from weights need no run. `wb.circuits.sink_logits` returns 1,536 numbers. Computing a circuit or the
# tokens of a router reads the embeddings once (1.2 GB); no token-by-token matrix is computed, and `tokens=` restricts
# the tokens. Choose layers and heads: there are 24 and 64. For the runs that test the predictions, use texts of your
# own.

# %% limits [markdown]
# ## Limits
#
# * The previous-token heads were initialized as such, and four of the heads of sliding layers were initialized to
#   attend back; these four also have the lowest sink masses. Without them few heads are left for a rank correlation.
# * A head is represented by means over all pairs of tokens, but the problems use only some of the tokens.
# * Circuits above layer 0 are shown, not tested here. An OV circuit that copies does not show when the head attends.
# * The most frequent experts of a token come from the same kinds of problems with the same tokens. They bound what the
#   token predicts in these texts, not in general.
# * A bias is the part of an expert's output that is independent of its input: it predicts tokens, but does not explain
#   them.
