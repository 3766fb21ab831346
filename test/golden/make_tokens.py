"""Writes tokens.json: what other people's programs make of some texts. Needs: pip install tiktoken regex.

gpt2:  ids by tiktoken with GPT-2's vocab.bpe. Bytes that are not UTF-8 go through the pattern as lone surrogates.
train: merges by the definition of byte-pair encoding, every pair counted anew for every merge; ids by the same merges.
"""
import json
import os
from collections import Counter

import regex
import tiktoken

here = os.path.dirname(os.path.abspath(__file__))
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
NANOCHAT = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+")

TEXTS = [
    "Hello world",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "I'll say we've CAN'T 'S '\u017f it's they'RE",
    "for (int i = 0; i < 10; i++) {\n\t\tx[i] += 3.14159e-05f;  // tabs\n\t}\r\n\r\n",
    "\U0001F600 smile \U0001F468\u200d\U0001F469\u200d\U0001F467 \u2764\ufe0f!",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4 \u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439",
    "a\0b \0\0 c",
    "spaces:  two   three \u00a0nbsp \u2003em \u3000wide \x85next \u180emongolian y\u180e \x1c\x1f end   ",
    "numbers 1 12 123 1234567 \u00b2 \u2460 \u0663\u0664",
    "<|endoftext|><|bos|>",
    "e\u0301 \u00e9 \u0130 \u212a \ufffd",
    "   \n  \n\n \t x\n",
    "'", " ", "\n", "\n\n", "",
    b"latin caf\xe9 \xff\xfe end",
    b"cut off \xf0\x9f\x98",
    b"\x80 \xc0\xaf \xed\xa0\x80 \xf4\x90\x80\x80 \xe2\x82x",
]


def load_gpt2():
    printing = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    order = printing + [b for b in range(256) if b not in printing]
    byte_of = {chr(b): b for b in printing}
    byte_of |= {chr(256 + i): b for i, b in enumerate(order[len(printing):])}
    ranks = {bytes([b]): i for i, b in enumerate(order)}
    with open(os.path.join(here, "../../data/gpt2_vocab.bpe"), encoding="utf-8") as file:
        for line in file.read().split("\n")[1:-1]:
            ranks[bytes(byte_of[c] for c in line.replace(" ", ""))] = len(ranks)
    return ranks


def merge_all(token_ids, pair, new):
    out, i = [], 0
    while i < len(token_ids):
        if tuple(token_ids[i:i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(token_ids[i])
            i += 1
    return out


def pieces_of(data, pattern):
    return [p.encode("utf-8", "surrogateescape") for p in regex.findall(pattern, data.decode("utf-8", "surrogateescape"))]


def train(data, count):
    words = [[list(piece), n] for piece, n in Counter(pieces_of(data, NANOCHAT)).items()]
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for ids, n in words:
            for pair in zip(ids, ids[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        for word in words:
            word[0] = merge_all(word[0], best, 256 + len(merges))
        merges.append(best)
    return merges


def encode(data, merges):
    out = []
    for piece in pieces_of(data, NANOCHAT):
        ids = list(piece)
        for i, pair in enumerate(merges):
            ids = merge_all(ids, pair, 256 + i)
        out += ids
    return out


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


ranks = load_gpt2()
gpt2 = tiktoken.Encoding("gpt2", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={}, explicit_n_vocab=50256)


def encode_gpt2(data):
    try:
        return gpt2.encode_ordinary(data.decode())
    except UnicodeDecodeError:
        return [token for piece in pieces_of(data, GPT2) for token in gpt2._encode_single_piece(piece)]


documents = [as_bytes(t) for t in TEXTS] + [b"-" * 77 + b"\n" + b"aaaaaaaaa baaa " * 5, b"the cat the hat that sat" * 3]
merges = train(b"\n".join(documents), 100)
cases = [{"bytes": as_bytes(t).hex(), "gpt2": encode_gpt2(as_bytes(t)), "trained": encode(as_bytes(t), merges)} for t in TEXTS]
with open(os.path.join(here, "tokens.json"), "w") as file:
    file.write('{"cases": [\n' + ",\n".join(json.dumps(c) for c in cases) + '\n],\n"text": "' + b"\n".join(documents).hex() +
               '",\n"merges": ' + json.dumps(merges) + "}\n")
