"""A published Mask2Former or MaskFormer with its own classes, from a folder of transformers.

    image --shortest edge, normalise, pad to 32--> model --> Q masks, logits of its J classes and of nothing

Images enter as in detectron2 at test, each with no more padding than its own sides need, so that the numbers of the
original can be measured. Its classes meet those that are requested by name (`match_classes`). A CLIP may name its masks
too (`segment`). transformers' own heads want scipy for losses that nobody needs here: the class head is read beside
the model. Deliberately absent: training (`mask2former` trains the decoder of such a folder on), OneFormer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from foveate.clip.io.states import put_state, read_state
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError, listed
from foveate.heads.panoptic.decoder import read_library, read_pretrained
from foveate.heads.panoptic.described import Described, describe
from foveate.heads.panoptic.inputs import framed_input, run_by_size
from foveate.heads.panoptic.mask2former import Proposals
from foveate.types import Sample, normalize_name

INPUT = ("shortest", "longest", "multiple", "mean", "std")  # of `Described`
IMPOSSIBLE = -1e4  # logit of a class that the model does not know; finite, since CLIP's share may be all of the score


@dataclass(frozen=True)
class ClassMap:
    """Which of the K classes requested each of a model's J own classes is."""

    owner: Int64[Tensor, " J"]  # place among the classes requested; -1: none of them
    count: int  # K
    is_open: bool = False  # CLIP names masks too: what the model takes for none of the K may be one it does not know

    @property
    def known(self) -> list[bool]:
        """Which of the K classes the model has."""
        owners = set(self.owner.tolist())
        return [place in owners for place in range(self.count)]


def match_classes(own: Vocabulary, asked: Vocabulary, *, is_open: bool = False) -> ClassMap:
    """Find each of a model's classes among those that are requested: the same name, else a word in common.

    Args:
        own: the model's J classes.
        asked: K classes.
        is_open: see `ClassMap`.

    Raises:
        InputError: they have no class in common, and the model alone names masks.
    """
    names = {normalize_name(words[0]): place for place, words in reversed([*enumerate(asked.classes)])}
    words = {normalize_name(word): place for place, one in reversed([*enumerate(asked.classes)]) for word in one}
    owner = []
    for one in own.classes:
        found = [names[normalize_name(one[0])]] if normalize_name(one[0]) in names else []
        found += [words[normalize_name(word)] for word in one if normalize_name(word) in words]
        owner.append(found[0] if found else -1)
    if max(owner) < 0 and not is_open:
        raise InputError(
            f"classes: need some of the model's {len(own.classes)}, such as {listed(own.names)}; none of those asked "
            f"for is one: {listed(asked.names)}. Name them as the model does, or let a CLIP name masks."
        )
    return ClassMap(torch.tensor(owner), len(asked.classes), is_open)


class Published(nn.Module):
    """Finds masks with classes (`propose`), in the place of a `MaskGenerator`."""

    knows_classes = True

    def __init__(self, network: nn.Module, described: Described) -> None:
        """Take a network and how images enter it.

        Args:
            network: normalised images -> (B, Q, J + 1) logits of classes and (B, Q, h, w) of masks.
            described: of its folder.
        """
        super().__init__()
        self.network, self.described = network, described
        self.vocabulary = Vocabulary(described.classes)

    @torch.no_grad()
    def propose(self, samples: list[Sample]) -> list[Proposals]:
        """Find masks.

        Args:
            samples: decoded images; their segments are not looked at.

        Returns:
            One record per image, Q masks each, of the padded input. What stands in it does not depend on the others.
        """
        options: dict[str, Any] = {name: getattr(self.described, name) for name in INPUT}
        options |= {"pad": "zero", "device": next(self.parameters()).device}
        inputs = [framed_input(sample.image, **options) for sample in samples]
        results = run_by_size(inputs, lambda images: list(zip(*self.network(images), strict=True)))
        proposals = []
        for sample, (logits, masks), (_, frame) in zip(samples, results, inputs, strict=True):
            height, width = sample.image.shape[1:]
            proposals.append(Proposals(sample.id, height, width, masks, None, None, own=logits, frame=frame))
        return proposals

    def class_logits(self, proposals: Proposals, asked: ClassMap) -> Float[Tensor, "Q K1"]:
        """What the model says of its masks.

        Args:
            proposals: of one image.
            asked: which of its classes are requested.

        Returns:
            Of the K classes and, last, of nothing. Own classes that are not requested count as nothing; where CLIP
            names masks too, the classes that the model does not know share them evenly.
        """
        assert proposals.own is not None, "a published model's proposals have classes"
        logits, owner = proposals.own.float(), asked.owner.to(proposals.own.device)
        if asked.count == len(owner) and torch.equal(owner, torch.arange(len(owner), device=owner.device)):
            return logits
        log_p = logits.log_softmax(dim=1)  # (Q, J + 1)
        known = log_p.new_full((len(log_p), asked.count), IMPOSSIBLE)
        for place in set(owner.tolist()) - {-1}:
            known[:, place] = log_p[:, :-1][:, owner == place].logsumexp(dim=1)
        unknown = [place for place, is_known in enumerate(asked.known) if not is_known]
        rest = torch.cat([log_p[:, :-1][:, owner < 0], log_p.new_full((len(log_p), 1), IMPOSSIBLE)], dim=1)
        rest, nothing = rest.logsumexp(dim=1, keepdim=True), log_p[:, -1:]  # (Q, 1) each
        if asked.is_open and unknown:
            known[:, unknown] = rest - torch.tensor(float(len(unknown))).log().to(rest)
        else:
            nothing = torch.logaddexp(nothing, rest)
        return torch.cat([known, nothing], dim=1)


class _Mask2Former(nn.Module):
    """transformers' Mask2Former with its class head."""

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__()
        self.encoder, self.decoder = read_library(folder)
        self.classes = nn.Linear(self.decoder.width, classes + 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B Q J1"], Float[Tensor, "B Q h w"]]:
        found = self.decoder(self.encoder(images))
        return self.classes(found.states[-1]), found.masks[-1]


class _MaskFormer(nn.Module):
    """transformers' MaskFormer with its class and mask heads."""

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__()
        from transformers.models.maskformer import configuration_maskformer, modeling_maskformer

        configuration, model = configuration_maskformer.MaskFormerConfig, modeling_maskformer.MaskFormerModel
        self.model, config = read_pretrained(folder, configuration, model, what="MaskFormer")
        width = config.decoder_config.hidden_size
        self.classes = nn.Linear(width, classes + 1)
        self.masks: Any = modeling_maskformer.MaskformerMLPPredictionHead(width, width, config.mask_feature_size)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B Q J1"], Float[Tensor, "B Q h w"]]:
        found = self.model(images)
        state = found.transformer_decoder_last_hidden_state  # (B, Q, C)
        masks = torch.einsum("bqc,bchw->bqhw", self.masks(state), found.pixel_decoder_last_hidden_state)
        return self.classes(state), masks


def read_published(
    folder: Path, *, described: Described | None = None, device: str | torch.device = "cpu"
) -> Published:
    """Read a model from a folder of transformers, with config.json and model.safetensors.

    Args:
        folder: of `save_pretrained`.
        described: of `describe`; None: read here.
        device: device of the result.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: another architecture, missing or left-over weights, or another number of classes than names.
    """
    about = describe(folder) if described is None else described
    network = {"mask2former": _Mask2Former, "maskformer": _MaskFormer}[about.kind](folder, len(about.classes))
    files = (folder / "model.safetensors.index.json", folder / "model.safetensors")
    state = read_state(next((path for path in files if path.is_file()), files[-1]))
    rows = len(state["class_predictor.weight"]) if "class_predictor.weight" in state else None
    if rows is not None and rows != len(about.classes) + 1:
        raise InputError(
            f"{folder}: need a class head for the {len(about.classes)} classes of config.json and for nothing; its "
            f"weights are for {rows - 1}. Give id2label a name for each class."
        )
    parts = {"class_predictor.": "classes.", "mask_embedder.": "masks."}
    for own, ours in parts.items():
        module = getattr(network, ours[:-1], None)
        if isinstance(module, nn.Module):
            some = {key.removeprefix(own): one for key, one in state.items() if key.startswith(own)}
            put_state(module, some, source=str(folder), name=f"its {own[:-1]}")
    return Published(network, about).eval().requires_grad_(False).to(device)
