"""The one place where a tower's family decides: which forward computes its image and its dense embeddings (Sec. 3.1),
and which of its parameters that takes.

A new CLIP family is one file beside this one and one `case` in each `match` below. Residual networks and SigLIP are
refused with the reason until they have theirs.
"""

from typing import Any, Literal, get_args

from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from torch import Tensor, nn

from saccade.clip import eva, vit
from saccade.types import InputError

Head = Literal["value", "value_only", "attention"]


def class_embedding(visual: nn.Module, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """Embed whole images as CLIP does, at any size (the teacher; Sec. 3.2).

    Args:
        visual: an image tower `tower_sizes` accepts.
        images: normalised; H and W multiples of the patch size.

    Returns:
        One embedding an image, not normalised.
    """
    match visual:
        case VisionTransformer():
            return vit.embed_class(visual, images)
        case TimmModel(trunk=Eva()):
            return eva.embed_class(visual, images)
    raise _unknown(visual)


def dense_tokens(visual: nn.Module, images: Float[Tensor, "B 3 H W"], *, head: str) -> Float[Tensor, "B L D"]:
    """Embed every patch of the images (Sec. 3.1).

    Args:
        visual: an image tower `tower_sizes` accepts.
        images: normalised; H and W multiples of the patch size.
        head: one of `Head`, what becomes of the last block. "value" (the paper): its self-attention is replaced by its
            value and output projections, residuals and MLP stay. "value_only": those projections alone, without
            residuals and MLP. "attention": the block as it is.

    Returns:
        Patch embeddings row by row, L = H / P * W / P, not normalised.

    Raises:
        InputError: another head.
    """
    if head not in get_args(Head):
        raise InputError(f"head: must be one of {', '.join(get_args(Head))}; got {head!r}.")
    match visual:
        case VisionTransformer():
            return vit.embed_patches(visual, images, head=head)
        case TimmModel(trunk=Eva()):
            return eva.embed_patches(visual, images, head=head)
    raise _unknown(visual)


def tower_blocks(visual: nn.Module) -> list[nn.Module]:
    """The transformer blocks of an image tower, first to last.

    Args:
        visual: an image tower `tower_sizes` accepts.
    """
    match visual:
        case VisionTransformer():
            return [*vit.blocks(visual)]
        case TimmModel(trunk=Eva()):
            return eva.blocks(visual)
    raise _unknown(visual)


def last_block_use(visual: nn.Module, *, head: Head) -> tuple[list[nn.Parameter], list[tuple[nn.Parameter, slice]]]:
    """Which parameters of the last block the dense embedding does without (Sec. 3.1); they have nothing to learn.

    Args:
        visual: an image tower `tower_sizes` accepts.
        head: as in `dense_tokens`.

    Returns:
        The parameters that are not used at all; and the matrices of which only some rows are used (values in a fused
        query-key-value projection), with those rows.
    """
    match visual:
        case VisionTransformer():
            return vit.last_block_use(visual, head=head)
        case TimmModel(trunk=Eva()):
            return eva.last_block_use(visual, head=head)
    raise _unknown(visual)


def tower_sizes(visual: nn.Module, *, name: str) -> tuple[int, int, int]:
    """Read a tower's native image size [pixels], patch size [pixels] and embedding size, or refuse the tower.

    Args:
        visual: any image tower of open_clip.
        name: the model's, for the message.

    Raises:
        InputError: dense embeddings are not defined for this tower here; says why and what to use.
    """
    image: Any  # (height, width); the libraries' types do not say so
    patch: Any
    match visual:
        case VisionTransformer():
            reason = vit.refusal(visual)
            image, patch, embed_dim = visual.image_size, visual.patch_size, visual.output_dim
        case TimmModel(trunk=Eva() as trunk):
            reason = eva.refusal(trunk)
            image, patch, embed_dim = trunk.patch_embed.img_size, trunk.patch_embed.patch_size, trunk.num_classes
        case ModifiedResNet():
            raise _refused(name, "residual networks have no class token and need a dense head of their own")
        case TimmModel(trunk=trunk):
            kind = type(trunk).__name__  # SigLIP towers come as timm's VisionTransformer
            raise _refused(name, f"there is no dense head yet for timm's {kind}, which SigLIP and others use")
        case _:
            raise _refused(name, f"there is no dense head yet for a {type(visual).__name__}")
    if reason is None and (image[0] != image[1] or patch[0] != patch[1]):
        reason = f"its native image size {tuple(image)} or patch size {tuple(patch)} is not square"
    if reason is not None:
        raise _refused(name, reason)
    return image[0], patch[0], embed_dim


def _unknown(visual: nn.Module) -> AssertionError:
    return AssertionError(f"tower of type {type(visual).__name__} was not refused when it was loaded")


def _refused(name: str, reason: str) -> InputError:
    return InputError(
        f"{name}: this tower is not supported: {reason}. "
        "Use an OpenAI or open_clip ViT (ViT-B-16, ViT-L-14, ...) or EVA-02 (EVA02-B-16, EVA02-L-14, EVA02-L-14-336)."
    )
