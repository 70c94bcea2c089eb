"""torch's scaled dot-product attention (FlashAttention or cuDNN, whichever torch picks) as a peer, if torch has a GPU."""

from collections.abc import Callable

from attention_cases import Case


def runs(case: Case, calls: int) -> dict[str, Callable[[], None]]:
    """Name -> what runs `calls` calls and waits for them; empty without torch or a GPU of its own."""
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
