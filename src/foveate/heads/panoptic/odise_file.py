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

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.states import differences
from foveate.clip.vocabulary import Vocabulary
from foveate.errors import InputError, listed
from foveate.heads.common.product import trained_state
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
_END = r"\.(?P<end>weight|bias)"
_ATTENTION = "self_attn.(?P<part>sampling_offsets|attention_weights|value_proj|output_proj)"

# name in the file -> name in `MaskGenerator`; `{i}` and the like are groups, "in_proj" is split in three afterwards
_TABLE: tuple[tuple[str, str], ...] = (
    # Mask2Former's pixel decoder
    (rf"{PIXELS}input_proj\.(?P<i>\d+)\.(?P<j>[01]){_END}", LIBRARY + "pixel_decoder.input_projections.{i}.{j}.{end}"),
    (rf"{PIXELS}transformer\.level_embed", LIBRARY + "pixel_decoder.level_embed"),
    (rf"{PIXELS}transformer\.encoder\.layers\.(?P<i>\d+)\.{_ATTENTION}{_END}",
     LIBRARY + "pixel_decoder.encoder.layers.{i}.self_attn.{part}.{end}"),
    (rf"{PIXELS}transformer\.encoder\.layers\.(?P<i>\d+)\.norm1{_END}",
     LIBRARY + "pixel_decoder.encoder.layers.{i}.self_attn_layer_norm.{end}"),
    (rf"{PIXELS}transformer\.encoder\.layers\.(?P<i>\d+)\.linear(?P<j>[12]){_END}",
     LIBRARY + "pixel_decoder.encoder.layers.{i}.fc{j}.{end}"),
    (rf"{PIXELS}transformer\.encoder\.layers\.(?P<i>\d+)\.norm2{_END}",
     LIBRARY + "pixel_decoder.encoder.layers.{i}.final_layer_norm.{end}"),
    (rf"{PIXELS}mask_features{_END}", LIBRARY + "pixel_decoder.mask_projection.{end}"),
    (rf"{PIXELS}(?P<part>adapter_1|layer_1)\.weight", LIBRARY + "pixel_decoder.{part}.0.weight"),
    (rf"{PIXELS}(?P<part>adapter_1|layer_1)\.norm{_END}", LIBRARY + "pixel_decoder.{part}.1.{end}"),
    # Mask2Former's transformer decoder
    (rf"{PREDICTOR}(query_feat|static_query)\.weight", LIBRARY + "transformer.queries_features.weight"),
    (rf"{PREDICTOR}query_embed\.weight", LIBRARY + "transformer.queries_embedder.weight"),
    (rf"{PREDICTOR}level_embed\.weight", LIBRARY + "transformer.level_embed.weight"),
    (rf"{PREDICTOR}input_proj\.(?P<i>\d+){_END}", LIBRARY + "transformer.input_projections.{i}.{end}"),
    (rf"{PREDICTOR}transformer_self_attention_layers\.(?P<i>\d+)\.self_attn\.in_proj_(?P<end>weight|bias)",
     LIBRARY + "transformer.decoder.layers.{i}.self_attn.in_proj.{end}"),
    (rf"{PREDICTOR}transformer_self_attention_layers\.(?P<i>\d+)\.self_attn\.out_proj{_END}",
     LIBRARY + "transformer.decoder.layers.{i}.self_attn.out_proj.{end}"),
    (rf"{PREDICTOR}transformer_self_attention_layers\.(?P<i>\d+)\.norm{_END}",
     LIBRARY + "transformer.decoder.layers.{i}.self_attn_layer_norm.{end}"),
    (rf"{PREDICTOR}transformer_cross_attention_layers\.(?P<i>\d+)\.multihead_attn\.in_proj_(?P<end>weight|bias)",
     LIBRARY + "transformer.decoder.layers.{i}.cross_attn.in_proj_{end}"),
    (rf"{PREDICTOR}transformer_cross_attention_layers\.(?P<i>\d+)\.multihead_attn\.out_proj{_END}",
     LIBRARY + "transformer.decoder.layers.{i}.cross_attn.out_proj.{end}"),
    (rf"{PREDICTOR}transformer_cross_attention_layers\.(?P<i>\d+)\.norm{_END}",
     LIBRARY + "transformer.decoder.layers.{i}.cross_attn_layer_norm.{end}"),
    (rf"{PREDICTOR}transformer_ffn_layers\.(?P<i>\d+)\.linear(?P<j>[12]){_END}",
     LIBRARY + "transformer.decoder.layers.{i}.fc{j}.{end}"),
    (rf"{PREDICTOR}transformer_ffn_layers\.(?P<i>\d+)\.norm{_END}",
     LIBRARY + "transformer.decoder.layers.{i}.final_layer_norm.{end}"),
    (rf"{PREDICTOR}decoder_norm{_END}", LIBRARY + "transformer.decoder.layernorm.{end}"),
    (rf"{PREDICTOR}mask_embed\.layers\.(?P<i>\d+){_END}",
     LIBRARY + "transformer.decoder.mask_predictor.mask_embedder.{i}.0.{end}"),
    # ODISE's head
    (rf"{PREDICTOR}post_mask_embed\.pool_proj\.(?P<i>[01]){_END}", "head.pooled.{i}.{end}"),
    (rf"{PREDICTOR}post_mask_embed\.mask_embed\.0{_END}", "head.mask.0.{end}"),
    (rf"{PREDICTOR}post_mask_embed\.mask_embed\.1\.layers\.0{_END}", "head.mask.1.{end}"),
    (rf"{PREDICTOR}post_mask_embed\.mask_embed\.1\.layers\.1{_END}", "head.mask.3.{end}"),
    (rf"{PREDICTOR}post_mask_embed\.mask_embed\.1\.layers\.2{_END}", "head.mask.5.{end}"),
    (rf"{PREDICTOR}post_mask_embed\.logit_scale", "head.log_scale"),
    (rf"category_head\.text_proj{_END}", "head.text.{end}"),
    (r"category_head\.null_embed", "head.nothing"),
    # what is trained on Stable Diffusion's features: detectron2's bottlenecks, and the implicit captioner
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?conv1\.weight", "encoder.bottlenecks.{i}.body.0.weight"),
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?conv1\.norm{_END}", "encoder.bottlenecks.{i}.body.1.{end}"),
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?conv2\.weight", "encoder.bottlenecks.{i}.body.3.weight"),
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?conv2\.norm{_END}", "encoder.bottlenecks.{i}.body.4.{end}"),
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?conv3\.weight", "encoder.bottlenecks.{i}.body.6.weight"),
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?conv3\.norm{_END}", "encoder.bottlenecks.{i}.body.7.{end}"),
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?shortcut\.weight", "encoder.bottlenecks.{i}.past.0.weight"),
    (rf"{PROJECTIONS}(?P<i>\d+)\.(0\.)?shortcut\.norm{_END}", "encoder.bottlenecks.{i}.past.1.{end}"),
    (rf"{EXTRACTOR}clip_project(\.linear)?{_END}", "encoder.captioner.project.{end}"),
    (rf"{EXTRACTOR}clip_project\.positional_embedding", "encoder.captioner.places"),
    (rf"{EXTRACTOR}alpha_cond", "encoder.captioner.gate"),
    (rf"{EXTRACTOR}time_embed_project(\.linear)?{_END}", "encoder.captioner.time.{end}"),
    (rf"{EXTRACTOR}time_embed_project\.positional_embedding", "encoder.captioner.time_place"),
    (rf"{EXTRACTOR}alpha_cond_time_embed", "encoder.captioner.time_gate"),
)  # fmt: skip
_RULES = tuple((re.compile(theirs), ours) for theirs, ours in _TABLE)
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


def our_name(name: str) -> str | None:
    """What a tensor of the file is called here; None: it has no place. `in_proj` stands for three."""
    for theirs, ours in _RULES:
        found = theirs.fullmatch(name)
        if found:
            return ours.format(**found.groupdict())
    return None


def rename(state: State, *, source: str) -> Renamed:
    """Give the tensors of a file our names.

    Args:
        state: what stands under "model" in the file, or bare.
        source: the file, for messages.

    Raises:
        InputError: tensors that have no place here; lists them.
    """
    found, names, dropped, unknown = {}, {}, [], []
    for name, value in state.items():
        ours = our_name(name)
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
    if unknown:
        raise InputError(
            f"{source}: need ODISE's label model; {len(unknown)} of its {len(state)} tensors have no place in "
            f"it: {listed(unknown)}. A caption model, or a changed network, cannot be converted."
        )
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

    def shape(name: str) -> torch.Size:
        if name not in state or state[name].ndim < 2:
            raise InputError(f"{source}: need ODISE's label model; the tensor for {name} is missing or of another "
                             "form. Download the file again.")  # fmt: skip
        return state[name].shape

    def count(beginning: str) -> int:
        return len({name.removeprefix(beginning).split(".")[0] for name in state if name.startswith(beginning)})

    queries, width = shape(f"{LIBRARY}transformer.queries_features.weight")
    return Network(
        size=SHORTEST,
        encoder=encoder,
        channels=shape("encoder.bottlenecks.0.body.6.weight")[0],
        pyramid="taps",
        taps=None,
        queries=queries,
        width=width,
        feedforward=shape(f"{LIBRARY}transformer.decoder.layers.0.fc1.weight")[0],
        pixel_layers=count(f"{LIBRARY}pixel_decoder.encoder.layers."),
        layers=count(f"{LIBRARY}transformer.decoder.layers."),
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
