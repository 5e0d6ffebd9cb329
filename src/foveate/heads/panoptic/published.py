"""A published Mask2Former or MaskFormer with its own classes, from a transformers folder.

    image --shortest edge, normalise, pad to 32--> model --> Q masks, logits of its J classes and of "no object"

Images are resized and padded as by detectron2 at test, so that the published results can be measured. The model's
classes are matched with the requested ones by name (`match_classes`). A CLIP may classify its masks too (`segment`).
transformers' models with heads need scipy for their losses, so the class head is read separately.
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
from foveate.heads.panoptic.described import ModelDescription, describe
from foveate.heads.panoptic.mask2former import Proposals, propose_framed
from foveate.types import Sample, normalize_name

INPUT = ("shortest", "longest", "multiple", "mean", "std")  # of `ModelDescription`
UNKNOWN_LOGIT = -1e4  # of a class that the model does not have; finite, since CLIP's fusion weight may be 1


@dataclass(frozen=True)
class ClassMap:
    """The requested class, of K, of each of a model's J classes."""

    labels: Int64[Tensor, " J"]  # index among the requested classes; -1: none of them
    count: int  # K
    is_open: bool = False  # CLIP classifies masks too: masks of other classes may be of requested, unknown ones

    @property
    def known(self) -> list[bool]:
        """Which of the K classes the model has."""
        labels = set(self.labels.tolist())
        return [label in labels for label in range(self.count)]


def match_classes(classes: Vocabulary, requested: Vocabulary, *, is_open: bool = False) -> ClassMap:
    """Match a model's J classes with the K requested ones: the same name, else a common synonym.

    Args:
        classes: the model's.
        requested: the K classes.
        is_open: see `ClassMap`.

    Raises:
        InputError: no class in common, and no CLIP classifies masks.
    """
    reversed_classes = [*enumerate(requested.classes)][::-1]  # the first of equal names counts
    by_name = {normalize_name(names[0]): label for label, names in reversed_classes}
    by_synonym = {normalize_name(name): label for label, names in reversed_classes for name in names}
    labels = []
    for names in classes.classes:
        candidates = [by_name.get(normalize_name(names[0])), *(by_synonym.get(normalize_name(name)) for name in names)]
        labels.append(next((label for label in candidates if label is not None), -1))
    if max(labels) < 0 and not is_open:
        raise InputError(
            f"classes: need some of the model's {len(classes.classes)}, such as {listed(classes.names)}; none of those "
            f"requested is one: {listed(requested.names)}. Use the model's names, or classify masks with --classifier."
        )
    return ClassMap(torch.tensor(labels), len(requested.classes), is_open)


class PublishedModel(nn.Module):
    """Proposes masks with classes, in place of a `MaskGenerator`."""

    knows_classes = True

    def __init__(self, network: nn.Module, described: ModelDescription) -> None:
        """Take a network: normalised images -> (B, Q, J + 1) class logits and (B, Q, h, w) mask logits."""
        super().__init__()
        self.network, self.described = network, described
        self.vocabulary = Vocabulary(described.classes)

    @torch.no_grad()
    def propose(self, samples: list[Sample]) -> list[Proposals]:
        """Propose Q masks per image, of the padded input; the images' segments are ignored."""
        options: dict[str, Any] = {name: getattr(self.described, name) for name in INPUT}
        options |= {"pad": "zero", "device": next(self.parameters()).device}
        return propose_framed(samples, self._run, **options)

    def _run(self, images: Float[Tensor, "B 3 H W"]) -> list[dict[str, Tensor]]:
        outputs = zip(*self.network(images), strict=True)
        return [{"class_logits": logits, "masks": masks} for logits, masks in outputs]

    def class_logits(self, proposals: Proposals, classes: ClassMap) -> Float[Tensor, "Q K1"]:
        """The model's logits of the K requested classes and, last, of "no object".

        Masks of classes that are not requested count as "no object"; if a CLIP classifies masks too, they are shared
        evenly among the requested classes that the model does not have.
        """
        assert proposals.class_logits is not None, "a published model's proposals have classes"
        logits, labels = proposals.class_logits.float(), classes.labels.to(proposals.class_logits.device)
        if classes.count == len(labels) and torch.equal(labels, torch.arange(len(labels), device=labels.device)):
            return logits

        # requested classes that the model has: the sum of its classes' probabilities
        log_p = logits.log_softmax(dim=1)  # (Q, J + 1)
        requested = log_p.new_full((len(log_p), classes.count), UNKNOWN_LOGIT)
        for label in set(labels.tolist()) - {-1}:
            requested[:, label] = log_p[:, :-1][:, labels == label].logsumexp(dim=1)

        # the rest
        unknown = [label for label, is_known in enumerate(classes.known) if not is_known]
        rest = torch.cat([log_p[:, :-1][:, labels < 0], log_p.new_full((len(log_p), 1), UNKNOWN_LOGIT)], dim=1)
        rest, no_object = rest.logsumexp(dim=1, keepdim=True), log_p[:, -1:]  # (Q, 1) each
        if classes.is_open and unknown:
            requested[:, unknown] = rest - torch.tensor(float(len(unknown))).log().to(rest)
        else:
            no_object = torch.logaddexp(no_object, rest)
        return torch.cat([requested, no_object], dim=1)


class _Mask2Former(nn.Module):
    """transformers' Mask2Former with its class head."""

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__()
        self.encoder, self.decoder = read_library(folder)
        self.classes = nn.Linear(self.decoder.width, classes + 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B Q J1"], Float[Tensor, "B Q h w"]]:
        output = self.decoder(self.encoder(images))
        return self.classes(output.states[-1]), output.masks[-1]


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
        output = self.model(images)
        state = output.transformer_decoder_last_hidden_state  # (B, Q, C)
        masks = torch.einsum("bqc,bchw->bqhw", self.masks(state), output.pixel_decoder_last_hidden_state)
        return self.classes(state), masks


def read_published(
    folder: Path, *, described: ModelDescription | None = None, device: str | torch.device = "cpu"
) -> PublishedModel:
    """Read a model from a transformers folder, with config.json and model.safetensors, in evaluation mode.

    Args:
        folder: of `save_pretrained`.
        described: of `describe`; None: read here.
        device: of the model.

    Raises:
        InputError: another architecture, missing or unknown weights, or another number of classes than names.
    """
    described = describe(folder) if described is None else described
    count = len(described.classes)
    network = {"mask2former": _Mask2Former, "maskformer": _MaskFormer}[described.kind](folder, count)
    files = (folder / "model.safetensors.index.json", folder / "model.safetensors")
    state = read_state(next((path for path in files if path.is_file()), files[-1]))
    rows = len(state["class_predictor.weight"]) if "class_predictor.weight" in state else None
    if rows is not None and rows != count + 1:
        raise InputError(
            f'{folder}: need a class head for the {count} classes of config.json and for "no object"; its weights are '
            f"for {rows - 1}. Give id2label a name for each class."
        )

    # the heads
    for theirs, ours in (("class_predictor", "classes"), ("mask_embedder", "masks")):
        module = getattr(network, ours, None)
        if isinstance(module, nn.Module):
            prefix = f"{theirs}."
            part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            put_state(module, part, source=str(folder), name=f"its {theirs}")
    return PublishedModel(network, described).eval().requires_grad_(False).to(device)
