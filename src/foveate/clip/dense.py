"""The one place where a tower's family decides, and the embeddings every family gives (Sec. 3.1; Tab. A3).

A new CLIP family is one file beside this one (a class of `tower.ImageTower`) and one `case` in `tower_of`. Towers
without tokens in space, and those nobody has described yet, are refused by name with the reason (`tower_sizes`). In all
other functions `visual` is an image tower that was accepted, as `Clip.visual` is.
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

from foveate.clip.attention import RunBlock, embed_tokens, entering, whole_block
from foveate.clip.eva import EvaTower
from foveate.clip.heads import HEADS, gathered, masked
from foveate.clip.inputs import PackedBatch
from foveate.clip.names import Head
from foveate.clip.resnet import ResNetTower
from foveate.clip.siglip import SiglipTower
from foveate.clip.tower import ImageTower, Layout, Windows
from foveate.clip.vit import VitTower
from foveate.errors import InputError

_LARGEST_WINDOW = 1024  # tokens: 16,384 pixels of a ViT-B/16; grids are filled up to whole windows


def tower_of(visual: nn.Module) -> ImageTower:
    """A tower as its family runs it; `tower_sizes` has refused those that have none."""
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
    raise LookupError(f"there is no dense head yet for a {type(trunk).__name__}")


def class_embedding(visual: nn.Module, batch: PackedBatch, *, run: RunBlock = whole_block) -> Float[Tensor, "B D"]:
    """Embed whole images as CLIP does, at any size (the teacher; Sec. 3.2).

    Args:
        batch: normalised images.
        run: how the blocks before the last are run.

    Returns:
        One embedding an image, not normalised.
    """
    tower = tower_of(visual)
    last = len(tower.blocks) - 1
    states, layout = entering(tower, batch, places={last}, run=run)
    return tower.finish(gathered(tower, states[last], layout))[:, 0]


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
        batch: normalised images.
        head: what becomes of the last block, see `foveate.clip.heads`; "value" is the paper's.
        frame: (h, w) of the grid whose top left the images are, and whose positions they get; None: their own.
        windows: which blocks attend in windows (Sec. 4.4).
        gates: of the heads under "values3", as `check_gates` returns them; None: none.
        run: how the blocks before the last are run.

    Returns:
        Patch embeddings row by row, L = H / P * W / P, not normalised; of padding, numbers without meaning.

    Raises:
        InputError: another head, or one this family cannot have.
    """
    tower, needs = tower_of(visual), HEADS[check_head(visual, head)]
    count = len(tower.blocks)
    places = set(range(count - needs.states, count))
    states, layout = entering(tower, batch, places=places, frame=frame, windows=windows, run=run)
    return tower.finish(needs.apply(tower, list(states.values()), replace(layout, gates=gates)))


def region_embedding(
    visual: nn.Module, batch: PackedBatch, regions: Bool[Tensor, "B Q L"], *, windows: Windows | None = None
) -> Float[Tensor, "B Q D"]:
    """Embed regions by masked attention (Tab. A3), see `foveate.clip.heads.masked`.

    Args:
        batch: normalised images.
        regions: which patches belong to each region; of padding none.
        windows: as in `dense_tokens`; the copies themselves are not bound to windows.

    Returns:
        One embedding a region, not normalised. A region without patches is what its copy makes of the class token
        alone; zero where there is none.
    """
    tower = tower_of(visual)
    tokens, layout = embed_tokens(tower, batch, windows=windows)
    embeddings = tower.finish(masked(tower, tokens, layout, regions))
    return embeddings if layout.prefix else embeddings * regions.any(dim=2, keepdim=True)


def tapped(
    visual: nn.Module,
    batch: PackedBatch,
    *,
    layers: tuple[int, ...],
    head: str,
    windows: Windows | None = None,
    gates: Float[Tensor, " G"] | None = None,
    run: RunBlock = whole_block,
) -> list[Float[Tensor, "B C h w"]]:
    """Take feature maps out of a tower: what leaves some of its stages, and for the last one what the head makes.

    Args:
        batch: normalised images; for a residual network of one size.
        layers: places in `tower_stages`, from 0.
        head: of the last stage; see `dense_tokens`.
        windows: as in `dense_tokens`.
        gates: as in `dense_tokens`.
        run: as in `dense_tokens`.

    Returns:
        One map a layer, in the order of `layers`, before final norm and projection.
    """
    tower, needs = tower_of(visual), HEADS[check_head(visual, head)]
    if isinstance(tower, ResNetTower):  # its stages but the last are no attention over tokens
        maps = tower.residual_maps(batch.images)
        if len(maps) in layers:
            grid = (maps[-1].shape[2], maps[-1].shape[3])
            tokens = tower.embed_map(maps[-1], tower.positions(grid))
            pooled = needs.apply(tower, [tokens], Layout(grid, prefix=1, table=None, valid=None))
            maps.append(pooled.mT.unflatten(2, grid))
        return [maps[layer] for layer in layers]
    # what leaves a block enters the next; of the last block the head takes what enters it
    last = len(tower.blocks) - 1
    of_head = range(last + 1 - needs.states, last + 1) if last in layers else range(0)
    places = {layer + 1 for layer in layers if layer != last} | {*of_head}
    states, layout = entering(tower, batch, places=places, windows=windows, run=run)
    maps = {layer: states[layer + 1][:, layout.prefix :] for layer in layers if layer != last}
    if last in layers:
        maps[last] = needs.apply(tower, [states[place] for place in of_head], replace(layout, gates=gates))
    return [maps[layer].mT.unflatten(2, layout.grid) for layer in layers]  # (B, L, C) -> (B, C, h, w) each


def dense_of_last(visual: nn.Module, last: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
    """Finish what `tapped` takes out of the last stage: the dense map of the same head, without a second forward.

    Args:
        last: of the last stage, as `tapped` gives it.

    Returns:
        The dense map, not normalised.
    """
    tokens = tower_of(visual).finish(last.flatten(2).mT)  # (B, C, h, w) -> (B, L, D)
    return tokens.mT.unflatten(2, last.shape[2:])


def tower_stages(visual: nn.Module) -> list[nn.Module]:
    """What is trained and tapped, first to last: transformer blocks (SigLIP: and the pool), or residual stages and the
    pool; the last one is what a head changes.
    """
    return tower_of(visual).stages


def blocks_run_whole(visual: nn.Module, *, head: Head) -> list[nn.Module]:
    """The blocks that are run as a whole and by nothing else (`RunBlock`): all but those a head takes in parts.

    Args:
        head: as in `dense_tokens`.
    """
    blocks = tower_of(visual).blocks
    return blocks[: len(blocks) - HEADS[check_head(visual, head)].states]


def last_block_use(visual: nn.Module, *, head: Head) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """Which parameters of the last block the dense embedding does without (Sec. 3.1); they have nothing to learn.

    Args:
        head: as in `dense_tokens`.

    Returns:
        The parameters that are not used at all; and the matrices of which only some rows are used (values in a fused
        query-key-value projection), with those rows.
    """
    needs = HEADS[check_head(visual, head)]
    return tower_of(visual).unused(part=needs.part, mlp=needs.mlp)


def check_head(visual: nn.Module, head: str) -> str:
    """Refuse a head that does not exist, or that a family cannot have.

    Raises:
        InputError: names the heads there are.
    """
    if head == "masked":
        raise InputError("head: masked embeds regions, not patches; use it with encode_boxes or encode_masks.")
    heads = get_args(Head)
    if head not in heads:
        raise InputError(f"head: must be one of {', '.join(heads)}; got {head!r}.")
    tower, needs = tower_of(visual), HEADS[head]
    if not tower.has_patch_queries and ("q" in needs.part or needs.states > 1):
        reason = "a SigLIP tower gathers its image by a pool with one learned query, so its patches have none"
        raise InputError(f"head: {head} is not defined here: {reason}. Use value, value_only or naclip.")
    if head == "value_cls" and not tower.adds_to_class_token:
        reason = "in this tower's last block nothing is added to a class token"
        raise InputError(f"head: {head} is not defined here: {reason}. Use value.")
    if needs.states > len(tower.blocks):
        reason = f"it takes {needs.states} attention blocks, and this tower has {len(tower.blocks)}"
        raise InputError(f"head: {head} is not defined here: {reason}. Use value.")
    return head


def check_gates(visual: nn.Module, gates: Any) -> Float[Tensor, " G"]:
    """Refuse gates of heads that a tower cannot have, and lay them out in one row.

    Args:
        gates: one number for each head of each of the last three blocks, (3, heads): nested lists or a tensor.

    Returns:
        (3 * heads,) float32 on the CPU, block by block.

    Raises:
        InputError: the tower has no head "values3", or these are not its numbers.
    """
    check_head(visual, "values3")
    try:
        numbers = torch.as_tensor(gates, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"gates: need three rows of numbers, one a head; got {gates!r:.200} ({error}).") from error
    shape = tuple(open_gates(visual).shape)
    if tuple(numbers.shape) != shape or not numbers.isfinite().all():
        raise InputError(f"gates: need {shape[0]} rows of {shape[1]} finite numbers; got {gates!r:.200}.")
    return numbers.flatten()


def open_gates(visual: nn.Module) -> Float[Tensor, "3 H"]:
    """The gates that change nothing: 1 for each head of each of the last three blocks.

    Raises:
        InputError: the tower has no head "values3".
    """
    check_head(visual, "values3")
    tower = tower_of(visual)
    return torch.ones(3, tower.heads(tower.blocks[-1]), device="cpu")


def check_windows(visual: nn.Module, windows: Any) -> Windows:
    """Refuse window attention that a tower cannot have.

    Raises:
        InputError: a residual network, a side below 1, or blocks the tower does not have.
    """
    count = tower_of(visual).windowable
    if count == 0:
        raise InputError("windows: residual networks have one attention layer, the pool; there is nothing to window.")
    if not isinstance(windows, Windows):
        raise InputError(
            f"windows: need foveate.clip.tower.Windows(size, blocks); got {windows!r}. "
            "foveate.clip.dense.default_windows(clip.visual, size=...) gives the paper's."
        )
    if type(windows.size) is not int or not all(type(index) is int for index in windows.blocks):
        raise InputError(f"windows: need whole numbers; got {windows}.")
    if not 1 <= windows.size <= _LARGEST_WINDOW:
        raise InputError(f"windows: the side must be 1 to {_LARGEST_WINDOW} tokens; got {windows.size}.")
    if len(set(windows.blocks)) < len(windows.blocks):
        raise InputError(f"windows: need each block once; got {windows.blocks}.")
    strange = [index for index in windows.blocks if not 0 <= index < count]
    if strange:
        raise InputError(f"windows: blocks are counted 0 to {count - 1}; got {strange[0]}.")
    return windows


def default_windows(visual: nn.Module, *, size: int = 16) -> Windows:
    """The paper's windows: all blocks but the last of each quarter (B: all but 2, 5, 8, 11; L: all but 5, 11, 17, 23).

    Args:
        size: side of a window [tokens].
    """
    count = tower_of(visual).windowable
    whole = {-(-quarter * count // 4) - 1 for quarter in (1, 2, 3, 4)}  # rounded up where four do not divide
    blocks = tuple(index for index in range(count) if index not in whole)
    if not blocks and count:
        raise InputError(f"windows: this tower has {count} blocks, the last of each quarter whole; nothing is left.")
    return check_windows(visual, Windows(size, blocks))


def tower_sizes(visual: nn.Module, *, name: str) -> tuple[int, int, int]:
    """Read a tower's native image size [pixels], patch size [pixels] and embedding size, or refuse the tower.

    Args:
        visual: any image tower of open_clip.
        name: the model's, for the message.

    Raises:
        InputError: dense embeddings are not defined for this tower here; says why and what to use.
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


def takes_mixed_sizes(visual: nn.Module) -> bool:
    """Whether one batch may hold images of several sizes, see `ImageTower`."""
    return tower_of(visual).takes_mixed_sizes


def _refused(name: str, reason: str) -> InputError:
    return InputError(
        f"{name}: this tower is not supported: {reason}. Use an OpenAI or open_clip ViT (ViT-B-16, ViT-L-14, ...), "
        "EVA-02 (EVA02-B-16, EVA02-L-14, EVA02-L-14-336), SigLIP (ViT-B-16-SigLIP, ViT-B-16-SigLIP2, ...) or a "
        "residual network (RN50, RN101, RN50x4, RN50x16, RN50x64)."
    )
