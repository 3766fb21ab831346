#!/usr/bin/env python3
"""Draws the diagrams of the README and of the pages: dev/figures/NAME.svg.

They are drawn from what the source says: every box of the blocks is an op of llmc/gpt.cpp, the growth orders are GROWTH below (a test holds
it to what ./grow makes), the tiles are those that AttentionSizes of llmc/ops/attention_cuda.h calls visible. The same matplotlib gives the
same bytes."""
import argparse
import io
import re
from pathlib import Path

from script import refuse, write_whole

FIGURES = Path(__file__).resolve().parent / "figures"

# One scheme: an edge and a fill for each role. Colour-blind safe (Okabe and Ito), as the curves of plot.py.
INK, GREY, LINE = "#222222", "#666666", "#555555"
ROLES = {
    "attention": ("#0072b2", "#dcecf6"),
    "mlp": ("#009e73", "#daf1ea"),
    "embedding": ("#d98a00", "#fdf0d5"),
    "special": ("#d55e00", "#fbe5d8"),     # what one recipe has and the other has not; masks; waits
    "plain": ("#777777", "#f1f1f1"),       # norms, copies, what is left out
    "state": ("#a3527f", "#f5e4ee"),
}

# --order, the other flags, layers of the source, layers that the grown model has: numbers of the source's, or + for a new one.
GROWTH = [
    ("stack", "--depth 6", 3, "0 1 2 0 1 2"),
    ("interleave", "--depth 6", 3, "0 0 1 1 2 2"),
    ("first", "--depth 6", 3, "0 0 0 0 1 2"),
    ("last", "--depth 6", 3, "0 1 2 2 2 2"),
    ("middle", "--depth 6", 4, "0 1 2 1 2 3"),
    ("solar", "--drop 1", 4, "0 1 2 1 2 3"),
    ("random", "--depth 6", 3, "0 1 2 + + +"),
    ("zero", "--depth 6", 3, "0 1 2 + + +"),
]


# ------------------------------------------------------------------------------------------------------------------------- the pen


class Drawing:
    """A white card; coordinates are points from its upper left corner."""

    def __init__(self, plt, width, height, title, subtitle=""):
        from matplotlib import patches, path

        self.patches, self.path = patches, path.Path
        self.figure = plt.figure(figsize=(width / 72, height / 72))
        self.figure.patch.set_alpha(0)
        self.axes = self.figure.add_axes([0, 0, 1, 1])
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.axis("off")
        self.rectangle(0.5, 0.5, width - 1, height - 1, "#d8d8d8", "white", round=8, line=1, z=0)
        self.text(16, 22, title, size=12.5, weight="bold")
        if subtitle:
            self.text(16, 39, subtitle, size=8.6, color=GREY)

    def rectangle(self, x, y, w, h, edge, fill, round=3.5, line=1.1, dashed=False, z=2):
        style = f"round,pad=0,rounding_size={round}" if round else "square,pad=0"
        self.axes.add_patch(self.patches.FancyBboxPatch((x, y), w, h, boxstyle=style, edgecolor=edge, facecolor=fill, linewidth=line,
                                                        linestyle=(0, (3, 2)) if dashed else "-", zorder=z, clip_on=False))

    def text(self, x, y, words, size=9.0, color=INK, ha="left", va="center", weight="normal", style="normal", rotation=0, z=5):
        self.axes.text(x, y, words, fontsize=size, color=color, ha=ha, va=va, fontweight=weight, fontstyle=style, rotation=rotation, zorder=z,
                       linespacing=1.3)

    def box(self, x, y, w, h, words, role="plain", below="", size=9.0, small=7.6, weight="normal", dashed=False, z=2):
        """A box with its name, and a smaller line below the name."""
        edge, fill = ROLES[role]
        self.rectangle(x, y, w, h, edge, fill, dashed=dashed, z=z)
        if below:
            self.text(x + w / 2, y + h / 2 - 0.62 * size, words, size, ha="center", weight=weight)
            self.text(x + w / 2, y + h / 2 + 0.72 * small, below, small, GREY, ha="center")
        else:
            self.text(x + w / 2, y + h / 2, words, size, ha="center", weight=weight)

    def line(self, points, color=LINE, width=1.2, dashed=False, z=1):
        self.axes.plot(*zip(*points), color=color, linewidth=width, linestyle=(0, (3, 2)) if dashed else "-", zorder=z,
                       solid_capstyle="round", solid_joinstyle="round", clip_on=False)

    def arrow(self, points, color=LINE, width=1.2, dashed=False, z=1, head=7, both=False):
        codes = [self.path.MOVETO] + [self.path.LINETO] * (len(points) - 1)
        self.axes.add_patch(self.patches.FancyArrowPatch(path=self.path(points, codes), arrowstyle="<|-|>" if both else "-|>", mutation_scale=head,
                                                         shrinkA=0, shrinkB=0, color=color, linewidth=width, joinstyle="round", zorder=z, clip_on=False,
                                                         linestyle=(0, (3, 2)) if dashed else "-"))

    def sign(self, x, y, sign="+", radius=7.5, edge=LINE):
        self.axes.add_patch(self.patches.Circle((x, y), radius, edgecolor=edge, facecolor="white", linewidth=1.2, zorder=4, clip_on=False))
        self.text(x, y - 0.2, sign, size=10, ha="center")

    def note(self, x, y, words, size=7.8, ha="left", color=GREY, va="center"):
        self.text(x, y, words, size=size, color=color, ha=ha, va=va)


# ---------------------------------------------------------------------------------------------------------------------- the blocks


def block(d, x, recipe):
    """One recipe from tokens to the loss, top to bottom; the residual stream is the thick line."""
    nanochat = recipe == "nanochat"
    stream, left, width = x + 26, x + 62, 180
    spine, value = left + 45, left + 138          # of a branch; of the values

    d.text(x, 66, recipe, size=11, weight="bold")
    d.note(x + 66, 66.5, "nanochat of February 2026" if nanochat else "GPT-2 speedrun, October 2024, embeddings tied")

    # Into the residual stream.
    d.box(x, 80, 130, 22, "token embedding wte", "embedding")
    d.note(x + 138, 91, "$(V, C)$")
    if nanochat:
        d.arrow([(stream, 102), (stream, 116)])
        d.box(x, 116, 130, 20, "RMSNorm", "special")
        d.note(x + 138, 126, "what it puts out is also $x_0$")

    # A layer.
    layer_top, layer_bottom, out = 152, 607, 622
    d.rectangle(x - 8, layer_top, 300, layer_bottom - layer_top, "#bbbbbb", "#fbfbfb", round=6, line=1, dashed=True, z=0.5)
    d.text(x + 284, layer_top + 11, "$L$ layers", size=8.6, color=GREY, ha="right")
    d.line([(stream, 136 if nanochat else 102), (stream, out)], width=2.2)
    if nanochat:
        d.box(x + 2, layer_top + 22, 156, 24, r"$x = \lambda_l\, x + \lambda^0_l\, x_0$", "special", size=9.4)
        d.note(x + 165, layer_top + 34, "resid_lambdas, x0_lambdas")

    # Attention.
    y = layer_top + 60
    d.arrow([(stream, y), (spine, y), (spine, y + 12)])
    d.box(left, y + 12, width, 19, "RMSNorm")
    d.arrow([(spine, y + 31), (spine, y + 42)])
    d.box(left, y + 42, width, 21, "matmul q, k, v", "attention")
    d.note(left + width + 5, y + 52, r"$C \to 3C$")
    d.arrow([(spine, y + 63), (spine, y + 78)])
    d.note(spine + 5, y + 70, "q, k")
    d.note(value + 5, y + 70, "v")
    d.box(left, y + 78, 96, 19, "rotary", "attention")
    if nanochat:
        d.arrow([(spine, y + 97), (spine, y + 106)])
        d.box(left, y + 106, 96, 29, "QK norm", "special", "RMSNorm of each head", size=8.6, small=6.8)
        d.arrow([(spine, y + 135), (spine, y + 148)])
        d.line([(value, y + 63), (value, y + 105)])
        d.sign(value, y + 106)
        d.arrow([(value, y + 113), (value, y + 148)])
        d.box(value + 24, y + 91, 60, 30, r"gate $\cdot$ ve", "special", "every 2nd layer", size=8.6, small=6.8)
        d.arrow([(value + 24, y + 106), (value + 7.5, y + 106)])
    else:
        d.arrow([(spine, y + 97), (spine, y + 148)])
        d.arrow([(value, y + 63), (value, y + 148)])
    d.box(left, y + 148, width, 33, "causal attention", "attention", "windows S S S L; the last layer L" if nanochat else "window L: all tokens so far")
    d.arrow([(spine, y + 181), (spine, y + 192)])
    d.box(left, y + 192, width, 21, "matmul proj", "attention")
    d.note(left + width + 5, y + 202, r"$C \to C$")
    join = y + 228
    d.line([(spine, y + 213), (spine, join)])
    d.arrow([(spine, join), (stream + 7.5, join)])
    if not nanochat:
        d.box(stream + 21, join - 9, 48, 18, r"$\times\, 1/\sqrt{2L}$", "special", size=8.2, z=3)
    d.sign(stream, join)

    # MLP.
    y = join + 21
    d.arrow([(stream, y), (spine, y), (spine, y + 11)])
    d.box(left, y + 11, width, 19, "RMSNorm")
    d.arrow([(spine, y + 30), (spine, y + 40)])
    d.box(left, y + 40, width, 21, "matmul fc", "mlp")
    d.note(left + width + 5, y + 50, r"$C \to 4C$")
    d.arrow([(spine, y + 61), (spine, y + 71)])
    d.box(left, y + 71, width, 19, r"$\mathrm{ReLU}^2$" if nanochat else "GELU", "special")
    d.arrow([(spine, y + 90), (spine, y + 100)])
    d.box(left, y + 100, width, 21, "matmul fc_proj", "mlp")
    d.note(left + width + 5, y + 110, r"$4C \to C$")
    join = y + 132
    d.line([(spine, y + 121), (spine, join)])
    d.arrow([(spine, join), (stream + 7.5, join)])
    d.sign(stream, join)

    # Out of it.
    y = out
    d.box(x, y, 130, 20, "RMSNorm")
    d.arrow([(stream, y + 20), (stream, y + 32)])
    d.box(x, y + 32, 130, 22, "matmul lm_head" if nanochat else r"matmul wte$^T$", "embedding")
    d.note(x + 138, y + 43, r"$C \to V$, " + ("weights of its own" if nanochat else "the embedding's weights"))
    if nanochat:
        d.arrow([(stream, y + 54), (stream, y + 66)])
        d.box(x, y + 66, 130, 20, r"$z = 15\,\tanh(\mathrm{logit}\,/\,15)$", "special", size=8.2)
        d.note(x + 138, y + 76, "softcap")
        d.arrow([(stream, y + 86), (stream, y + 98)])
    else:
        d.arrow([(stream, y + 54), (stream, y + 98)])
    d.box(x, y + 98, 130, 20, "cross entropy")


def blocks(plt):
    d = Drawing(plt, 672, 784, "The block of each recipe",
                "Orange: in one recipe alone. $C$: width, $V$: vocabulary, $L$: layers. No biases; norms have no parameters.")
    block(d, 28, "speedrun")
    block(d, 360, "nanochat")
    d.note(16, 758, "S: the token itself and half of the sequence before it; L: all of it. ve: a second embedding of the token, added to the values; "
                    "its gate is", size=8.2)
    d.note(16, 770, r"$2\,\mathrm{sigmoid}$ of a linear map of the first 32 channels of the block's input, one for each head of the values.", size=8.2)
    return d


# ---------------------------------------------------------------------------------------------------------------------------- growth

SHADES = [("#0072b2", "#cfe5f3"), ("#009e73", "#cdece3"), ("#d98a00", "#fbe6bb"), ("#a3527f", "#f0d8e6")]


def cell(d, x, y, layer, size=26, again=False):
    """One layer; a copy of one that is there already has a thinner edge."""
    if layer == "+":
        d.rectangle(x, y, size, size, "#777777", "white", dashed=True)
    else:
        edge, fill = SHADES[int(layer)]
        d.rectangle(x, y, size, size, edge, fill, line=0.9 if again else 1.8)
    d.text(x + size / 2, y + size / 2, layer, size=9.6, ha="center", weight="normal" if again or layer == "+" else "bold")


def growth(plt):
    what = {
        "stack": "the whole model again and again",
        "interleave": "every layer again, beside itself",
        "first": "the first layer again and again",
        "last": "the last layer again and again",
        "middle": "what lies between the ends again",
        "solar": "two copies; one loses its last layer,\nthe other its first (--drop)",
        "random": "new layers, as training starts them",
        "zero": "new layers that change nothing at first:\nproj and fc_proj are 0",
    }
    row = 43
    d = Drawing(plt, 672, 84 + row * len(GROWTH) + 30, "Growth orders",
                "What ./grow makes of a model's layers; the bottom layer, next to the embedding, is on the left.")
    d.text(16, 62, "--order", size=8.6, color=GREY)
    d.text(112, 62, "layers of the source", size=8.6, color=GREY)
    d.text(276, 62, "layers of the grown model", size=8.6, color=GREY)
    for i, (order, flags, source, grown) in enumerate(GROWTH):
        y = 80 + row * i
        d.text(16, y + 9, order, size=10, weight="bold")
        d.text(16, y + 22, flags, size=7.6, color=GREY)
        for n in range(source):
            cell(d, 112 + 30 * n, y, str(n))
        d.arrow([(240, y + 13), (266, y + 13)])
        seen = set()
        for n, layer in enumerate(grown.split()):
            cell(d, 276 + 30 * n, y, layer, again=layer in seen)
            seen.add(layer)
        d.text(470, y + 13, what[order], size=8.4, color=GREY)
    y = 84 + row * len(GROWTH) + 8
    cell(d, 16, y - 6, "0", size=14)
    d.note(36, y + 1, "first use of a layer")
    cell(d, 146, y - 6, "0", size=14, again=True)
    d.note(166, y + 1, "a copy of it")
    cell(d, 240, y - 6, "+", size=14)
    d.note(260, y + 1, "a new layer; --at bottom, middle or top (here: top)")
    return d


# ------------------------------------------------------------------------------------------------------------------------- a stack


def stack(plt):
    d = Drawing(plt, 672, 446, "A stack of two models", "./stack A B --norm-inter-model rms_norm --out AB: the layers at the seam (dashed) are left out.")
    h, step, pitch, base = 25, 33, 29, 372            # base: the row of the embedding; layers go up
    places = {}                                       # the middle of each row

    def tower(name, x, width, rows, pitch, out=()):
        d.line([(x + width / 2, base), (x + width / 2, base - pitch * (len(rows) - 1))], width=1.4, z=1)
        for i, (words, role) in enumerate(rows):
            y, layer = base - pitch * i, len(words) == 2
            places[name, words] = y + h / 2
            d.box(x, y if layer or i in (0, len(rows) - 1) else y + 2, width, h - (0 if layer or i in (0, len(rows) - 1) else 4), words,
                  "plain" if words in out else role, dashed=words in out, weight="bold" if layer and words not in out else "normal")

    def model(name, x, role, out):
        d.text(x + 80, 126, f"model {name}", size=10.5, weight="bold", ha="center")
        layers = [(f"{name}{l}", role) for l in range(4)]
        tower(name, x, 160, [(f"embedding {name}", role), ("norm_wte", "plain"), *layers, ("norm_lm_head", "plain"), (f"head {name}", role)], step, out)

    model("A", 34, "attention", {"A3"})
    model("B", 478, "special", {"B0"})
    x, width = 248, 176
    d.text(x + width / 2, 66, "the stack", size=10.5, weight="bold", ha="center")
    of_a, of_b = ["A0", "A1", "A2"], ["B1", "B2", "B3"]
    tower("AB", x, width, [("embedding A", "attention"), ("--norm-wte", "plain"), *((l, "attention") for l in of_a), ("--norm-inter-model", "state"),
                           *((l, "special") for l in of_b), ("--norm-lm-head", "plain"), ("head B", "special")], pitch)
    seam, purple = places["AB", "--norm-inter-model"], ROLES["state"][0]
    d.line([(x - 12, seam), (x, seam)], color=purple)
    d.note(x - 15, seam, "seam", ha="right", color=purple, size=8.4)
    for words in ["embedding A", *of_a]:
        d.arrow([(195, places["A", words]), (x - 1, places["AB", words])], color=ROLES["attention"][0], width=1)
    for words in [*of_b, "head B"]:
        d.arrow([(477, places["B", words]), (x + width + 1, places["AB", words])], color=ROLES["special"][0], width=1)

    d.note(16, 420, "--use-last-layer keeps A3, --use-first-layer keeps B0; --layers A:0-3,B:2-3,A:1 takes any slices; --head first or last.", size=8.2)
    d.note(16, 433, "The norm at the seam has no parameters and belongs to B1, the layer above it. Nothing is trained: tensors move as bytes.", size=8.2)
    return d


# -------------------------------------------------------------------------------------------------------------------------- arenas


def arenas(plt):
    d = Drawing(plt, 672, 452, "Arenas: memory by lifetime",
                "Each is allocated once, before step 0, and its MiB are printed; the bars show how long its contents live.")
    left, right, top = 212, 656, 92
    phases = [("begin\nstep", 38), ("forward", 74), ("head", 34), ("backward", 80), ("forward", 40), ("head", 26), ("backward", 48), ("end step", 46),
              ("update", 58)]
    edges = [left]
    for _, width in phases:
        edges.append(edges[-1] + width)
    assert edges[-1] == right
    d.text((edges[1] + edges[4]) / 2, 62, "micro-batch 1", size=8.4, ha="center", weight="bold")
    d.text((edges[4] + edges[7]) / 2, 62, "micro-batch 2, ...", size=8.4, ha="center", weight="bold")
    for a, b in ((1, 4), (4, 7)):
        d.line([(edges[a] + 3, 70), (edges[b] - 3, 70)], width=1)
    for (words, width), x in zip(phases, edges):
        d.text(x + width / 2, 81, words, size=6.6 if width < 42 and "\n" not in words else 7.4 if "\n" not in words else 6.6, ha="center", color=GREY)
    for i, x in enumerate(edges):
        d.line([(x, 72 if i in (1, 4, 7) else 90), (x, 420)], color="#d5d5d5" if i not in (1, 4, 7) else "#b5b5b5", width=0.8, z=0.6)

    def bar(y, a, b, role, words="", size=7.4, on_before=False, on_after=False):
        x, end = (edges[a] if not on_before else left), (edges[b] if not on_after else right)
        edge, fill = ROLES[role]
        d.rectangle(x + 1, y, end - x - 2, 13, edge, fill, round=2.5, line=1)
        if words:
            d.text((x + end) / 2, y + 6.5, words, size=size, ha="center")

    def arena(y, name, lives, pieces):
        d.text(16, y, name, size=9.6, weight="bold")
        d.text(16 + 5.9 * len(name) + 8, y + 0.4, lives, size=7.8, color=GREY)
        for i, piece in enumerate(pieces):
            d.note(16, y + 13 + 10.5 * i, piece, size=7.4)

    y = top + 8
    arena(y, "parameters", "a run", ["fp32 master weights; in a bf16", "build the bf16 weights beside them"])
    bar(y + 1, 0, 9, "embedding", "weights: read by both passes, written by the update")
    y += 56
    arena(y, "optimizer", "a run", ["AdamW's m and v, Muon's momentum", "and second moments, fp32"])
    bar(y + 1, 0, 9, "embedding", "state: read and written by the update; saved in checkpoints")
    y += 56
    arena(y, "gradients", "a step", ["of all that trains, fp32; added up", "over the micro-batches"])
    bar(y + 1, 0, 9, "special", "zeroed, added up, their norm taken, used")
    y += 56
    arena(y, "activations", "a micro-batch", ["of every layer h1, qkv, y, lse, h2, f", "and its activation; x0, x, latents"])
    bar(y + 1, 1, 4, "attention", "kept for the backward pass")
    bar(y + 1, 4, 7, "attention", "overwritten by the next")
    y += 56
    arena(y, "scratch", "an op, a layer, a pass",
          ["branch, a piece of the logits, dh, dy,", "dqkv, df; through the backward pass", "dx; for the step the sums of losses"])
    for a in (1, 4):
        end = edges[a + 1]
        n = 6 if a == 1 else 3
        width = (end - edges[a]) / n
        for i in range(n):
            d.rectangle(edges[a] + i * width + 1, y + 1, width - 2, 13, *ROLES["mlp"], round=2, line=0.9)
        d.rectangle(end + 1, y + 1, edges[a + 2] - end - 2, 13, *ROLES["mlp"], round=2, line=0.9)
        width = (edges[a + 3] - edges[a + 2]) / n
        for i in range(n):
            d.rectangle(edges[a + 2] + i * width + 1, y + 1, width - 2, 13, *ROLES["mlp"], round=2, line=0.9)
    d.note(edges[1] + 2, y + 22, "layer by layer", size=6.8)
    d.note(edges[2] + 1, y + 22, "logits", size=6.8)
    d.note(edges[3] + 2, y + 22, "last layer first", size=6.8)
    y += 56
    arena(y, "optimizer scratch", "a tensor's update", ["what Newton-Schulz iterates on,", "rates of the step"])
    width = (edges[9] - edges[8]) / 4
    for i in range(4):
        d.rectangle(edges[8] + i * width + 1, y + 1, width - 2, 13, *ROLES["state"], round=2, line=0.9)
    d.note(16, 438, "Sampling has one more: the key/value cache. Nothing is allocated inside a step: what fits at step 0 fits until the end.",
           size=8.2)
    return d


# ----------------------------------------------------------------------------------------------------------------- flash attention


def sees(q, queries, k, keys, window):
    """Of a tile of queries and one of keys, as AttentionSizes::any_sees and all_see: does any query see any key, do all see all?"""
    return k <= q + queries - 1 and k + keys - 1 >= q - window, k + keys - 1 <= q and k >= q + queries - 1 - window


WHOLE, PARTLY, UNSEEN = ("#0072b2", "#8fc3e2"), ("#d55e00", "#f6cdb4"), ("#cccccc", "#fafafa")      # edge and fill of a tile of scores


def mask(d, x, y, window, title, marked):
    """A T x T matrix of scores in tiles of 128 queries by 64 keys, the tiles of forward_kernel."""
    T, queries, keys, unit = 768, 128, 64, 0.25
    d.text(x, y - 30, title, size=9.4, weight="bold")
    d.note(x + T * unit / 2, y - 8, "keys, 64 a tile", ha="center")
    for q in range(0, T, queries):
        for k in range(0, T, keys):
            some, everything = sees(q, queries, k, keys, window)
            fill = (WHOLE if everything else PARTLY if some else UNSEEN)[1]
            d.rectangle(x + k * unit, y + q * unit, keys * unit, queries * unit, "white" if some else "#e4e4e4", fill, round=0, line=0.8, z=2)
    d.rectangle(x, y, T * unit, T * unit, "#888888", "none", round=0, line=0.9, z=3)
    end = (T - 1) * unit
    d.line([(x, y), (x + end, y + end)], color=INK, width=0.9, z=3.5)
    if window < T:
        d.line([(x, y + window * unit), (x + end - window * unit, y + end)], color=INK, width=0.9, dashed=True, z=3.5)
    first = max(0, marked * queries - window) // keys * keys
    d.rectangle(x + first * unit, y + marked * queries * unit, ((marked + 1) * queries - first) * unit, queries * unit, INK, "none", round=0, line=1.8, z=4)
    d.text(x - 8, y + T * unit / 2, "queries, 128 a tile", size=7.8, color=GREY, rotation=90, ha="center")


def attention_tiles(plt):
    d = Drawing(plt, 672, 522, "Flash attention, a tile at a time",
                "A block owns a tile of queries (framed) and walks over the tiles of keys that its window reaches; no T × T matrix is stored.")
    mask(d, 40, 98, 10 ** 6, "causal, all tokens (L)", 4)
    mask(d, 268, 98, 320, "causal with a window (S)", 4)
    x = 486
    kinds = ((*WHOLE, "every query sees every key:\nno mask"), (*PARTLY, "some do: scores that are not\nseen become $-\\infty$"),
             (*UNSEEN, "none does: never loaded"))
    for i, (edge, fill, words) in enumerate(kinds):
        d.rectangle(x, 100 + 38 * i, 16, 22, edge, fill, round=1.5, line=1)
        d.text(x + 24, 111 + 38 * i, words, size=8)
    d.line([(x, 219), (x + 16, 219)], color=INK, width=1)
    d.text(x + 24, 219, "key = query", size=8)
    d.line([(x, 236), (x + 16, 236)], color=INK, width=1, dashed=True)
    d.text(x + 24, 236, "key = query - window", size=8)
    d.note(x, 262, "Masks are decided again for the\n32 queries of a warp: it passes over\ntiles that none of its rows sees.", size=7.8, va="top")

    # The walk.
    y = 322
    d.text(16, y, "One step of the walk: online softmax", size=10.5, weight="bold")
    d.box(16, y + 34, 96, 52, "", "attention")
    d.text(64, y + 47, "tile of $Q$", size=9.4, ha="center")
    d.text(64, y + 66, "128 × D, stays in\nshared memory", size=7.2, color=GREY, ha="center")
    d.box(150, y + 14, 86, 38, r"$K_j$", "embedding", "64 × D", size=10)
    d.box(150, y + 110, 86, 38, r"$V_j$", "embedding", "64 × D", size=10)
    d.note(193, y + 86, "two stages: cp.async\nbrings tile j + 1\nmeanwhile", ha="center", size=7.2)
    d.box(268, y + 24, 104, 52, r"$S = Q K_j^T$", "attention", "mma.sync, then mask", size=9.8, small=7.2)
    d.arrow([(112, y + 62), (267, y + 62)])
    d.arrow([(236, y + 36), (267, y + 36)])
    d.box(394, y + 16, 122, 68, "", "special")
    d.text(455, y + 29, "max", size=8.6, ha="center", weight="bold")
    d.text(455, y + 45, r"$m' = \max(m,\ \mathrm{row\ max}\ S)$", size=8.4, ha="center")
    d.text(455, y + 65, r"$P = 2^{\,S - m'}$", size=9, ha="center")
    d.arrow([(372, y + 50), (393, y + 50)])
    d.box(544, y + 16, 112, 68, "", "special")
    d.text(600, y + 29, "rescale", size=8.6, ha="center", weight="bold")
    d.text(600, y + 47, r"$r = 2^{\,m - m'}$", size=9, ha="center")
    d.text(600, y + 66, r"$l = r\,l + \mathrm{row\ sum}\ P$", size=8.4, ha="center")
    d.arrow([(516, y + 50), (542, y + 50)])
    d.box(394, y + 108, 262, 42, r"$O = r\,O + P\,V_j$", "mlp", "O, m and l of a row stay in registers of one warp", size=10, small=7.4)
    d.arrow([(600, y + 84), (600, y + 106)])
    d.arrow([(236, y + 129), (392, y + 129)])
    d.note(16, y + 172, r"$S$ is taken times $\log_2 e / \sqrt{D}$, so that powers of 2 are the softmax's exponentials. "
           r"After the last tile $y = O / l$;", size=8.2)
    d.note(16, y + 185, r"lse $= m\,\ln 2 + \ln l$ is kept, from which the backward pass makes $P$ again.", size=8.2)
    return d


# -------------------------------------------------------------------------------------------------------------------------- Hopper


def hopper(plt):
    d = Drawing(plt, 672, 512, "Attention on Hopper: warpgroups and rings of buffers",
                "Forward kernel, heads of 128 (of 64 in brackets). One block per SM, which goes from tile to tile of the queries.")
    # Who does what.
    d.box(16, 62, 150, 166, "", "embedding")
    d.text(91, 78, "producer warpgroup", size=9.4, weight="bold", ha="center")
    d.text(91, 91, "one thread works; 24 registers", size=7.4, color=GREY, ha="center")
    for i, words in enumerate(("wait for an empty buffer", "arrive, expect its bytes", "TMA load into it")):
        d.box(30, 104 + 31 * i, 122, 21, words, "plain", size=8.2)
        if i < 2:
            d.arrow([(91, 125 + 31 * i), (91, 135 + 31 * i)])
    d.note(91, 208, "order: $Q$, $K_0$, $K_1$, $V_0$, $K_2$, $V_1$, ...", ha="center", size=8)

    d.rectangle(206, 62, 222, 166, "#999999", "#fbfbfb", round=5, line=1)
    d.text(317, 78, "shared memory", size=9.4, weight="bold", ha="center")
    for row, (name, slots, more, size) in enumerate((("$Q$", 2, 0, "128 [192] × D"), ("$K$", 2, 2, "128 × D"), ("$V$", 2, 2, "128 × D"))):
        y = 92 + 38 * row
        d.text(224, y + 11, name, size=10, ha="center")
        for i in range(slots + more):
            d.rectangle(238 + 30 * i, y, 26, 22, *ROLES["attention" if row == 0 else "embedding"], dashed=i >= slots, round=2.5)
        d.text(364, y + 6, f"{slots} slots" if row == 0 else "2 [4] stages", size=7.6)
        d.text(364, y + 17, size, size=7.2, color=GREY)
    d.text(317, 213, "each buffer has two mbarriers: full and empty", size=7.8, ha="center", color=ROLES["special"][0])

    d.box(468, 62, 188, 166, "", "mlp")
    d.text(562, 78, "2 [3] consumer warpgroups", size=9.4, weight="bold", ha="center")
    d.text(562, 91, "64 queries each; 240 [160] registers", size=7.4, color=GREY, ha="center")
    for i, words in enumerate((r"wait for full: $Q$, $K_j$, $V_j$", "wgmma on tiles in shared memory", "softmax, $O$, max, sum in registers",
                               "give the buffer back: empty")):
        d.box(480, 102 + 25 * i, 164, 19, words, "plain", size=7.9)
    d.note(562, 211, "a tile that none of its rows sees is skipped", ha="center", size=7.6)

    d.arrow([(166, 150), (206, 150)], color=ROLES["embedding"][0], width=1.8)
    d.note(186, 142, "TMA", ha="center", size=7.6)
    d.arrow([(428, 140), (468, 140)], color=ROLES["mlp"][0], width=1.8)
    d.note(448, 132, "wgmma", ha="center", size=7.6)
    d.arrow([(300, 228), (300, 246), (91, 246), (91, 229)], color=ROLES["special"][0], dashed=True)
    d.note(186, 169, "full: all\nbytes are\nthere", ha="center", size=6.8)
    d.note(180, 254, "empty: each consumer warp arrives", ha="center", size=7.6, color=ROLES["special"][0])
    d.arrow([(562, 228), (562, 246), (334, 246), (334, 229)], color=ROLES["attention"][0])
    d.note(450, 254, "y: written to the slot of its Q, then TMA stores it", ha="center", size=7.6, color=ROLES["attention"][0])

    # A consumer's time.
    y = 284
    d.text(16, y, "One consumer warpgroup over three tiles of keys", size=10.5, weight="bold")
    left, unit = 112, 1.0
    rows = {"TMA": y + 22, "tensor cores": y + 66, "threads": y + 122}
    for name, words in (("TMA", "TMA"), ("tensor cores", "tensor cores\n(wgmma, async)"), ("threads", "the warpgroup's\n128 threads")):
        d.text(16, rows[name] + 12, words, size=8.4)
        d.line([(left - 6, rows[name] + 28), (656, rows[name] + 28)], color="#dddddd", width=0.8)

    def span(row, x, width, words, role, size=7.8, height=22, lift=0):
        edge, fill = ROLES[role]
        d.rectangle(left + x * unit, rows[row] + lift, width * unit - 1.5, height, edge, fill, round=2.5, line=1)
        d.text(left + (x + width / 2) * unit - 0.7, rows[row] + lift + height / 2, words, size=size, ha="center")

    # The products of tile j, then its softmax while those of P_(j-1) V_(j-1) go on.
    load, product, softmax, rescale = 28, 42, 66, 26
    for i, words in enumerate(("$Q$", "$K_0$", "$K_1$", "$V_0$")):
        span("TMA", load * i, load, words, "attention" if i == 0 else "embedding")
    start = 2 * load
    times, now = [], start
    for j in range(3):
        scores = now
        span("tensor cores", scores, product, f"$Q K_{j}^T$", "attention")
        if j:
            span("tensor cores", scores + product, product, f"$P_{j - 1} V_{j - 1}$", "mlp")
        soft = scores + product
        span("threads", soft, softmax, f"softmax of $S_{j}$", "special")
        if j:
            span("threads", soft + softmax, rescale, "$r\\,O$", "special", size=7.6)
        times.append((scores, soft, soft + softmax))
        now = soft + softmax + (rescale if j else 0)
    span("tensor cores", now, product, "$P_2 V_2$", "mlp")
    span("threads", now + product, 34, "$O / l$", "special")
    span("TMA", now + product + 34, 36, "store $y$", "attention", size=7.4)
    # K_2 may come when K_0's scores are there, V_1 has a stage of its own; the later loads wait for a stage.
    span("TMA", times[0][1] + 18, load, "$K_2$", "embedding")
    span("TMA", times[0][1] + 18 + load, load, "$V_1$", "embedding")
    free = times[1][2]                 # values are given back after the next softmax
    span("TMA", free, load, "$V_2$", "embedding")
    d.arrow([(left + times[0][1], rows["tensor cores"] - 2), (left + times[0][1], rows["TMA"] + 36), (left + times[0][1] + 19, rows["TMA"] + 36),
             (left + times[0][1] + 19, rows["TMA"] + 23)], color=ROLES["special"][0], dashed=True, head=6)
    d.note(left + times[0][1] + 26, rows["TMA"] + 36, "$K_0$ given back", size=7.2, color=ROLES["special"][0])
    d.arrow([(left + free - 1, rows["threads"] - 2), (left + free - 1, rows["TMA"] + 36), (left + free + 8, rows["TMA"] + 36),
             (left + free + 8, rows["TMA"] + 23)], color=ROLES["special"][0], dashed=True, head=6)
    d.note(left + free + 15, rows["TMA"] + 36, "$V_0$ given back", size=7.2, color=ROLES["special"][0])
    d.arrow([(left - 6, rows["threads"] + 40), (656, rows["threads"] + 40)], width=1, head=6)
    d.note(16, rows["threads"] + 40, "time (not to scale)", size=7.8)

    y = rows["threads"] + 60
    for i, words in enumerate((
            r"$S_j = Q K_j^T$ and $O$ += $P_{j-1} V_{j-1}$ are started together; the softmax of tile j then runs beside the second. "
            r"$r\,O$: rescale by the new max.",
            "Another warpgroup's wgmma fills the gaps: for D = 64 the exponentials take as long as the matmuls, for D = 128 half as long.",
            "The next tile of queries is loaded into the other slot meanwhile; a slot is empty when the store of its y has read it.")):
        d.note(16, y + 13 * i, words, size=8.2)
    return d


# ---------------------------------------------------------------------------------------------------------------------------- main

DIAGRAMS = {"blocks": blocks, "growth_orders": growth, "stack": stack, "arenas": arenas, "attention_tiles": attention_tiles, "hopper_pipeline": hopper}


def image_of(figure, kind):
    """The bytes of its file, without dates and versions. An SVG says each glyph's name and every indentation often: without them it is a sixth smaller."""
    image = io.BytesIO()
    figure.savefig(image, format=kind, dpi=144, transparent=True, metadata={"Software": None} if kind == "png" else {"Date": None, "Creator": None})
    if kind == "png":
        return image.getvalue()
    return re.sub(rb"\n +", b"\n", image.getvalue()).replace(b"DejaVuSans-", b"g").replace(b" \n", b"\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to draw: {', '.join(DIAGRAMS)} (default: all)")
    parser.add_argument("-o", "--out", default=str(FIGURES), metavar="DIR", help="folder that they go to (default: dev/figures)")
    parser.add_argument("--png", action="store_true", help="PNG instead of SVG, to look at")
    parser.add_argument("--orders", action="store_true", help="print the growth orders as they are drawn, a line each, and draw nothing")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in DIAGRAMS:
            refuse(f"there is no diagram '{name}', only {', '.join(DIAGRAMS)}")
    if arguments.orders:
        for order, flags, source, grown in GROWTH:
            print(f"{source} layers: --order {order} {flags}: {grown}")
        return
    try:
        import matplotlib
    except ImportError:
        refuse("matplotlib is missing; install it (make deps)")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Glyphs as paths: widths of text are those that were looked at, whatever fonts a reader has.
    plt.rcParams.update({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans", "svg.hashsalt": "deepen",
                         "svg.fonttype": "path", "path.simplify": False})
    kind = "png" if arguments.png else "svg"
    for name in arguments.names or DIAGRAMS:
        target = Path(arguments.out) / f"{name}.{kind}"
        image = image_of(DIAGRAMS[name](plt).figure, kind)
        write_whole(target, lambda file: file.write_bytes(image), "give another folder with --out")
        print(target)
        plt.close("all")


if __name__ == "__main__":
    main()
