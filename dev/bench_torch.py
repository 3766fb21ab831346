#!/usr/bin/env python3
"""The two models of make gpu-check in compiled PyTorch, as the baseline of its numbers.

    dev/bench_torch.py [attention] [MODEL...]       measures on this machine's GPU (default: attention and both models; --cpu: on the CPU)
    dev/bench_torch.py --warm [PART...]             only compiles, which fills the cache for the next run
    dev/bench_torch.py --check test/golden/CASE.safetensors...   checks this code in fp32 against golden cases: loss, gradients, three steps

The models are written plainly, in the engine's precision: fp32 master weights and gradients, matmuls and activations in bf16,
norms, softmax and loss in fp32. Attention is PyTorch's flash attention, with flex_attention where a window is shorter than the
sequence. Model, loss and optimizer are compiled by torch.compile. Names, shapes and hyper-parameters are those of the checkpoints.
"""
import argparse
import json
import math
import os
import struct
import sys
import time

import torch
import torch._functorch.config
import torch.nn.functional as F

NEWTON_SCHULZ = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


# ------------------------------------------------------------------------------------------------------------- the models

# The engine's own models: the output of build/cpu-bf16/bench --models.
MODELS = json.load(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench_models.json")))
MEASURED = ["speedrun124M", "nanochat-d12"]


def tensor_shapes(c):
    C, V, L, HK = c["n_embd"], c["vocab_size"], c["n_layer"], c["n_kv_head"]
    CK = C // c["n_head"] * HK
    shapes = {"wte": (V, C)} | ({} if c["tied"] else {"lm_head": (V, C)})
    for l in range(L):
        shapes |= {f"h.{l}.q": (C, C), f"h.{l}.k": (CK, C), f"h.{l}.v": (CK, C), f"h.{l}.proj": (C, C), f"h.{l}.fc": (4 * C, C),
                   f"h.{l}.fc_proj": (C, 4 * C)}
        if c["value_embeds"][l]:
            shapes |= {f"h.{l}.ve": (V, CK), f"h.{l}.ve_gate": (HK, 32)}
    return shapes | ({"resid_lambdas": (L,), "x0_lambdas": (L,)} if c["lambdas"] else {})


def is_matrix(name):
    return name.startswith("h.") and not name.endswith(".ve")


def norm(x, kind, eps):
    if kind == "none":
        return x
    if kind == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return F.rms_norm(x, x.shape[-1:], eps=eps)


def rotary_table(T, D, device):
    freq = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * freq
    return angle.cos()[None, :, None].float().to(device), angle.sin()[None, :, None].float().to(device)


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], -1).to(x.dtype)


def make_attention(c, device, flex):
    """attend(q, k, v, window), each (B, T, heads, D). flex: windows by flex_attention, which has gradients only on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    T, grouped = c["seq_len"], c["n_head"] != c["n_kv_head"]
    masks = {}
    for window in {w for w in c["windows"] if w < T - 1}:
        def sees(b, h, query, key, window=window):
            return (key <= query) & (query - key <= window)
        if flex:
            masks[window] = create_block_mask(sees, None, None, T, T, device=device)
        else:
            query, key = torch.arange(T, device=device)[:, None], torch.arange(T, device=device)[None]
            masks[window] = sees(0, 0, query, key)

    def attend(q, k, v, window):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if window not in masks:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        elif flex:
            y = flex_attention(q, k, v, block_mask=masks[window], enable_gqa=grouped)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[window], enable_gqa=grouped)
        return y.transpose(1, 2)
    return attend


def make_loss(c, device, dtype, flex=None):
    """loss(p, idx, targets): the mean in nats; p are the fp32 master weights, read in dtype."""
    H, HK, C, eps = c["n_head"], c["n_kv_head"], c["n_embd"], c["norm_eps"]
    D = C // H
    cos, sin = rotary_table(c["seq_len"], D, device)
    attend = make_attention(c, device, device == "cuda" if flex is None else flex)

    def loss(p, idx, targets):
        B, T = idx.shape
        x = norm(F.embedding(idx, p["wte"]).to(dtype), c["norm_wte"], eps)
        x0 = x
        for l in range(c["n_layer"]):
            w = {name: p[f"h.{l}.{name}"].to(dtype) for name in ("q", "k", "v", "proj", "fc", "fc_proj")}
            if c["lambdas"]:
                x = (p["resid_lambdas"][l] * x + p["x0_lambdas"][l] * x0).to(dtype)
            h = norm(x, "rms_norm", eps)
            q, k, v = (h @ torch.cat([w["q"], w["k"], w["v"]]).T).split([C, HK * D, HK * D], -1)
            q, k, v = q.view(B, T, H, D), k.view(B, T, HK, D), v.view(B, T, HK, D)
            if c["value_embeds"][l]:
                gate = 2 * torch.sigmoid(h[..., :32] @ p[f"h.{l}.ve_gate"].to(dtype).T)
                v = v + gate[..., None] * F.embedding(idx, p[f"h.{l}.ve"]).to(dtype).view(B, T, HK, D)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if c["qk_norm"]:
                q, k = norm(q, "rms_norm", eps), norm(k, "rms_norm", eps)
            y = attend(q, k, v, c["windows"][l]).reshape(B, T, C)
            x = x + c["attn_scale"][l] * (y @ w["proj"].T)
            h = norm(x, "rms_norm", eps) @ w["fc"].T
            h = F.gelu(h) if c["activation"] == "gelu" else F.relu(h).square()
            x = x + h @ w["fc_proj"].T
        x = norm(x, c["norm_lm_head"], eps)
        logits = (x @ p["wte" if c["tied"] else "lm_head"].to(dtype).T).float()
        if c["softcap"] > 0:
            logits = c["softcap"] * torch.tanh(logits / c["softcap"])
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
    return loss


# ------------------------------------------------------------------------------------------------------------ the optimizer

def orthogonalize(u, coefficients, safety, eps, dtype):
    """u: (n, rows, cols), n matrices, each orthogonalized by itself."""
    x = (u / (u.norm(dim=(1, 2), keepdim=True) * safety + eps)).to(dtype)
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    for a, b, c in coefficients:
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """AdamW on embeddings, head and lambdas; Muon on the matrices, all matrices of one shape in a batch."""

    def __init__(self, p, c, dtype, hyper=None):
        self.p, self.c, self.dtype, self.hyper, self.steps = p, c, dtype, dict(hyper or {}), 0
        self.adamw = [name for name in p if not is_matrix(name)]
        self.m, self.v = ({name: torch.zeros_like(p[name]) for name in self.adamw} for _ in "mv")
        self.shapes = {}
        for name in filter(is_matrix, p):
            self.shapes.setdefault(tuple(p[name].shape), []).append(name)
        self.momentum, self.second = {}, {}
        for shape, names in self.shapes.items():
            zeros = lambda *size: torch.zeros(len(names), *size, device=p[names[0]].device)
            self.momentum[shape] = zeros(*shape)
            self.second[shape] = zeros(shape[0], 1) if shape[0] >= shape[1] else zeros(1, shape[1])
        self.update = self._update

    def compile(self):
        self.update = torch.compile(self._update)

    def rates(self, name):
        """lr, beta1, beta2, eps of AdamW."""
        if self.c["recipe"] == "speedrun":
            return 0.0036, 0.9, 0.95, 1e-8
        width = (self.c["n_embd"] / 768) ** -0.5
        lr, beta1 = {"lm_head": (0.004 * width, 0.8), "resid_lambdas": (0.005, 0.8), "x0_lambdas": (0.5, 0.96)}.get(name, (0.3 * width, 0.8))
        return lr, beta1, 0.95, 1e-10

    @torch.no_grad()
    def _update(self, scale, step, momentum):
        """The arguments are tensors of one element, so that a new value does not recompile."""
        for name in self.adamw:
            self._adamw(name, scale, step)
        for shape in self.shapes:
            self._muon(shape, scale, momentum)

    def _adamw(self, name, scale, step):
        p, g, m, v = self.p[name], self.p[name].grad, self.m[name], self.v[name]
        lr, b1, b2, eps = self.rates(name)
        m.lerp_(g, 1 - b1)
        v.lerp_(g * g, 1 - b2)
        p.sub_(lr * scale * (m / (1 - b1 ** step)) / ((v / (1 - b2 ** step)).sqrt() + eps))

    def _muon(self, shape, scale, momentum):
        names, buffer, v = self.shapes[shape], self.momentum[shape], self.second[shape]
        g = torch.stack([self.p[name].grad for name in names])
        if self.c["recipe"] == "speedrun":
            buffer.mul_(momentum).add_(g)
            u = orthogonalize(g + momentum * buffer, NEWTON_SCHULZ, 1.0, 1e-7, self.dtype)
            u = 0.00036 * scale * math.sqrt(max(shape)) * u
            for i, name in enumerate(names):
                self.p[name].sub_(u[i])
            return
        buffer.mul_(momentum).add_((1 - momentum) * g)
        u = orthogonalize((1 - momentum) * g + momentum * buffer, POLAR_EXPRESS, 1.02, 1e-6, self.dtype)
        dim = 2 if shape[0] >= shape[1] else 1
        n = shape[dim - 1]
        mean = u.square().mean(dim, keepdim=True)
        v.lerp_(mean, 1 - 0.95)
        step = v.clamp_min(1e-10).rsqrt()
        before = (mean.sum((1, 2), keepdim=True) * n).sqrt()
        after = (mean * n * step.square()).sum((1, 2), keepdim=True).sqrt()
        u = u * step * (before / after.clamp_min(1e-10))
        lr, decay = 0.02 * scale * math.sqrt(max(1.0, shape[0] / shape[1])), self.hyper.get("wd", 0.2)
        for i, name in enumerate(names):
            p = self.p[name]
            p.sub_(lr * u[i] + lr * decay * p * ((u[i] * p) >= 0))

    def step(self, scale=1.0):
        device = self.p["wte"].device
        nanochat = self.c["recipe"] == "nanochat"
        momentum = torch.tensor(0.85 + 0.10 * min(self.steps / 300, 1) if nanochat else 0.95, device=device)
        self.steps += 1
        self.update(torch.tensor(scale, device=device), torch.tensor(float(self.steps), device=device), momentum)


# --------------------------------------------------------------------------------------------------------- against golden cases

def read_safetensors(path):
    data = open(path, "rb").read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    meta = {key: json.loads(text) for key, text in header.pop("__metadata__").items()}
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + at for at in entry["data_offsets"])
        tensors[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(entry["shape"])
    return tensors, meta


def check(path):
    """In fp32, without compiling. Tolerances are those of the engine's own golden tests."""
    golden, meta = read_safetensors(path)
    c = meta["config"]
    if meta["frozen"] or meta["loop_at"] or set(c["norm_before"]) != {"none"}:
        print(f"{path}: skipped: this script has no looping, no frozen tensors and no norm between stacked models", flush=True)
        return True
    p = {name[5:]: value.clone().requires_grad_() for name, value in golden.items() if name.startswith("init/")}
    loss_of = make_loss(c, "cpu", torch.float32)
    optimizer = Optimizer(p, c, torch.float32, meta["hyper"])
    idx, targets = golden["idx"].long(), golden["targets"].long()
    worst = {"loss": 0.0, "gradient": 0.0, "after": 0.0}
    for step, scale in enumerate(meta["lr_mults"]):
        for value in p.values():
            value.grad = None
        loss = loss_of(p, idx, targets)
        loss.backward()
        if step == 0:
            worst["loss"] = abs(loss.item() / golden["loss"].item() - 1)
            for name, value in p.items():
                want = golden["grad/" + name]
                worst["gradient"] = max(worst["gradient"], ((value.grad - want).norm() / want.norm().clamp_min(1e-30)).item())
        optimizer.step(scale)
    for name, value in p.items():
        want = golden["after/" + name]
        error = (value - want).norm() / want.norm()
        worst["after"] = max(worst["after"], error.item())
    limits = {"loss": 2e-6, "gradient": 1e-5, "after": 5e-4 if c["recipe"] == "nanochat" else 2e-5}
    print(f"{path}: " + ", ".join(f"{what} {worst[what]:.1e} of {limits[what]:.0e}" for what in worst), flush=True)
    return all(worst[what] <= limits[what] for what in worst)


# ------------------------------------------------------------------------------------------------------------------ the clock

class Clock:
    def __init__(self, device):
        self.device = device

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work, times):
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - start) / times

    def median(self, work, budget=0.05, warm=1):
        """Seconds: the median of five rounds, each of many runs between two synchronizations, as in dev/bench_ops.cpp."""
        for _ in range(warm):
            work()
        times = max(1, min(200, int(budget / max(self.seconds(work, 1), 1e-6))))
        return sorted(self.seconds(work, times) for _ in range(5))[2]


# The compiled backward pass runs several times on the same graph, so it must not reuse the buffers of its inputs.
@torch._functorch.config.patch(donated_buffer=False)
def bench_attention(clock, device):
    """Attention alone, at the shapes of both models. Without a clock it only compiles."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    cases = []
    for name in MEASURED if device == "cuda" else ["trial-speedrun"]:
        c = MODELS[name]["config"]
        cases += [(MODELS[name]["batch"], c["seq_len"], c["n_head"], c["n_embd"] // c["n_head"], window) for window in sorted(set(c["windows"]))]
    for B, T, H, D, window in cases:
        # The models' memory layout: (B, T, H, D).
        q, k, v, dy = (torch.randn(B, T, H, D, device=device, dtype=torch.bfloat16, requires_grad=i < 3).transpose(1, 2) for i in range(4))
        pairs = sum(min(t, window) + 1 for t in range(T))
        product = 2.0 * B * H * pairs * D
        ways = [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)] if window >= T else [("flex", None)]
        for name, backend in ways:
            try:
                if backend is None:
                    mask = create_block_mask(lambda b, h, query, key: (key <= query) & (query - key <= window), None, None, T, T, device=device)
                    flex = torch.compile(flex_attention)
                    forward = lambda: flex(q, k, v, block_mask=mask)
                else:
                    def forward():
                        with sdpa_kernel(backend):
                            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
                y = forward()
                backward = lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)
                if not clock:
                    backward()
                    continue
                for which, work, products in (("forward", forward, 2), ("backward", backward, 5)):
                    seconds = clock.median(work)
                    print(f"torch attention {name} {which} {B}x{T}x{H}x{D} window {window}: {seconds * 1e6:.1f} us, "
                          f"{products * product / seconds * 1e-12:.1f} TFLOP/s", flush=True)
            except Exception as error:   # a missing backend is reported, not fatal
                print(f"torch attention {name} {B}x{T}x{H}x{D}: left out, {first_line(error)}", flush=True)


def bench_model(name, clock, device, compiled=True, halvings=0):
    """Without a clock it only compiles. halvings: how often the micro-batch is halved, to fit into memory."""
    model = MODELS[name]
    c, B, accumulate = model["config"], model["batch"] >> halvings, model["accumulate"] << halvings
    T, started = c["seq_len"], time.perf_counter()
    parameters = sum(math.prod(shape) for shape in tensor_shapes(c).values())
    if parameters != model["total_params"]:
        raise ValueError(f"{parameters} parameters here, {model['total_params']} in the engine")
    torch.manual_seed(1)
    # Any weights will do that make the loss depend on the attention: the loss is compared with that of the same code uncompiled.
    p = {tensor: (torch.randn(shape, device=device) * 0.05 if len(shape) > 1 else torch.full(shape, 0.5, device=device)).requires_grad_()
         for tensor, shape in tensor_shapes(c).items()}
    idx, targets = (torch.randint(c["vocab_size"], (B, T), device=device) for _ in range(2))
    loss_of = make_loss(c, device, torch.bfloat16)
    optimizer = Optimizer(p, c, torch.bfloat16)
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
        optimizer.compile()

    def gradients(micro_batches):
        for value in p.values():
            value.grad = None
        for _ in range(micro_batches):
            loss = loss_of(p, idx, targets) / micro_batches
            loss.backward()
        return loss

    def step(micro_batches):
        gradients(micro_batches)
        optimizer.step(1e-3)

    with torch.no_grad():
        plain_loss = make_loss(c, device, torch.bfloat16, flex=False)
        plain = sum(plain_loss(p, idx[i:i + 1], targets[i:i + 1]).item() for i in range(B)) / B
    loss = gradients(1).item()
    step(1)
    if not clock:
        return
    clock.wait()
    print(f"torch {name}: compiled in {time.perf_counter() - started:.0f} s; loss {loss:.4f}, uncompiled and with plain masks {plain:.4f}", flush=True)
    tokens, flops = B * T, model["flops_per_token"]
    for what, count, work in (("forward and backward", 1, lambda: gradients(1)), ("step", 1, lambda: step(1)), ("step", accumulate, lambda: step(accumulate))):
        seconds = clock.median(work, budget=0.5 if device == "cuda" else 0.0, warm=2)
        rate = tokens * count / seconds
        print(f"torch {name} {what} {tokens * count} tokens {seconds * 1e3:.1f} ms {rate:.0f} tok/s {rate * flops * 1e-12:.1f} TFLOP/s", flush=True)


def first_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def main():
    parser = argparse.ArgumentParser(description="the models of dev/results in compiled PyTorch")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"attention, {', '.join(MODELS)} (default: attention, {', '.join(MEASURED)})")
    parser.add_argument("--check", nargs="+", metavar="FILE", help="golden cases to compare with, in fp32 on the CPU, instead of measuring")
    parser.add_argument("--warm", action="store_true", help="only compile, so that a later run finds the programs in TORCHINDUCTOR_CACHE_DIR")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, without compiling: to try the script")
    options = parser.parse_args()
    if options.check:
        return 0 if all([check(path) for path in options.check]) else 1
    for part in options.parts:
        if part != "attention" and part not in MODELS:
            parser.error(f"no part '{part}'; there are attention, {', '.join(MODELS)}")
    device = "cpu" if options.cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("bench_torch.py: PyTorch sees no GPU here (--cpu tries the script without one)", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}", flush=True)
    clock, failed = None if options.warm else Clock(device), 0
    for part in options.parts or ["attention", *MEASURED]:
        try:
            if part == "attention":
                bench_attention(clock, device)
            else:
                for halvings in range(3):
                    try:
                        bench_model(part, clock, device, compiled=device == "cuda", halvings=halvings)
                        break
                    except torch.OutOfMemoryError:
                        print(f"torch {part}: {MODELS[part]['batch'] >> halvings} sequences do not fit into the memory", flush=True)
                    torch.compiler.reset()
                    torch.cuda.empty_cache()
                else:
                    failed = 1
        except Exception as error:
            print(f"torch {part}: ended by {first_line(error)}", flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
