"""Attention that never leaves a document, for rows in which documents stand side by side (data/packing.py).

    keep_documents_apart(model, kept_scores=10**6, longest=512)  # once: switch the model over, and see on two documents that it obeys
    why_not_shared(model, longest=512)                           # None: documents may continue one that they share, as tried
    with documents(model, batch.document_BT, parent_S=batch.parent_S) as more:                    # once per batch
        model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, **more)

transformers lets a library register attention functions and the masks that go with them (its AttentionInterface and
AttentionMaskInterface). Ours gathers the documents of a row into small batches of similar length, padded for this one operation alone,
and attends within each: no mask over the whole row exists, nothing is computed between two documents, and linear layers, which are
most of a step, see no padding. `attend` is the arithmetic, with any mask: the readable reference for a whole row is `attend` with
`block_diagonal`, and tests compare the two.

A document may continue an earlier one (data/packing.py: `parent`): its tokens see that whole document before their own, as if both were one.
Where it lies in the row does not matter, so keys and values of what is shared are put before each one's own, and gradients of them are
added up by autograd, in one order.

What a family lets a token see inside its document (a sliding window, chunks) is asked of the family's own mask function.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.errors import BadInput
from tunesmith.hardware import sent
from tunesmith.kernels.causal_attention import causal_attention, causal_attention_backward, is_fast

NAME = "tunesmith"  # of this attention among those that transformers knows
# Documents of a group are at least half as long as its longest: more groups cost more small operations than they save scores.
SIMILAR = 0.5
PROBE_TOKENS = 512  # of a document on which a model is tried
ROUND = 16  # tokens: groups are padded to a multiple, as every new shape costs the CPU's matrix library a compilation


# --- the arithmetic -------------------------------------------------------------------------------------------------------


def attend(
    query_BHLD: Tensor, key_BGLD: Tensor, value_BGLD: Tensor, sees: Tensor, scale: float, softcap: float | None = None, sinks_H: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """softmax(scale · q kᵀ) v over what each query sees, [B, H, L, D]; H / G neighbouring heads share a key.

    sees      bool, broadcast to [B, 1, L of the queries, L of the keys]
    softcap   scores become softcap · tanh(scores / softcap) (Gemma 2, arXiv 2408.00118, section 2)
    sinks_H   a further score per head that takes part in the softmax and has no value (gpt-oss)
    """
    B, H, L, D = query_BHLD.shape
    n_keys, G = key_BGLD.shape[2], key_BGLD.shape[1]
    # the heads that share a key, one after another, are one matrix of queries: keys need not be repeated
    query_BGMD = query_BHLD.reshape(B, G, H // G * L, D)
    scores = (query_BGMD @ key_BGLD.transpose(2, 3)).view(B, H, L, n_keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~sees, torch.finfo(scores.dtype).min)
    if sinks_H is not None:
        scores = torch.cat([scores, sinks_H.to(scores.dtype).view(1, H, 1, 1).expand(B, H, L, 1)], dim=-1)
    at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
    share = torch.softmax(scores, dim=-1, dtype=at_least_float32).to(value_BGLD.dtype)[..., :n_keys]
    share = nn.functional.dropout(share, dropout)
    return (share.reshape(B, G, H // G * L, n_keys) @ value_BGLD).view(B, H, L, -1)


def block_diagonal(document_T: Tensor, sees_LL: Tensor, parent_S: Tensor | None = None) -> Tensor:
    """The mask over a whole row: a token sees of its own document, and of what that continues, what `sees_LL` says.

    The reference; nothing fast builds it.
    """
    positions_T = positions_of(document_T, parent_S)
    sees_TT = document_T[:, None] == document_T
    if parent_S is not None:
        sees_TT |= parent_S[document_T][:, None] == document_T
    return sees_TT & sees_LL[positions_T[:, None], positions_T]


def positions_of(document_T: Tensor, parent_S: Tensor | None = None) -> Tensor:
    """Of each token in its document; one that continues another goes on counting."""
    lengths = _lengths(document_T)
    before = [0 if p < 0 else lengths[p] for p in ([-1] * len(lengths) if parent_S is None else parent_S.tolist())]
    return torch.cat([torch.arange(start, start + n) for start, n in zip(before, lengths, strict=True)])


# --- where the documents of a row lie -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Of documents of similar length, as one small batch.

    n, length   documents, and tokens of the longest rounded up
    kept        whether its scores are kept for the backward pass
    before      tokens of the document that all of these continue, 0: none; which is the group `parent`, alone there
    """

    n: int
    length: int
    kept: bool
    before: int = 0
    parent: int = -1


@dataclass(frozen=True)
class Layout:
    """Documents of similar length as small batches; built once per row, read by every layer.

    groups    one after another, together P slots
    token_P   the row's token in each slot; in padding the document's last one again
    slot_T    the slot in which each token of the row stands
    real_P    which slots are no padding; None if all are
    longest   (first token, length) of the longest document; 0 and the length with what it continues, if any document continues another
    starts    int32 on the CPU: of each document in the row's order, and the end of the last
    parents   int32 on the CPU: of each document the one that it continues, -1: none; None: no document continues another
    """

    groups: tuple[Group, ...]
    token_P: Tensor
    slot_T: Tensor
    real_P: Tensor | None
    longest: tuple[int, int]
    starts: Tensor
    parents: Tensor | None = None

    @property
    def width(self) -> int:
        """Tokens that a mask is asked for."""
        return max(group.before + group.length for group in self.groups)

    @classmethod
    def of(cls, document_T: Tensor, device: torch.device, kept_scores: int, parent_S: Tensor | None = None) -> "Layout":
        """document_T: int64 on the CPU, one number per document, tokens of a document side by side.

        kept_scores   per head; those of the shortest documents are kept while they are no more than this
        parent_S      of each document the earlier one that it continues, which itself continues none; -1: none
        """
        lengths = _lengths(document_T)
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        parents = [-1] * len(lengths) if parent_S is None else parent_S.tolist()
        shared = {parent for parent in parents if parent >= 0}
        if any(parent >= i or (parent >= 0 and parents[parent] >= 0) for i, parent in enumerate(parents)):
            raise ValueError("a document continues one that is not before it, or that continues another itself")
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        members: list[list[int]] = []
        of_family: dict[int, list[int]] = {}  # the group that documents of this parent are being put into
        for i in order:
            open_group = None if i in shared else of_family.get(parents[i])
            if open_group is not None and lengths[i] >= SIMILAR * lengths[open_group[0]]:
                open_group.append(i)
                continue
            members.append([i])
            if i not in shared:
                of_family[parents[i]] = members[-1]
        place = {group[0]: number for number, group in enumerate(members)}  # of shared documents, which are alone in theirs
        sizes = [(len(group), -(-lengths[group[0]] // ROUND) * ROUND, parents[group[0]]) for group in members]
        before = [0 if parent < 0 else lengths[parent] for *_, parent in sizes]
        n_scores = [n * length * (length + more) for (n, length, _), more in zip(sizes, before, strict=True)]
        total = list(accumulate(reversed(n_scores)))
        groups = [
            Group(n, length, upto <= kept_scores, more, -1 if parent < 0 else place[parent])
            for (n, length, parent), more, upto in zip(sizes, before, reversed(total), strict=True)
        ]
        tokens, reals = [], []
        for documents_of_group, group in zip(members, groups, strict=True):
            at_L = torch.arange(group.length)
            start_S, length_S = (torch.tensor([x[i] for i in documents_of_group])[:, None] for x in (starts, lengths))
            tokens.append((start_S + torch.minimum(at_L, length_S - 1)).flatten())
            reals.append((at_L < length_S).flatten())
        token_P, real_P = torch.cat(tokens), torch.cat(reals)
        slot_T = torch.empty(len(document_T), dtype=torch.int64)
        slot_T[token_P[real_P]] = torch.nonzero(real_P)[:, 0]
        longest = (starts[order[0]], lengths[order[0]])
        if shared:
            longest = (0, max(length + (0 if parent < 0 else lengths[parent]) for length, parent in zip(lengths, parents, strict=True)))
        return cls(
            tuple(groups), sent(token_P, device), sent(slot_T, device), None if bool(real_P.all()) else sent(real_P, device), longest,
            torch.tensor(starts, dtype=torch.int32), torch.tensor(parents, dtype=torch.int32) if shared else None,
        )  # fmt: skip


def _lengths(document_T: Tensor) -> list[int]:
    lengths: list[int] = torch.unique_consecutive(document_T, return_counts=True)[1].tolist()
    return lengths


@dataclass(frozen=True)
class Within:
    """What our mask function hands to our attention function in place of a mask.

    sees_LL   what a token sees of a document as long as the layout's width; shorter ones see its upper left corner
    causal    all tokens up to its own, that is
    """

    layout: Layout
    sees_LL: Tensor
    causal: bool


class _Move(torch.autograd.Function):
    """y[i] = x[there[i]], where each row of x has one place in y that counts: back[j].

    So the gradient of x is such a move too, not a sum: fast, and the same bits each time. Rows of x that are copies of others
    (padding; where `counts` is false) give their gradient to nobody.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, counts: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, counts)
        return x.index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        back, counts = ctx.saved_tensors
        dx = upstream[0].index_select(0, back)
        return dx if counts is None else dx.mul_(counts.view(-1, *[1] * (dx.ndim - 1))), None, None, None


class _Causal(torch.autograd.Function):
    """kernels/causal_attention.py with its gradient: of the scores nothing is kept."""

    @staticmethod
    def forward(
        ctx: Any, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, starts: Tensor, parents: Tensor | None, scale: float
    ) -> Tensor:  # fmt: skip
        out_THD, lse_HT = causal_attention(query_THD, key_TGD, value_TGD, starts, scale, parents=parents)
        ctx.save_for_backward(query_THD, key_TGD, value_TGD, out_THD, lse_HT)
        ctx.of = starts, parents, scale
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        starts, parents, scale = ctx.of
        query_THD, key_TGD, value_TGD, out_THD, lse_HT = ctx.saved_tensors
        d_out_THD = upstream[0].contiguous()
        gradients = causal_attention_backward(d_out_THD, query_THD, key_TGD, value_TGD, out_THD, lse_HT, starts, scale, parents=parents)
        return *gradients, None, None, None


def _is_compiled(query: Tensor) -> bool:
    """Whether the compiled attention is at hand for such queries: of bfloat16, or of what autocast would make bfloat16."""
    if query.device.type != "cpu" or not is_fast(query.shape[-1]):
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return query.dtype == torch.bfloat16 or (autocast and query.dtype == torch.float32)


def attend_within(
    query_HTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, within: Within, scale: float, softcap: float | None = None, sinks_H: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """`attend` on each document of a row alone, [T, H, D]; by flash attention where scores are not kept and it can do what is asked."""
    layout = within.layout
    if within.causal and softcap is None and sinks_H is None and not dropout and _is_compiled(query_HTD):
        parts_THD = [x.transpose(0, 1).to(torch.bfloat16).contiguous() for x in (query_HTD, key_GTD, value_GTD)]
        answer: Tensor = _Causal.apply(*parts_THD, layout.starts, layout.parents, scale)  # type: ignore[no-untyped-call]
        return answer
    gathered = [_Move.apply(x.transpose(0, 1), layout.token_P, layout.slot_T, None) for x in (query_HTD, key_GTD, value_GTD)]  # type: ignore[no-untyped-call]
    sizes = [group.n * group.length for group in layout.groups]
    queries, keys, values = (x_PHD.split(sizes) for x_PHD in gathered)
    answers = []
    for i, group in enumerate(layout.groups):
        q, k, v = (x[i].view(group.n, group.length, *x[i].shape[1:]).transpose(1, 2) for x in (queries, keys, values))
        if group.before:
            k, v = (torch.cat([_shared(x[group.parent], group), own], 2) for x, own in ((keys, k), (values, v)))
        end = group.before + group.length
        sees = within.sees_LL[group.before : end, :end]
        if group.kept or softcap is not None or sinks_H is not None:
            answer_SHLD = attend(q, k, v, sees, scale, softcap, sinks_H, dropout)
        else:
            is_causal = within.causal and not group.before
            answer_SHLD = nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=None if is_causal else sees, dropout_p=dropout, is_causal=is_causal, scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip
        answers.append(answer_SHLD.transpose(1, 2).flatten(0, 1))
    answer_THD: Tensor = _Move.apply(torch.cat(answers), layout.slot_T, layout.token_P, layout.real_P)  # type: ignore[no-untyped-call]
    return answer_THD


def _shared(x_LGD: Tensor, group: Group) -> Tensor:
    """Keys or values of the document that all of this group continue, for each of them: [S, G, L of that, D]."""
    return x_LGD[: group.before].transpose(0, 1).expand(group.n, -1, -1, -1)


# --- as transformers calls it ---------------------------------------------------------------------------------------------

_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def documents(
    model: Any, document_BT: Tensor | None, shape: Sequence[int] = (), parent_S: Tensor | None = None
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Forward passes in this block read one row of these documents; None: rows of one example each, padded on the right if at all.

    shape      (rows, tokens), for a model that was switched over for padded rows too
    parent_S   of each document the one that it continues, -1: none
    Yields what the model's forward is to be given besides ids and positions: where documents continue others, a mask of ones, or
    transformers would find by the positions that they are strangers, and no mask function of a family would say otherwise.
    The layout travels from here to the masks, which a model makes first, in its own thread; from there on with them, also into the
    recomputed layers of a backward pass.
    """
    if document_BT is None and (not shape or not hasattr(model, "_tunesmith_kept_scores")):
        yield {}
        return
    if not hasattr(model, "_tunesmith_kept_scores"):
        raise RuntimeError("keep_documents_apart(model) comes before the first packed batch")
    if document_BT is None:  # each row is a document
        document_BT = torch.arange(shape[0]).repeat_interleave(shape[1])[None]
    layout = Layout.of(document_BT[0], model.device, model._tunesmith_kept_scores, parent_S)
    token = _layout.set(layout)
    try:
        yield {} if layout.parents is None else {"attention_mask": torch.ones(document_BT.shape, dtype=torch.int64, device=model.device)}
    finally:
        _layout.reset(token)


def _mask(batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **rest: Any) -> Any:
    """In the place of transformers' `sdpa_mask`: `Within` for a packed row, the whole mask otherwise."""
    from transformers.masking_utils import sdpa_mask

    layout = _layout.get()
    rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    if layout is None:
        return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **rest)
    start, length = layout.longest
    asked_LL = sdpa_mask(1, length, length, start, start, **rest | {"attention_mask": None})[0, 0]
    sees_LL = torch.ones(layout.width, layout.width, dtype=torch.bool, device=asked_LL.device).tril()
    causal = torch.equal(asked_LL, sees_LL[:length, :length])
    sees_LL[:length, :length] = asked_LL  # beyond is padding, which may see what it likes
    return Within(layout, sees_LL, causal)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None, dropout: float = 0.0,
    softcap: float | None = None, s_aux: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' contract: [B, H, T, D] and [B, G, T, D] to [B, T, H, D]. Windows come with the mask, not with `sliding_window`."""
    scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
    if isinstance(attention_mask, Within):
        rows = [x.transpose(1, 2).flatten(0, 1).transpose(0, 1) for x in (query, key, value)]  # no copies, as projections lie
        answer_THD = attend_within(rows[0], rows[1], rows[2], attention_mask, scale, softcap, s_aux, dropout)
        return answer_THD.view(query.shape[0], query.shape[2], *answer_THD.shape[1:]), None
    if attention_mask is None:
        raise RuntimeError("no mask has reached attention")
    return attend(query, key, value, attention_mask, scale, softcap, s_aux, dropout).transpose(1, 2).contiguous(), None


# --- switching a model over -----------------------------------------------------------------------------------------------


def keep_documents_apart(model: Any, kept_scores: int, longest: int) -> None:
    """From now on a packed row's documents are strangers to each other in this model; it is tried on two of them.

    kept_scores   attention scores per head and layer that may stay in memory for the backward pass: faster than flash attention on a CPU
    longest       tokens of the longest document there will be: some families change their ways after a number of tokens

    Raises BadInput where the family does not obey: some compute attention in their own way, some carry a state from token to token (Mamba,
    convolutions), some merge blocks of tokens (DeepSeek V4), some count positions by themselves. The model is then as it was.
    """
    from transformers.utils import logging

    before, was_training = model.config.get_text_config()._attn_implementation, model.training
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is an error here
    model.eval()  # without dropout
    n_ids = model.get_input_embeddings().weight.shape[0]
    ids_T = (3 + 5 * torch.arange(min(longest, PROBE_TOKENS) + 7, device=model.device)) % n_ids
    both = ids_T.split([len(ids_T) - 7, 7])
    try:
        alone = [_answer(model, ids_T, None, slice(None)) for ids_T in both]
        switch_over(model, kept_scores)
        why = _why_not(model, both, alone)
    except Exception as error:  # whatever a family's own code makes of a mask that it does not know
        why = f"its attention cannot be exchanged ({str(error).strip().split(chr(10))[0] or type(error).__name__})"
    finally:
        model.train(was_training)
        logging.set_verbosity(loud)
    if why is not None:
        model.set_attn_implementation(before)
        if hasattr(model, "_tunesmith_kept_scores"):
            del model._tunesmith_kept_scores
        raise BadInput(
            f"documents in one row would not stay apart in this model: {why}", where=f"training.packing: true, a model of type {model.config.model_type}",
            fix="training.packing: false",
        )  # fmt: skip


def switch_over(model: Any, kept_scores: int) -> None:
    """The same without the trial, for a model that only has shapes."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)
    model._tunesmith_kept_scores = kept_scores


Answer = tuple[Tensor, Tensor]


def why_not_shared(model: Any, longest: int) -> str | None:
    """After `keep_documents_apart`: why documents of this model cannot continue one that they share; None: they can, tried on three.

    longest   tokens of the longest document there will be
    """
    if _draws(model):
        return "it has dropout of its own, which would draw one noise for all that share their beginning"
    was_training = model.training
    model.eval()
    n_ids = model.get_input_embeddings().weight.shape[0]
    n = min(longest, PROBE_TOKENS)
    ids_T = (3 + 5 * torch.arange(2 * n + 40, device=model.device)) % n_ids
    shared, n_branch = ids_T[: max(1, n // 2)], max(2, n - n // 2)
    branches = ids_T[len(shared) :].split([n_branch, 7, len(ids_T) - len(shared) - n_branch - 7])[:2]
    alone = [_answer(model, torch.cat([shared, branch]), None, slice(len(shared), None)) for branch in branches]
    try:
        return _why_not_shared(model, shared, branches, alone)
    except Exception as error:  # as in keep_documents_apart
        return f"its attention cannot be exchanged ({str(error).strip().split(chr(10))[0] or type(error).__name__})"
    finally:
        model.train(was_training)


def _draws(model: nn.Module) -> bool:
    """Whether a forward pass of training draws random numbers; that of an adapter stands in the config of the run."""
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return drops or any(isinstance(p := getattr(module, "attention_dropout", 0), float) and p > 0 for module in model.modules())


@torch.enable_grad()
def _answer(model: Any, ids_T: Tensor, document_T: Tensor | None, part: slice, parent_S: Tensor | None = None) -> Answer:
    """Final hidden states of a part of a row [N, D], and the gradient of their weighted sum with respect to all embedded ids [T, D]."""
    embedded: list[Tensor] = []

    def cut_off(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some families go on in place

    reads = {"input_ids": ids_T[None], "use_cache": False}
    if document_T is not None:
        reads["position_ids"] = positions_of(document_T, parent_S)[None].to(ids_T.device)
    hook = model.get_input_embeddings().register_forward_hook(cut_off)
    try:
        with documents(model, None if document_T is None else document_T[None], parent_S=parent_S) as more:
            hidden_ND = model.base_model(**reads, **more)[0][0, part].float()
        weights_ND = torch.linspace(-1, 1, hidden_ND.numel(), device=hidden_ND.device).view_as(hidden_ND)
        [gradient_BTD] = torch.autograd.grad((weights_ND * hidden_ND).sum(), embedded[:1])
    finally:
        hook.remove()
    return hidden_ND.detach(), gradient_BTD[0].float()


def _why_not(model: Any, both: Sequence[Tensor], alone: Sequence[Answer]) -> str | None:
    """What is wrong with two documents in one row, in words; `alone`: the answers to each by the model's own attention.

    A leak is looked for in the gradients: what one document answers has none, exactly, with respect to the other. That holds in any dtype,
    where a small leak would hide among differences of rounding.
    """
    if model.config.get_text_config()._attn_implementation != NAME:
        return "it computes attention in its own way"
    row_T, n = torch.cat(list(both)), len(both[0])
    document_T = (torch.arange(len(row_T)) >= n).long()
    noise = 1e-3 if model.dtype == torch.float32 else 0.1
    for part, other, (hidden, gradient) in zip((slice(n), slice(n, None)), (slice(n, None), slice(n)), alone, strict=True):
        packed_hidden, packed_gradient = _answer(model, row_T, document_T, part)
        if bool(packed_gradient[other].any()):
            return "what one document answers depends on the other"
        if why := _differs((packed_hidden, packed_gradient[part]), (hidden, gradient), noise):
            return why
    return None


def _differs(found: Answer, alone: Answer, noise: float) -> str | None:
    for what, ours, expected in zip(("answers", "gradients"), found, alone, strict=True):
        off = float((ours - expected).norm() / expected.norm())
        if not off <= noise:
            return f"its {what} are other ones than to each document alone (by {off:.1%})"
    return None


def _why_not_shared(model: Any, beginning: Tensor, branches: Sequence[Tensor], alone: Sequence[Answer]) -> str | None:
    """What is wrong with a row of a beginning, a stranger, and two documents that continue the first.

    alone   the answers to each of the two after what it continues
    Again a leak is a gradient: to what each of the two answers, nothing but itself and what it continues may have one.
    """
    whole = (beginning, beginning.flip(0)[:5], *branches)
    row_T, parent_S = torch.cat(whole), torch.tensor([-1, -1, 0, 0])
    document_T = torch.arange(4).repeat_interleave(torch.tensor([len(ids_T) for ids_T in whole]))
    noise = 1e-3 if model.dtype == torch.float32 else 0.1
    for number, expected in zip((2, 3), alone, strict=True):
        own_T, shared_T = document_T == number, document_T == 0
        [first, *_, last] = torch.nonzero(own_T)[:, 0].tolist()
        hidden, gradient = _answer(model, row_T, document_T, slice(first, last + 1), parent_S)
        if bool(gradient[~(own_T | shared_T)].any()):
            return "what one document answers depends on the other"
        if why := _differs((hidden, torch.cat([gradient[shared_T], gradient[own_T]])), expected, noise):
            return why
    return None
