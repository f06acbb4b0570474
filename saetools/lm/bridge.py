"""Hosts through transformer-lens: any causal language model with a bridge, from a directory or the hub."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from saetools.config import HostConfig
from saetools.errors import ConfigError, DataError, PointError, nearest
from saetools.lm.base import Edit
from saetools.lm.hooks import Reached, Watch, hooked
from saetools.lm.loading import check_files, content_hash, download, load_bridge
from saetools.lm.tokenizer import HfTokenize
from saetools.records import PointSpec
from saetools.rng import torch_seed

IN_STREAM = re.compile(
    r"(pos_)?embed\.hook_out|ln_final\.hook_in|blocks\.\d+\.(hook_in|hook_out|ln\d\.hook_in|(attn|attn\.o|mlp|mlp\.out)\.hook_out)"
)
"""Points of the residual stream or of what is added to it."""
NOT_VECTORS = ("unembed.hook_out", "rotary_emb.hook_in")  # logits; an unused copy of the stream


@dataclass(frozen=True)
class _Points:
    """What one probing pass saw: width of each point in the order of firing, and every name of it."""

    widths: dict[str, int]
    aliases: dict[str, str]  # any name -> canonical name
    hooks: dict[str, HookPoint]  # by canonical name


class BridgeHost:
    """A frozen transformer behind a `TransformerBridge`; implements `lm.base.Host`.

    Points have the bridge's own names (`blocks.2.hook_out`); older ones (`blocks.2.hook_resid_post`) are accepted
    and translated. Points with several heads (`blocks.2.attn.o.hook_in`) are flattened to one vector per token.
    An edit replaces what the hooked module hands on: at `blocks.2.hook_out` the residual stream itself, but at
    `blocks.2.ln2.hook_in` (once called hook_resid_mid) only what that norm reads. Windows are full, without an
    attention mask: padding stands at the end, where causal attention does not see it. BOS is never added but by
    `generate` and the packing plan.
    """

    def __init__(self, config: HostConfig, directory: Path | None, device: str) -> None:
        """`directory` None: `config.name` is looked up at the hub."""
        self.name, self.device = config.name, device
        self._config = config
        self._commit: str | None = None
        if directory is None:
            directory, self._commit = download(config.name, config.revision)
        self._directory = directory
        check_files(directory)
        self.tokenize: HfTokenize = HfTokenize.from_directory(directory)
        self.prepend_bos = config.prepend_bos and self.tokenize.bos_id is not None
        self._bridge = load_bridge(directory, config, device)

    # --- points ---------------------------------------------------------------------------------------------

    def points(self) -> list[str]:
        """Canonical names in the order in which one forward pass reaches them."""
        return list(self._points.widths)

    def canonical(self, point: str) -> str:
        """The bridge's own name of a point; PointError names the nearest known one."""
        name = self._points.aliases.get(point)
        if name is None:
            known = self.points()
            streams = [p for p in known if p.endswith(".hook_out") and p.count(".") == 2] or known
            raise PointError(
                f"The host {self.name} has no point {point!r} with one vector per token."
                f"{nearest(point, self._points.aliases)} There are {len(known)}; its residual stream is at "
                f"{streams[0]} ... {streams[-1]}."
            )
        return name

    def spec(self, point: str, context_tokens: int | None = None) -> PointSpec:
        point = self.canonical(point)
        return PointSpec(
            host=self.name,
            revision=self.revision,
            point=point,
            d_model=self._points.widths[point],
            prepend_bos=self.prepend_bos,
            compatibility_mode=self._config.compatibility_mode,
            host_dtype=self._config.dtype,
            tokenizer_hash=self.tokenize.fingerprint(),
            context_tokens=context_tokens,
        )

    def in_stream(self, point: str) -> bool:
        return IN_STREAM.fullmatch(self.canonical(point)) is not None

    @cached_property
    def revision(self) -> str:
        """The commit of a hub model, the content hash of a local one."""
        return self._commit or content_hash(self._directory)

    @cached_property
    def _points(self) -> _Points:
        """Run a short window through the host and keep the points that give vectors per token.

        T differs from the number of heads, so that [B, heads, T, T] is told from [B, T, ...] by its shape.
        """
        shape = (2, min(self._bridge.cfg.n_heads + 1, self.max_tokens))
        hooks = {hook.name: hook for hook in self._bridge.hook_dict.values() if hook.name}
        widths: dict[str, int] = {}

        def probe(point: str) -> Watch:
            def watch(x_BTD: Tensor) -> None:
                is_vectors = x_BTD.shape[:2] == shape and x_BTD.is_floating_point() and x_BTD.shape[2] > 1
                if is_vectors and point not in NOT_VECTORS:
                    widths.setdefault(point, x_BTD.shape[2])

            return watch

        with torch.no_grad(), hooked(hooks, {point: probe(point) for point in hooks}):
            self._forward(torch.zeros(shape, dtype=torch.long))
        names = {name: hook.name for name, hook in self._bridge.hook_dict.items() if hook.name in widths}
        return _Points(widths, {**names, **{point: point for point in widths}}, {p: hooks[p] for p in widths})

    # --- forward passes -------------------------------------------------------------------------------------

    @property
    def max_tokens(self) -> int:
        """The longest window that the host takes."""
        return int(self._bridge.cfg.n_ctx)

    @torch.no_grad()
    def activations(self, ids_BT: Tensor, points: Sequence[str]) -> dict[str, Tensor]:
        wanted = dict.fromkeys(self.canonical(point) for point in points)
        found: dict[str, Tensor] = {}

        def capture(point: str) -> Watch:
            def watch(x_BTD: Tensor) -> None:
                found[point] = x_BTD
                if len(found) == len(wanted):
                    raise Reached

            return watch

        if wanted:
            with self._watching({point: capture(point) for point in wanted}), suppress(Reached):
                self._forward(ids_BT)
        return {point: found[point] for point in wanted}

    @torch.no_grad()
    def logits(self, ids_BT: Tensor, edits: Mapping[str, Edit] | None = None) -> Tensor:
        with self.editing(edits or {}):
            return self._forward(ids_BT)

    @contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        with self._watching({self.canonical(point): edit for point, edit in edits.items()}):
            yield

    def activations_and_gradients(
        self, ids_BT: Tensor, points: Sequence[str], keep_BT: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """(x_BTD, g_BTD) at each point, where g = d(sum of next-token losses) / dx through the layers above it.

        loss = sum over b, t with keep[b, t + 1] of -log p(ids[b, t + 1] | ids[b, :t + 1]), in nats, log-softmax in
        float32. One pass forwards and one back, from the logits to the first of the points: its activations are a
        leaf, so that nothing below is differentiated, and no parameter either. Under `torch.inference_mode` too.
        """
        found: dict[str, Tensor] = {}

        def keep(point: str) -> Watch:
            def watch(x_BTD: Tensor) -> Tensor:
                found[point] = x_BTD if x_BTD.requires_grad else x_BTD.detach().requires_grad_()
                return found[point]

            return watch

        wanted = list(dict.fromkeys(self.canonical(point) for point in points))
        watches = {point: keep(point) for point in wanted}
        with torch.inference_mode(False), torch.enable_grad(), self._watching(watches):
            # cloned: autograd keeps nothing that was made in inference mode
            ids_BT, keep_BT = (t.to(self.device).clone() for t in (ids_BT, keep_BT))
            logits_BTV = self._forward(ids_BT)
            losses_BT = nnf.cross_entropy(logits_BTV[:, :-1].float().transpose(1, 2), ids_BT[:, 1:], reduction="none")
            loss = (losses_BT * keep_BT[:, 1:]).sum()
            gradients = torch.autograd.grad(loss, [found[point] for point in wanted]) if wanted else ()
        return {point: (found[point].detach(), g_BTD) for point, g_BTD in zip(wanted, gradients, strict=True)}

    def _watching(self, watches: Mapping[str, Watch]) -> AbstractContextManager[None]:
        return hooked(self._points.hooks, watches)

    def _forward(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV of whole windows, no cache."""
        if ids_BT.shape[1] > self.max_tokens:
            raise ConfigError(
                f"Windows of {ids_BT.shape[1]} tokens are too long for the host {self.name}, which takes at most "
                f"{self.max_tokens}: lower corpus.context_tokens."
            )
        return self._bridge(ids_BT.to(self.device), return_type="logits", use_cache=False)

    # --- text -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self, prompt: str, n_tokens: int, temperature: float = 0.0, seed: int = 0, until: float | None = None
    ) -> str:
        """The prompt's continuation by up to `n_tokens` tokens; it ends before EOS.

        Temperature 0 takes the likeliest token, others sample from softmax(logits / temperature). Each token comes
        from a full pass over the last `max_tokens` tokens, so that edits see whole windows. Raises DataError once
        time.monotonic() is past `until`.
        """
        encoded = self.tokenize.encode([prompt])[0]
        bos_id = self.tokenize.bos_id if self.prepend_bos else None
        ids = encoded if bos_id is None else [bos_id, *encoded]
        if not ids:
            raise DataError(f"The host {self.name} begins without BOS, so that an empty prompt gives it nothing.")
        n_prompt = len(ids)
        generator = torch.Generator().manual_seed(torch_seed(seed, "generate"))
        for n_made in range(n_tokens):
            if until is not None and time.monotonic() > until:
                raise DataError(f"time was up after {n_made} of {n_tokens} tokens. Ask for fewer.")
            logits_V = self._forward(torch.tensor([ids[-self.max_tokens :]]))[0, -1].float().cpu()
            token = _sample(logits_V, temperature, generator)
            if token == self.tokenize.eos_id:
                break
            ids.append(token)
        return "".join(self.tokenize.token_texts(ids)[n_prompt:])

    def unembedding(self) -> tuple[Tensor, Tensor | None]:
        """(W_U_VD, weight_D of the final norm; None where it has none or compatibility mode has folded it in)."""
        W_U_VD = self._bridge.W_U.detach().T
        if self._config.compatibility_mode:
            return W_U_VD, None
        weight_D = getattr(self._bridge.ln_final.original_component, "weight", None)
        if weight_D is None:
            return W_U_VD, None
        return W_U_VD, weight_D.detach() + float(self._bridge.cfg.rmsnorm_uses_offset)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Texts that concatenate to the decoding of the whole; see `HfTokenize.token_texts` for split characters."""
        return self.tokenize.token_texts(ids)


def _sample(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits_V.argmax())
    return int(torch.multinomial(torch.softmax(logits_V / temperature, dim=0), 1, generator=generator))
