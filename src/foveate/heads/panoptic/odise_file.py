"""ODISE's published files (label model): their names, ours, and the generator that is made of one (Tab. 5).

    backbone.feature_projections.  -> encoder.bottlenecks.        backbone.feature_extractor. -> encoder.captioner.
    sem_seg_head.pixel_decoder.    -> decoder.library.pixel_decoder.
    sem_seg_head.predictor.        -> decoder.library.transformer., its post_mask_embed. -> head.
    category_head.                 -> head.

The decoders have Mask2Former's original names, which its other files share. CLIP and Stable Diffusion are not in the
file. The names of the mask head were compared with the published ones and its numbers with golden ones; the others are
those of Mask2Former and detectron2, held by names and shapes alone. Deliberately absent: the caption model (its
word head learns from captions), and Mask2Former's own backbones (transformers' folders have them).
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
from foveate.heads.common.text import embed_words
from foveate.heads.panoptic.mask2former import MaskGenerator
from foveate.heads.panoptic.product import Network, build_parts

State = dict[str, Tensor]

SHORTEST, LONGEST = 1024, 2560  # edges of the published input at test [pixels]
DROPPED = (
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
_SELF = "self_attn.in_proj"  # split in three afterwards

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
    # what is trained on Stable Diffusion's features: detectron2's bottlenecks, and the implicit captioner
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
OPTIONAL = ("encoder.captioner.places", "encoder.captioner.time")  # groups that a file may lack as a whole: then zero


@dataclass(frozen=True)
class Renamed:
    """The tensors of a file under our names."""

    state: State
    names: dict[str, str]  # from ours to the file's
    dropped: tuple[str, ...]  # of the file, needed in training alone


def is_odise(state: dict[str, Any]) -> bool:
    """Whether tensors are ODISE's label model, by their names."""
    parts = ("category_head.text_proj.", f"{PREDICTOR}post_mask_embed.")
    return all(any(name.startswith(part) for name in state) for part in parts)


def rename_odise(state: State, *, source: str) -> Renamed:
    """Give the tensors of a file our names.

    Args:
        state: what stands under "model" in the file, or bare.
        source: the file, for messages.

    Raises:
        InputError: tensors that have no place here; lists them.
    """
    found, names, dropped, unknown = {}, {}, [], []
    for name, value in state.items():
        ours = rename(name, TABLE)
        if name.startswith(DROPPED):
            dropped.append(name)
        elif ours is None:
            unknown.append(name)
        elif ".self_attn.in_proj." in ours:
            if value.ndim == 0 or len(value) % 3:
                raise InputError(f"{source}: need queries, keys and values in {name}; got {tuple(value.shape)}.")
            for part, one in zip("qkv", value.chunk(3), strict=True):
                own = ours.replace("in_proj", f"{part}_proj")
                found[own], names[own] = one, name
        else:
            if ours in found:
                raise InputError(f"{source}: need each tensor once; {names[ours]} and {name} are the same one.")
            size = value.shape[value.ndim - _SQUEEZED[ours] :] if ours in _SQUEEZED else value.shape
            found[ours], names[ours] = value.reshape(size) if value.numel() == size.numel() else value, name
    refuse_unknown(unknown, source=source, what="ODISE's label model, not its caption model")
    return Renamed(found, names, tuple(dropped))


def network_of(renamed: Renamed, *, encoder: str, source: str) -> Network:
    """The numbers of the network, from the shapes.

    Args:
        renamed: the file.
        encoder: folder of the Stable Diffusion.
        source: the file, for messages.

    Raises:
        InputError: a tensor that a number is read from is missing.
    """
    state = renamed.state

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
    renamed: Renamed, network: Network, clip: Clip, classes: tuple[tuple[str, ...], ...], *, source: str
) -> MaskGenerator:
    """Build a generator with the weights of a file.

    Args:
        renamed: the file.
        network: of `network_of`.
        clip: that captions, and whose words the generator learned; changed here.
        classes: the words of each class it was trained on.
        source: the file, for messages.

    Returns:
        The generator in evaluation mode.

    Raises:
        InputError: another Stable Diffusion or CLIP than the file's, or a file that is not whole.
    """
    encoder, decoder = build_parts(network, clip)
    generator = MaskGenerator(
        encoder,
        decoder,
        is_novel=torch.zeros(len(classes), dtype=torch.bool),
        size=network.size,
        words=embed_words(clip, Vocabulary(classes), length="raw"),
        joint=network.joint,
        jitter=None,
        flip=False,
        longest=network.longest,
    )
    put_odise(generator, renamed, source=source)
    return generator.eval()


def put_odise(generator: MaskGenerator, renamed: Renamed, *, source: str) -> None:
    """Fill what is trained of a generator on Stable Diffusion, all of it or nothing.

    Args:
        generator: built from `network_of`; changed here.
        renamed: the file.
        source: the file, for messages.

    Raises:
        InputError: tensors are missing, left over or of another shape, or not finite.
    """
    wanted = {name: one for name, one in trained_state(generator, frozen="encoder.").items() if name != "is_novel"}
    absent = tuple(group for group in OPTIONAL if not any(name.startswith(group) for name in renamed.state))
    given = {name: torch.zeros_like(one) for name, one in wanted.items() if name.startswith(absent)} | renamed.state
    problems = differences(wanted, given, called=lambda name: renamed.names.get(name, f"our {name}"))
    if problems:
        raise InputError(
            f"{source}: need ODISE's label model, on the Stable Diffusion and the CLIP it was trained on; {problems}. "
            "Check --encoder and --clip, and that the file is whole."
        )
    generator.load_state_dict(given, strict=False)  # the names were compared; the rest is frozen
