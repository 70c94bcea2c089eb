"""Other people's attention, measured beside ours if it is installed: tokamax, and torch (FlashAttention or cuDNN)."""

from collections.abc import Callable

import jax
from attention_cases import Case

Runs = dict[str, Callable[[], None]]


def runs(case: Case, operands: tuple, calls: int) -> Runs:
    """Name -> what runs `calls` calls and waits for them; only rows of one document, which all of them take."""
    if case.operation != "attend" or case.documents:
        return {}
    return tokamax_runs(case, operands, calls) | torch_runs(case, calls)


def tokamax_runs(case: Case, operands: tuple, calls: int) -> Runs:
    """tokamax's Mosaic kernels through its public function."""
    try:
        import tokamax
    except ImportError:
        return {}

    def attention(*qkv):
        return tokamax.dot_product_attention(*qkv, is_causal=case.causal, implementation="mosaic")

    def gradient(*qkv):
        out, vjp = jax.vjp(attention, *qkv)
        return out, *vjp(qkv[0])

    functions = {"tokamax": jax.jit(attention)} | ({"tokamax+grad": jax.jit(gradient)} if case.backward else {})
    repeated = lambda run: jax.block_until_ready([run(*operands) for _ in range(calls)])  # noqa: E731
    return {name: lambda run=run: repeated(run) for name, run in functions.items()}


def torch_runs(case: Case, calls: int) -> Runs:
    """torch's scaled dot-product attention, whichever kernel torch picks."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    array = lambda heads: torch.randn(  # noqa: E731
        1, heads, case.length, case.size, device="cuda", dtype=torch.bfloat16, requires_grad=True
    )
    q, k, v = array(case.heads), array(case.kv_heads), array(case.kv_heads)

    def once(backward: bool) -> None:
        attention = torch.nn.functional.scaled_dot_product_attention
        out = attention(q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.kv_heads)
        if backward:
            torch.autograd.grad(out, (q, k, v), q)

    def repeated(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            for _ in range(calls):
                once(backward)
        torch.cuda.synchronize()

    return {"torch": lambda: repeated(False)} | ({"torch+grad": lambda: repeated(True)} if case.backward else {})
