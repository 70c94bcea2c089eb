"""Others' attention beside the backends, if it is installed: tokamax's public function, cuDNN over batches, torch."""

import functools
from collections.abc import Callable

import jax
from attention_cases import Case

Runs = dict[str, Callable[[int], None]]
"""Name -> what makes so many calls and waits for them."""


def programs(case: Case) -> tuple[dict[str, Callable], dict[str, str]]:
    """Name -> a function of q, k and v in JAX; and name -> why a peer is left out.

    Documents of one length are a batch to those that know no segments.
    """
    if case.operation == "decode":
        return {}, {"peers": "none decodes branches that share a prompt"}
    if batch(case) is None:
        return {}, {"peers": "their public functions take no packed documents of unequal length"}
    found, missing = {}, {}
    if batch(case) > 1:
        found["cudnn-batch"] = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        import tokamax

        found["tokamax-public"] = functools.partial(tokamax.dot_product_attention, implementation="mosaic")
    except Exception as error:  # not installed, or it does not go with this jax
        missing["tokamax-public"] = f"it cannot be imported ({error})"
    functions = {}
    for name, attention in found.items():
        forward = functools.partial(_batched, attention, case)
        functions |= {name: forward} | (
            {f"{name}+grad": functools.partial(_gradient, forward)} if case.backward else {}
        )
    return functions, missing


def batch(case: Case) -> int | None:
    """Into how many equal documents the row falls, or None."""
    if len(case.documents) > 1 or case.documents and case.length % case.documents[0]:
        return None
    return case.length // case.documents[0] if case.documents else 1


def _batched(attention: Callable, case: Case, *qkv: jax.Array) -> jax.Array:
    rows = (x.reshape(batch(case), -1, *x.shape[2:]) for x in qkv)
    return attention(*rows, is_causal=case.causal and not case.queries).reshape(qkv[0].shape)


def _gradient(forward: Callable, *qkv: jax.Array) -> tuple:
    out, vjp = jax.vjp(forward, *qkv)
    return out, *vjp(qkv[0])


def torch_runs(case: Case) -> tuple[Runs, dict[str, str]]:
    """torch's scaled dot-product attention, whichever kernel torch picks; or why it is left out."""
    if case.operation == "decode" or batch(case) is None:
        return {}, {}
    try:
        import torch
    except ImportError as error:
        return {}, {"torch": str(error)}
    if not torch.cuda.is_available():
        return {}, {"torch": "sees no GPU"}
    rows = batch(case)
    array = lambda heads, length: torch.randn(  # noqa: E731
        rows, heads, length // rows, case.size, device="cuda", dtype=torch.bfloat16, requires_grad=True
    )
    q, k, v = array(case.heads, case.queries or case.length), *(array(case.kv_heads, case.length) for _ in "kv")

    def run(backward: bool, calls: int) -> None:
        attention, causal = torch.nn.functional.scaled_dot_product_attention, case.causal and not case.queries
        with torch.set_grad_enabled(backward):
            for _ in range(calls):
                out = attention(q, k, v, is_causal=causal, enable_gqa=case.heads != case.kv_heads)
                if backward:
                    torch.autograd.grad(out, (q, k, v), q)
        torch.cuda.synchronize()

    forward, both = functools.partial(run, False), functools.partial(run, True)
    return {"torch": forward} | ({"torch+grad": both} if case.backward else {}), {}
