"""The choice of a tower's family, and the embeddings of every family (Sec. 3.1; Tab. A3).

A new CLIP family is one file beside this one (a subclass of `tower.ImageTower`) and one `case` in `tower_of`. Towers
that are not supported are refused with the reason (`tower_sizes`). In all functions `visual` is the image tower of a
`Clip`, images are normalised, and `run` runs the blocks before the last.
"""

from dataclasses import replace
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from foveate.clip.attention import RunBlock, block_inputs, embed_tokens, whole_block
from foveate.clip.eva import EvaTower
from foveate.clip.heads import HEADS, masked_attention, pool_image
from foveate.clip.inputs import PackedBatch
from foveate.clip.names import Head
from foveate.clip.resnet import ResNetTower
from foveate.clip.siglip import SiglipTower
from foveate.clip.tower import ImageTower, Layout, Windows
from foveate.clip.vit import VitTower
from foveate.errors import InputError

_MAX_WINDOW = 1024  # tokens: 16,384 pixels of a ViT-B/16; grids are padded to whole windows


def tower_of(visual: nn.Module) -> ImageTower:
    """Wrap an image tower in the class of its family; LookupError: its family is not supported."""
    match visual:
        case VisionTransformer():
            return VitTower(visual)
        case TimmModel(trunk=Eva()):
            return EvaTower(visual)
        case TimmModel(trunk=TimmVisionTransformer()):
            return SiglipTower(visual)
        case ModifiedResNet():
            return ResNetTower(visual)
    trunk: Any = visual.trunk if isinstance(visual, TimmModel) else visual
    raise LookupError(f"{type(trunk).__name__} has no dense head in Foveate")


def class_embedding(visual: nn.Module, batch: PackedBatch, *, run: RunBlock = whole_block) -> Float[Tensor, "B D"]:
    """Embed whole images as CLIP does, at any size, not normalised (the teacher; Sec. 3.2)."""
    tower = tower_of(visual)
    last = len(tower.blocks) - 1
    states, layout = block_inputs(tower, batch, indices={last}, run=run)
    return tower.finish(pool_image(tower, states[last], layout))[:, 0]


def dense_tokens(
    visual: nn.Module,
    batch: PackedBatch,
    *,
    head: str,
    frame: tuple[int, int] | None = None,
    windows: Windows | None = None,
    gates: Float[Tensor, " G"] | None = None,
    run: RunBlock = whole_block,
) -> Float[Tensor, "B L D"]:
    """Embed every patch of the images (Sec. 3.1).

    Args:
        head: replacement of the last block, see `foveate.clip.heads`; "value" is the paper's.
        frame: (h, w) of the grid of which the images are the top left, for positions; None: their own grid.
        windows: blocks with window attention (Sec. 4.4).
        gates: of the attention heads in "values3", as returned by `check_gates`.

    Returns:
        Patch embeddings row by row, L = H / P * W / P, not normalised; undefined for padding.

    Raises:
        InputError: the head is unknown or not defined for this tower.
    """
    tower, dense_head = tower_of(visual), HEADS[check_head(visual, head)]
    count = len(tower.blocks)
    indices = set(range(count - dense_head.states, count))
    states, layout = block_inputs(tower, batch, indices=indices, frame=frame, windows=windows, run=run)
    return tower.finish(dense_head.apply(tower, list(states.values()), replace(layout, gates=gates)))


def region_embedding(
    visual: nn.Module, batch: PackedBatch, regions: Bool[Tensor, "B Q L"], *, windows: Windows | None = None
) -> Float[Tensor, "B Q D"]:
    """Embed regions by masked attention (Tab. A3), see `foveate.clip.heads.masked_attention`.

    Args:
        regions: the patches of each region; no padding.
        windows: as in `dense_tokens`; they do not restrict the copies of the class token.

    Returns:
        One embedding per region, not normalised. A region without patches is the output of its copy for the class token
        alone, and zero in towers without one.
    """
    tower = tower_of(visual)
    tokens, layout = embed_tokens(tower, batch, windows=windows)
    embeddings = tower.finish(masked_attention(tower, tokens, layout, regions))
    return embeddings if layout.prefix else embeddings * regions.any(dim=2, keepdim=True)


def feature_maps(
    visual: nn.Module,
    batch: PackedBatch,
    *,
    layers: tuple[int, ...],
    head: str,
    windows: Windows | None = None,
    gates: Float[Tensor, " G"] | None = None,
    run: RunBlock = whole_block,
) -> list[Float[Tensor, "B C h w"]]:
    """Compute the outputs of some stages of a tower, before final norm and projection; of the last, that of the head.

    Args:
        batch: images; of one size for a residual network.
        layers: indices of `tower_stages`, from 0; the maps are returned in this order.
        head: of the last stage; see `dense_tokens`, as `windows` and `gates`.
    """
    tower, dense_head = tower_of(visual), HEADS[check_head(visual, head)]
    if isinstance(tower, ResNetTower):  # only the last stage is attention over tokens
        maps = tower.residual_maps(batch.images)
        if len(maps) in layers:
            grid = (maps[-1].shape[2], maps[-1].shape[3])
            tokens = tower.embed_map(maps[-1], tower.positions(grid))
            pooled = dense_head.apply(tower, [tokens], Layout(grid, prefix=1, table=None, valid=None))
            maps.append(pooled.mT.unflatten(2, grid))
        return [maps[layer] for layer in layers]

    # the output of a block is the input of the next; the head uses the inputs of the last blocks
    last = len(tower.blocks) - 1
    head_indices = range(last + 1 - dense_head.states, last + 1) if last in layers else range(0)
    indices = {layer + 1 for layer in layers if layer != last} | {*head_indices}
    states, layout = block_inputs(tower, batch, indices=indices, windows=windows, run=run)
    maps = {layer: states[layer + 1][:, layout.prefix :] for layer in layers if layer != last}
    if last in layers:
        maps[last] = dense_head.apply(tower, [states[i] for i in head_indices], replace(layout, gates=gates))
    return [maps[layer].mT.unflatten(2, layout.grid) for layer in layers]  # (B, L, C) -> (B, C, h, w) each


def dense_of_last(visual: nn.Module, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
    """The dense feature map, not normalised, from the last stage's map of `feature_maps`, without a second forward."""
    tokens = tower_of(visual).finish(last.flatten(2).mT)  # (B, C, h, w) -> (B, L, D)
    return tokens.mT.unflatten(2, last.shape[2:])


def tower_stages(visual: nn.Module) -> list[nn.Module]:
    """The stages, first to last: transformer blocks (of SigLIP also the pool), or residual stages and the pool."""
    return tower_of(visual).stages


def blocks_run_whole(visual: nn.Module, *, head: Head) -> list[nn.Module]:
    """The blocks that are only run as a whole, by a `RunBlock`: all but those of which the head uses parts."""
    blocks = tower_of(visual).blocks
    return blocks[: len(blocks) - HEADS[check_head(visual, head)].states]


def last_block_use(visual: nn.Module, *, head: Head) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """The parameters of the last block that a head does not use (Sec. 3.1), so that they have no gradient.

    Returns:
        Parameters that are not used at all; and matrices of which only some rows are used (the values in a fused
        query-key-value projection), with these rows.
    """
    dense_head = HEADS[check_head(visual, head)]
    return tower_of(visual).unused(part=dense_head.part, mlp=dense_head.mlp)


def check_head(visual: nn.Module, head: str) -> str:
    """Return the head, if it exists and is defined for this tower.

    Raises:
        InputError: names the heads that can be used.
    """
    if head == "masked":
        raise InputError("head: masked embeds regions, not patches; use it with encode_boxes or encode_masks.")
    heads = get_args(Head)
    if head not in heads:
        raise InputError(f"head: must be one of {', '.join(heads)}; got {head!r}.")
    tower, dense_head = tower_of(visual), HEADS[head]
    if not tower.has_patch_queries and ("q" in dense_head.part or dense_head.states > 1):
        reason = "a SigLIP tower pools its image with one learned query, so its patches have none"
        raise InputError(f"head: {head} is not defined here: {reason}. Use value, value_only or naclip.")
    if head == "value_cls" and not tower.adds_to_class_token:
        reason = "in this tower's last block nothing is added to a class token"
        raise InputError(f"head: {head} is not defined here: {reason}. Use value.")
    if dense_head.states > len(tower.blocks):
        reason = f"it needs {dense_head.states} attention blocks, and this tower has {len(tower.blocks)}"
        raise InputError(f"head: {head} is not defined here: {reason}. Use value.")
    return head


def check_gates(visual: nn.Module, gates: Any) -> Float[Tensor, " G"]:
    """Convert gates to one row, (3 * heads,) float32 on the CPU, block by block.

    Args:
        gates: a number for each attention head of each of the last three blocks, (3, heads): nested lists or a tensor.

    Raises:
        InputError: the dense head "values3" is not defined for the tower, or its gates have another shape.
    """
    check_head(visual, "values3")
    try:
        values = torch.as_tensor(gates, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"gates: need three rows of numbers, one per head; got {gates!r:.200} ({error}).") from error
    shape = tuple(open_gates(visual).shape)
    if tuple(values.shape) != shape or not values.isfinite().all():
        raise InputError(f"gates: need {shape[0]} rows of {shape[1]} finite numbers; got {gates!r:.200}.")
    return values.flatten()


def open_gates(visual: nn.Module) -> Float[Tensor, "3 H"]:
    """The gates without effect: 1 for each attention head of each of the last three blocks.

    Raises:
        InputError: the dense head "values3" is not defined for the tower.
    """
    check_head(visual, "values3")
    tower = tower_of(visual)
    return torch.ones(3, tower.heads(tower.blocks[-1]), device="cpu")


def check_windows(visual: nn.Module, windows: Any) -> Windows:
    """Return the windows, if the tower can have them.

    Raises:
        InputError: a residual network, a side that is not in 1 to 1024, or blocks that the tower does not have.
    """
    count = tower_of(visual).windowable
    if count == 0:
        raise InputError("windows: need attention blocks; a residual network has none before its pool. Remove them.")
    if not isinstance(windows, Windows):
        raise InputError(
            f"windows: need foveate.clip.tower.Windows(size, blocks); got {windows!r}. "
            "foveate.clip.dense.default_windows(clip.visual, size=...) returns the paper's."
        )
    if type(windows.size) is not int or not all(type(index) is int for index in windows.blocks):
        raise InputError(f"windows: need whole numbers; got {windows}.")
    if not 1 <= windows.size <= _MAX_WINDOW:
        raise InputError(f"windows: the side must be 1 to {_MAX_WINDOW} tokens; got {windows.size}.")
    if len(set(windows.blocks)) < len(windows.blocks):
        raise InputError(f"windows: need each block once; got {windows.blocks}.")
    outside = [index for index in windows.blocks if not 0 <= index < count]
    if outside:
        raise InputError(f"windows: blocks are counted 0 to {count - 1}; got {outside[0]}.")
    return windows


def default_windows(visual: nn.Module, *, size: int = 16) -> Windows:
    """The paper's windows of `size` tokens, in all blocks but the last of each quarter (B: all but 2, 5, 8, 11).

    Raises:
        InputError: an error of `check_windows`, or the tower has four blocks or fewer.
    """
    count = tower_of(visual).windowable
    without = {-(-quarter * count // 4) - 1 for quarter in (1, 2, 3, 4)}  # rounded up
    blocks = tuple(index for index in range(count) if index not in without)
    if not blocks and count:
        raise InputError(f"windows: need more than 4 blocks, of which 4 have no windows; this tower has {count}.")
    return check_windows(visual, Windows(size, blocks))


def tower_sizes(visual: nn.Module, *, name: str) -> tuple[int, int, int]:
    """Native image size [pixels], patch size [pixels] and embedding size of any image tower of open_clip.

    Raises:
        InputError: the tower of the model `name` is not supported; gives the reason and supported ones.
    """
    try:
        tower = tower_of(visual)
    except LookupError as error:
        raise _refused(name, str(error)) from error
    reason = tower.refusal()
    if reason is not None:
        raise _refused(name, reason)
    image, patch, embed_dim = tower.sizes
    if image[0] != image[1] or patch[0] != patch[1]:
        raise _refused(name, f"its native image size {tuple(image)} or patch size {tuple(patch)} is not square")
    return image[0], patch[0], embed_dim


def _refused(name: str, reason: str) -> InputError:
    return InputError(
        f"{name}: this tower is not supported: {reason}. Use an OpenAI or open_clip ViT (ViT-B-16, ViT-L-14, ...), "
        "EVA-02 (EVA02-B-16, EVA02-L-14, EVA02-L-14-336), SigLIP (ViT-B-16-SigLIP, ViT-B-16-SigLIP2, ...) or a "
        "residual network (RN50, RN101, RN50x4, RN50x16, RN50x64)."
    )
