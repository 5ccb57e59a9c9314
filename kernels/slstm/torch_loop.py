"""The sLSTM in plain PyTorch with a hand-written backward: two loops over time of a few kernels each.

The recurrent matrices of all gates are one batched product per step; their gradient, and that of the inputs, is formed
once from the stacked gradients of the pre-activations. m is a gauge and carries no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.slstm.reference import SLSTMState, rescaled


def slstm_loop(
    gates: Tensor, recurrent: Tensor, state: SLSTMState, resets: Tensor | None, gradient_clip: float | None
) -> tuple[Tensor, SLSTMState]:
    """Arguments as in `kernels.slstm.slstm`."""
    dtype = state.h.dtype
    # By head, so that the recurrent product is one bmm: (time, heads, batch, 4 * head_dim), gates i, f, z, o.
    inputs = gates.to(dtype).permute(1, 3, 0, 2, 4).flatten(3)
    matrices = recurrent.to(dtype).permute(1, 2, 0, 3).flatten(2)  # (heads, head_dim, 4 * head_dim)
    first = [part.transpose(0, 1) for part in state]  # (heads, batch, head_dim)
    keep = None if resets is None else (~resets).to(dtype).t()[:, None, :, None]  # (time, 1, batch, 1)
    h, *last = _Loop.apply(inputs, matrices, *first, keep, gradient_clip)
    after = SLSTMState(h[-1].transpose(0, 1), *(part.transpose(0, 1) for part in last))
    return h.permute(2, 0, 1, 3).to(gates.dtype), rescaled(after)


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx,
        inputs: Tensor,
        matrices: Tensor,
        h: Tensor,
        c: Tensor,
        n: Tensor,
        m: Tensor,
        keep: Tensor | None,
        gradient_clip: float | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = (h, c, n)
        time, heads, batch, _ = inputs.shape
        shape = (time, heads, batch, h.shape[-1])
        hs, cs, ns = (inputs.new_empty(shape) for _ in range(3))
        # Activated: write = exp(i - m), fade = sigmoid(f) exp(m_before - m), z, o.
        write, fade, z, o = (inputs.new_empty(shape) for _ in range(4))
        log_f = inputs.new_empty(shape)
        for t in range(time):
            if keep is not None:
                h, c, n, m = (part * keep[t] for part in (h, c, n, m))
            pre_i, pre_f, pre_z, pre_o = torch.baddbmm(inputs[t], h, matrices).chunk(4, dim=-1)
            log_f[t] = F.logsigmoid(pre_f)
            faded = log_f[t] + m
            m = torch.where(n == 0, pre_i, torch.maximum(faded, pre_i))
            torch.exp(pre_i - m, out=write[t])
            torch.exp(faded - m, out=fade[t])
            torch.tanh(pre_z, out=z[t])
            torch.sigmoid(pre_o, out=o[t])
            c = torch.addcmul(fade[t] * c, write[t], z[t], value=1.0)
            n = torch.addcmul(write[t], fade[t], n)
            h = torch.div(o[t] * c, n, out=hs[t])
            cs[t], ns[t] = c, n
        ctx.save_for_backward(matrices, *first, hs, cs, ns, write, fade, z, o, log_f, keep)
        ctx.gradient_clip = gradient_clip
        ctx.mark_non_differentiable(m)
        return hs, c, n, m

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_hs: Tensor, grad_c: Tensor, grad_n: Tensor, _: Tensor):  # type: ignore[no-untyped-def, override]
        matrices, h0, c0, n0, hs, cs, ns, write, fade, z, o, log_f, keep = ctx.saved_tensors
        time = hs.shape[0]
        before = [torch.cat((start[None], rest[:-1])) for start, rest in ((h0, hs), (c0, cs), (n0, ns))]
        if keep is not None:
            before = [part * keep for part in before]
        h_before, c_before, n_before = before
        # What does not depend on the loop, for all steps at once.
        cell = cs / ns
        by_o = cell * o * (1 - o)
        by_c = o / ns
        by_z = write * (1 - z * z)
        by_f = fade * -torch.expm1(log_f)  # d fade / d pre_f = fade * sigmoid(-f)
        grad_pre = hs.new_empty((*hs.shape[:-1], 4 * hs.shape[-1]))
        transposed = matrices.transpose(1, 2)
        grad_h = torch.zeros_like(h0)
        for t in range(time - 1, -1, -1):
            grad_h = grad_h + grad_hs[t]
            share = grad_h * by_c[t]
            grad_c = grad_c + share
            grad_n = torch.addcmul(grad_n, share, cell[t], value=-1.0)
            pre_i, pre_f, pre_z, pre_o = grad_pre[t].chunk(4, dim=-1)
            torch.mul(torch.addcmul(grad_n, grad_c, z[t]), write[t], out=pre_i)
            torch.mul(torch.addcmul(grad_n * n_before[t], grad_c, c_before[t]), by_f[t], out=pre_f)
            torch.mul(grad_c, by_z[t], out=pre_z)
            torch.mul(grad_h, by_o[t], out=pre_o)
            grad_h = torch.bmm(grad_pre[t], transposed)
            if ctx.gradient_clip is not None:
                grad_h = grad_h.clamp(-ctx.gradient_clip, ctx.gradient_clip)
            grad_c, grad_n = grad_c * fade[t], grad_n * fade[t]
            if keep is not None:
                grad_h, grad_c, grad_n = (part * keep[t] for part in (grad_h, grad_c, grad_n))
        grad_matrices = torch.einsum("thbd,thbe->hde", h_before, grad_pre)
        return grad_pre, grad_matrices, grad_h, grad_c, grad_n, None, None, None
