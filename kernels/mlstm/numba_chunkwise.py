"""The mLSTM in chunks for CPUs: the matrix products are the library's, all between them is compiled (`numba_passes`).

The equations are `torch_chunkwise`'s. There, chunks come one after another; here a span of chunks, as many as fit into
the caches, is taken at once: every matrix product is one batched product over (chunks of the span, batch * heads), and
between two products stands one pass. Pairs above the diagonal cost nothing but their part of the products.
"""

import torch
from torch import Tensor

from kernels.cpu import Kernel, empty_rows_like, rows, run
from kernels.cpu.table import Argument
from kernels.mlstm import numba_heads
from kernels.mlstm import numba_passes as passes
from kernels.mlstm import numba_passes_back as passes_back
from kernels.mlstm.numba_heads import copied
from kernels.mlstm.numba_passes import KEYS_AT_ONCE
from kernels.mlstm.reference import Inputs, MLSTMState, Options, Saved, Upstream

SPAN_ELEMENTS = 2**20
"""Queries and values of a span of chunks: 4 MiB, and a few times that with what is made of them."""


class _Spans:
    """What forward and backward share: the gates' weights, and the operands of the products of a span of chunks."""

    def __init__(self, inputs: Inputs, m: Tensor | None, resets: Tensor | None, options: Options) -> None:
        q, k, v, i, f = inputs
        chunk = options.chunk
        batch, heads, self.time, self.key_dim = q.shape
        self.value_dim, self.chunk, self.rows = v.shape[-1], chunk, batch * heads
        self.chunks = -(-self.time // chunk)
        self.q, self.k, self.v, self.i, self.f = rows(q), rows(k), rows(v), rows(i), rows(f)
        self.resets = None if resets is None else rows(resets)
        self.exponential = options.input_gate == "exponential"
        self.shape = {"heads": heads, "time": self.time, "chunk": chunk}
        self.weights = q.new_empty(7, self.rows, self.time)
        self.carry = q.new_empty(self.rows, self.chunks)
        self.m = q.new_empty(self.rows, self.time)
        self.begins = torch.empty_like(self.m, dtype=torch.int32)
        work = q.new_empty(self.rows, 3, chunk, dtype=torch.float64)
        scales = None if m is None else m.reshape(-1).to(torch.float32).contiguous()
        run(
            passes.gates, self.rows, **self.shape, input_gates=self.i, forget_gates=self.f, initial_m=scales,
            resets=self.resets, gate_weights=self.weights, carries=self.carry, ms=self.m, document_begins=self.begins,
            work=work, exponential=self.exponential, stabilized=options.stabilized, root=self.key_dim**-0.5,
        )  # fmt: skip
        at_once = max(1, SPAN_ELEMENTS // (max(self.rows, 1) * chunk * (self.key_dim + self.value_dim)))
        self.spans = [(begin, min(begin + at_once, self.chunks)) for begin in range(0, self.chunks, at_once)]

    def new(self, span: tuple[int, int], *shape: int) -> Tensor:
        """An empty tensor (chunks of the span, batch * heads, …)."""
        return self.q.new_empty(span[1] - span[0], self.rows, *shape)

    def run(self, kernel: Kernel, span: tuple[int, int], **arguments: Argument) -> None:
        """Run a pass over the chunks of a span."""
        run(
            kernel, (span[1] - span[0]) * self.rows, **self.shape, num_rows=self.rows, first_chunk=span[0],
            key_dim=self.key_dim, value_dim=self.value_dim, gate_weights=self.weights, **arguments,
        )  # fmt: skip

    def run_on_states(self, kernel: Kernel, span: tuple[int, int], **arguments: Argument) -> None:
        """Run a kernel that carries states from chunk to chunk of a span."""
        slices = -(-self.key_dim // KEYS_AT_ONCE)
        run(
            kernel, self.rows * slices, chunks=span[1] - span[0], first_chunk=span[0], key_dim=self.key_dim,
            value_dim=self.value_dim, carries=self.carry, **arguments,
        )  # fmt: skip

    def operands(self, span: tuple[int, int], written: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, values, queries as they read the state, fine keys, keys as they write it; a matrix per chunk."""
        keys = (self.chunk, self.key_dim)
        q, v = self.new(span, *keys), self.new(span, self.chunk, self.value_dim)
        q_read, k_fine, k_write = (self.new(span, *keys) for _ in range(3))
        self.run(
            passes.operands, span, qs=self.q, ks=self.k, vs=self.v, q_copies=q, v_copies=v, q_reads=q_read,
            k_fines=k_fine, k_writes=k_write, n_written=written,
        )  # fmt: skip
        return q.flatten(0, 1), v.flatten(0, 1), q_read.flatten(0, 1), k_fine.flatten(0, 1), k_write.flatten(0, 1)

    def first(self, span: tuple[int, int], has_initial_state: bool) -> int:
        """The first matrix of a span whose chunk has a state before it."""
        return self.rows if span[0] == 0 and not has_initial_state else 0

    def last(self, span: tuple[int, int], has_gradient: bool) -> int:
        """The one after the last matrix of a span whose chunk leaves a state that has a gradient."""
        matrices = (span[1] - span[0]) * self.rows
        return matrices - self.rows if span[1] == self.chunks and not has_gradient else matrices

    def by_chunk(self, matrices: Tensor) -> Tensor:
        """(chunks * batch * heads, …) as (chunks, batch * heads, …)."""
        return matrices.unflatten(0, (matrices.shape[0] // max(self.rows, 1), self.rows))


def forward(
    inputs: Inputs, state: MLSTMState | None, resets: Tensor | None, options: Options, save_states: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.forward`."""
    if numba_heads.fits(inputs.q, inputs.v):
        return numba_heads.forward(inputs, state, resets, options, save_states)
    q, v = inputs.q, inputs.v
    C, n, m = (None, None, None) if state is None else state
    spans = _Spans(inputs, m, resets, options)
    shape = (spans.rows, spans.key_dim, spans.value_dim)
    slots = spans.chunks if save_states else spans.spans[0][1]
    states_C, states_n = q.new_empty(slots, *shape), q.new_empty(slots, *shape[:2])
    final_C, final_n = copied(C, q, shape), copied(n, q, shape[:2])
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    s = q.new_empty(spans.rows, spans.time if options.normalize else 0)
    for span in spans.spans:
        place = slice(*span) if save_states else slice(0, span[1] - span[0])
        before_C, before_n = states_C[place], states_n[place]
        queries, values, q_read, k_fine, k_write = spans.operands(span, before_n)
        scores = torch.bmm(queries, k_fine.mT)
        torch.bmm(k_write.mT, values, out=before_C.flatten(0, 1))
        spans.run_on_states(passes.states, span, C_states=before_C, n_states=before_n, final_C=final_C, final_n=final_n)
        sums = s if options.normalize else None
        spans.run(passes.weigh, span, products=spans.by_chunk(scores), document_begins=spans.begins, sums=sums)
        y, first = torch.bmm(scores, values), spans.first(span, C is not None)
        y[first:].baddbmm_(q_read[first:], before_C.flatten(0, 1)[first:])
        spans.run(
            passes.outputs, span, ys=spans.by_chunk(y), q_reads=spans.by_chunk(q_read), n_states=before_n,
            denominators=sums, hs=h, eps=float(options.eps),
        )  # fmt: skip
    return h, final_C, final_n, spans.m[:, -1].clone(), states_C, states_n, s


def backward(
    upstream: Upstream, inputs: Inputs, m: Tensor | None, resets: Tensor | None, saved: Saved, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.backward`."""
    if numba_heads.fits(inputs.q, inputs.v):
        return numba_heads.backward(upstream, inputs, m, resets, saved, options)
    q, k, v, i, f = inputs
    grad_h, grad_C, grad_n = upstream
    h, states_C, states_n, s = saved
    spans = _Spans(inputs, m, resets, options)
    shape = (spans.rows, spans.key_dim, spans.value_dim)
    dC, dn = copied(grad_C, q, shape), copied(grad_n, q, shape[:2])
    # As the inputs lie, so that none is copied on its way through the block.
    grad_q, grad_k, grad_v = (empty_rows_like(x) for x in (q, k, v))
    grad_i, grad_f = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (i, f))
    passing, log_i, reading, writing, grad_s = (q.new_empty(spans.rows, spans.time) for _ in range(5))
    carrying = q.new_empty(-(-spans.key_dim // KEYS_AT_ONCE), spans.rows, spans.chunks)
    above, h = rows(grad_h), rows(h)
    for span in reversed(spans.spans):
        n_grads = spans.new(span, spans.key_dim)
        queries, values, q_read, k_fine, k_write = spans.operands(span, n_grads)  # n_grads: not what it holds now
        grad_y = spans.new(span, spans.chunk, spans.value_dim)
        seen = s if options.normalize else None
        spans.run(
            passes_back.outputs_back, span, grad_hs=above, hs=h, denominators=seen, grad_ys=grad_y,
            grad_denominators=grad_s, q_reads=spans.by_chunk(q_read), n_grads=n_grads, eps=float(options.eps),
        )  # fmt: skip
        grad_y = grad_y.flatten(0, 1)
        scores, grad_scores = torch.bmm(queries, k_fine.mT), torch.bmm(grad_y, values.mT)
        spans.run(
            passes_back.pairs_back, span, products=spans.by_chunk(scores), grad_scores=spans.by_chunk(grad_scores),
            document_begins=spans.begins, grad_denominators=grad_s, passing_pairs=passing, grad_log_i=log_i,
        )  # fmt: skip
        d_q, d_k = torch.bmm(grad_scores, k_fine), torch.bmm(grad_scores.mT, queries)
        d_v = torch.bmm(scores.mT, grad_y)
        first, last = spans.first(span, m is not None), spans.last(span, grad_C is not None or grad_n is not None)
        c_grads, d_read = torch.empty_like(states_C[slice(*span)]).flatten(0, 1), torch.empty_like(q_read)
        c_grads[:first], d_read[:first] = 0.0, 0.0
        torch.bmm(q_read[first:].mT, grad_y[first:], out=c_grads[first:])
        spans.run_on_states(
            passes_back.states_back, span, C_grads=spans.by_chunk(c_grads), n_grads=n_grads, C_states=states_C,
            n_states=states_n, grad_C=dC, grad_n=dn, carrying=carrying,
        )  # fmt: skip
        d_v[:last].baddbmm_(k_write[:last], c_grads[:last])
        d_write = torch.empty_like(k_write)
        d_write[last:] = 0.0
        torch.bmm(values[:last], c_grads[:last].mT, out=d_write[:last])
        torch.bmm(grad_y[first:], states_C[slice(*span)].flatten(0, 1)[first:].mT, out=d_read[first:])
        of_operands = {"d_qs": d_q, "d_ks": d_k, "d_vs": d_v, "d_reads": d_read, "d_writes": d_write}
        operands = {"q_reads": q_read, "k_writes": k_write}
        by_chunk = {name: spans.by_chunk(part) for name, part in (of_operands | operands).items()}
        spans.run(
            passes_back.operands_back, span, **by_chunk, n_grads=n_grads, n_states=states_n, grad_denominators=grad_s,
            grad_qs=grad_q, grad_ks=grad_k, grad_vs=grad_v, readings=reading, writings=writing, grad_log_i=log_i,
        )  # fmt: skip
    run(
        passes_back.gates_back, spans.rows, **spans.shape, input_gates=spans.i, forget_gates=spans.f,
        resets=spans.resets, passing_pairs=passing, readings=reading, writings=writing, carrying=carrying.sum(0),
        grad_log_i=log_i, grad_input_gates=grad_i, grad_forget_gates=grad_f, exponential=spans.exponential,
    )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_i, grad_f, dC, dn
