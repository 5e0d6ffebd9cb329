"""ODISE's published files (label model) as mask generators of this package (Tab. 5).

    backbone.feature_projections.  -> encoder.bottlenecks.        backbone.feature_extractor. -> encoder.captioner.
    sem_seg_head.pixel_decoder.    -> decoder.library.pixel_decoder.
    sem_seg_head.predictor.        -> decoder.library.transformer., its post_mask_embed. -> head.
    category_head.                 -> head.

The decoders have Mask2Former's original names. CLIP and Stable Diffusion are not in the file. The mask head was
compared with the published one by names and outputs; the others are Mask2Former's and detectron2's, compared by names
and shapes only. The caption model is refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.clip.io.states import differences
from foveate.clip.model import Clip
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError
from foveate.heads.common.product import trained_state
from foveate.heads.common.published import Table, count_blocks, refuse_unknown, rename, shape_of
from foveate.heads.common.text import embed_classes
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.product import Network, build_parts

State = dict[str, Tensor]

SHORTEST, LONGEST = 1024, 2560  # edges of the published input at test [pixels]
IGNORED = (
    "criterion.",
    "clip_head.",
    "pixel_mean",
    "pixel_std",
    "sem_seg_head.criterion.",
)  # of training, or constants
PREDICTOR, PIXELS = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."
PROJECTIONS, EXTRACTOR = "backbone.feature_projections.", "backbone.feature_extractor."
LIBRARY = "decoder.library."
_PIXELS, _TRANSFORMER = f"{LIBRARY}pixel_decoder", f"{LIBRARY}transformer"
_LAYERS = f"{_TRANSFORMER}.decoder.layers"
_SELF = "self_attn.in_proj"  # later split into q, k, v

TABLE: Table = (
    # Mask2Former's pixel decoder
    (f"{PIXELS}input_proj", f"{_PIXELS}.input_projections"),
    (f"{PIXELS}transformer.level_embed", f"{_PIXELS}.level_embed"),
    *((f"{PIXELS}transformer.encoder.layers.*.{theirs}", f"{_PIXELS}.encoder.layers.*.{ours}") for theirs, ours in (
        ("self_attn", "self_attn"), ("norm1", "self_attn_layer_norm"), ("linear1", "fc1"), ("linear2", "fc2"),
        ("norm2", "final_layer_norm"))),
    (f"{PIXELS}mask_features", f"{_PIXELS}.mask_projection"),
    *((f"{PIXELS}{part}{theirs}", f"{_PIXELS}.{part}.{ours}") for part in ("adapter_1", "layer_1")
      for theirs, ours in (("", 0), (".norm", 1))),
    # Mask2Former's transformer decoder
    (f"{PREDICTOR}query_feat", f"{_TRANSFORMER}.queries_features"),
    (f"{PREDICTOR}static_query", f"{_TRANSFORMER}.queries_features"),
    (f"{PREDICTOR}query_embed", f"{_TRANSFORMER}.queries_embedder"),
    (f"{PREDICTOR}level_embed", f"{_TRANSFORMER}.level_embed"),
    (f"{PREDICTOR}input_proj", f"{_TRANSFORMER}.input_projections"),
    *((f"{PREDICTOR}transformer_{theirs}", f"{_LAYERS}.*.{ours}") for theirs, ours in (
        ("self_attention_layers.*.self_attn.in_proj_weight", f"{_SELF}.weight"),
        ("self_attention_layers.*.self_attn.in_proj_bias", f"{_SELF}.bias"),
        ("self_attention_layers.*.self_attn.out_proj", "self_attn.out_proj"),
        ("self_attention_layers.*.norm", "self_attn_layer_norm"),
        ("cross_attention_layers.*.multihead_attn", "cross_attn"),
        ("cross_attention_layers.*.norm", "cross_attn_layer_norm"),
        ("ffn_layers.*.linear1", "fc1"), ("ffn_layers.*.linear2", "fc2"), ("ffn_layers.*.norm", "final_layer_norm"))),
    (f"{PREDICTOR}decoder_norm", f"{_TRANSFORMER}.decoder.layernorm"),
    (f"{PREDICTOR}mask_embed.layers.*", f"{_TRANSFORMER}.decoder.mask_predictor.mask_embedder.*.0"),
    # ODISE's head
    *((f"{PREDICTOR}post_mask_embed.{theirs}", f"head.{ours}") for theirs, ours in (
        ("pool_proj", "pooled"), ("mask_embed.0", "mask.0"), ("mask_embed.1.layers.0", "mask.1"),
        ("mask_embed.1.layers.1", "mask.3"), ("mask_embed.1.layers.2", "mask.5"), ("logit_scale", "log_scale"))),
    ("category_head.text_proj", "head.text"),
    ("category_head.null_embed", "head.nothing"),
    # on Stable Diffusion's features: detectron2's bottlenecks, and the implicit captioner
    *((f"{PROJECTIONS}*.{inner}{theirs}", f"encoder.bottlenecks.*.{ours}") for inner in ("", "0.") for theirs, ours in (
        ("conv1", "body.0"), ("conv1.norm", "body.1"), ("conv2", "body.3"), ("conv2.norm", "body.4"),
        ("conv3", "body.6"), ("conv3.norm", "body.7"), ("shortcut", "past.0"), ("shortcut.norm", "past.1"))),
    *((f"{EXTRACTOR}{theirs}", f"encoder.captioner.{ours}") for theirs, ours in (
        ("clip_project", "project"), ("clip_project.linear", "project"),
        ("clip_project.positional_embedding", "places"), ("alpha_cond", "gate"),
        ("time_embed_project", "time"), ("time_embed_project.linear", "time"),
        ("time_embed_project.positional_embedding", "time_place"), ("alpha_cond_time_embed", "time_gate"))),
)  # fmt: skip
_SQUEEZED = {"head.nothing": 1, "encoder.captioner.places": 2, "encoder.captioner.gate": 2,
             "encoder.captioner.time_place": 1, "encoder.captioner.time_gate": 1}  # fmt: skip
OPTIONAL = ("encoder.captioner.places", "encoder.captioner.time")  # prefixes that may be missing: then zero


@dataclass(frozen=True)
class PublishedFile:
    """The tensors of a file under this package's names."""

    state: State
    names: dict[str, str]  # from this package's to the file's
    ignored: tuple[str, ...]  # names that only training needs


def is_odise(state: dict[str, Any]) -> bool:
    """Whether a state dictionary is ODISE's label model, by its names."""
    parts = ("category_head.text_proj.", f"{PREDICTOR}post_mask_embed.")
    return all(any(name.startswith(part) for name in state) for part in parts)


def rename_odise(state: State, *, source: str) -> PublishedFile:
    """Translate the names of a file.

    Args:
        state: under "model" in the file, or bare.
        source: the file, for messages.

    Raises:
        InputError: unknown tensors, or two of one name.
    """
    renamed, names, ignored, unknown = {}, {}, [], []
    for name, value in state.items():
        ours = rename(name, TABLE)
        if name.startswith(IGNORED):
            ignored.append(name)
        elif ours is None:
            unknown.append(name)
        elif ".self_attn.in_proj." in ours:
            if value.ndim == 0 or len(value) % 3:
                raise InputError(f"{source}: need queries, keys and values in {name}; got {tuple(value.shape)}.")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                key = ours.replace("in_proj", f"{letter}_proj")
                renamed[key], names[key] = part, name
        else:
            if ours in renamed:
                raise InputError(f"{source}: need each tensor once; {names[ours]} and {name} are the same one.")
            size = value.shape[value.ndim - _SQUEEZED[ours] :] if ours in _SQUEEZED else value.shape
            renamed[ours], names[ours] = value.reshape(size) if value.numel() == size.numel() else value, name
    refuse_unknown(unknown, source=source, what="ODISE's label model, not its caption model")
    return PublishedFile(renamed, names, tuple(ignored))


def network_of(file: PublishedFile, *, encoder: str, source: str) -> Network:
    """The hyperparameters, from shapes.

    Args:
        encoder: folder of the Stable Diffusion.
        source: the file, for messages.

    Raises:
        InputError: a tensor is missing.
    """
    state = file.state

    def shape(name: str, *, dims: int = 2) -> tuple[int, ...]:
        return shape_of(state, name, dims=dims, source=source, what="ODISE's label model")

    queries, width = shape(f"{LIBRARY}transformer.queries_features.weight")
    return Network(
        size=SHORTEST,
        encoder=encoder,
        channels=shape("encoder.bottlenecks.0.body.6.weight", dims=4)[0],
        pyramid="taps",
        taps=None,
        queries=queries,
        width=width,
        feedforward=shape(f"{LIBRARY}transformer.decoder.layers.0.fc1.weight")[0],
        pixel_layers=count_blocks(state, f"{LIBRARY}pixel_decoder.encoder.layers."),
        layers=count_blocks(state, f"{LIBRARY}transformer.decoder.layers."),
        joint=shape("head.text.weight")[0],
        longest=LONGEST,
    )


def build_odise(
    file: PublishedFile, network: Network, clip: Clip, classes: tuple[tuple[str, ...], ...], *, source: str
) -> MaskGenerator:
    """Build a mask generator with the weights of a file, in evaluation mode.

    Args:
        file: of `rename_odise`.
        network: of `network_of`.
        clip: of the captioner and of the class embeddings; changed here.
        classes: of the training data, each with its synonyms.
        source: the file, for messages.

    Raises:
        InputError: another Stable Diffusion or CLIP than the file's, or an incomplete file.
    """
    encoder, decoder = build_parts(network, clip)
    mask_generator = MaskGenerator(
        encoder,
        decoder,
        is_novel=torch.zeros(len(classes), dtype=torch.bool),
        size=network.size,
        classes=embed_classes(clip, Vocabulary(classes), length="raw"),
        joint=network.joint,
        jitter=None,
        flip=False,
        longest=network.longest,
    )
    put_odise(mask_generator, file, source=source)
    return mask_generator.eval()


def put_odise(mask_generator: MaskGenerator, file: PublishedFile, *, source: str) -> None:
    """Load the weights of a file into a mask generator that was built from `network_of`.

    Raises:
        InputError: tensors are missing, unknown, of another shape, or not finite; nothing is loaded.
    """
    expected = trained_state(mask_generator, frozen="encoder.")
    del expected["is_novel"]
    absent = tuple(group for group in OPTIONAL if not any(name.startswith(group) for name in file.state))
    zeros = {name: torch.zeros_like(value) for name, value in expected.items() if name.startswith(absent)}
    state = zeros | file.state
    problems = differences(expected, state, called=lambda name: file.names.get(name, f"our {name}"))
    if problems:
        raise InputError(
            f"{source}: need ODISE's label model, on the Stable Diffusion and the CLIP it was trained on; {problems}. "
            "Check --encoder and --clip, and that the file is whole."
        )
    mask_generator.load_state_dict(state, strict=False)  # the names were compared; the rest is frozen
