"""F-ViT's second stage: embedding, box and mask of a proposal, and their losses (A.3).

    RoIAlign 7 -> 4 convs with BatchNorm -> 2 shared layers of D -> class layer: embedding | box layer -> 4 codes
    RoIAlign 14 -> 4 convs, with BatchNorm in the published detectors of OV-LVIS -> up 2x -> 28 x 28

Box and mask are class-agnostic. The embedding ends with a ReLU, as in the published detectors. Logits are cosines with
text embeddings times a learned temperature; the last text is "background". Columns of novel classes are -inf in
training. Assignment is mmdet's, as in the first stage; sampling and box codes are torchvision's.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.ops import Conv2dNormActivation, box_iou, roi_align

from foveate.heads.common.rpn import ignore_crowds
from foveate.heads.fvit.match import BACKGROUND, match_boxes

BOX_SIDE, MASK_SIDE, MASK_OUT = 7, 14, 28
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ROI_IOU = 0.5  # least IoU of a positive proposal with its object
POSITIVE_FRACTION = 0.25  # of the drawn proposals, at most
MIN_LENGTH = 1e-6  # embeddings below this length have no direction


class BoxHead(nn.Module):
    """Pooled features to an embedding and a correction of the box."""

    def __init__(self, channels: int, *, width: int, embed_dim: int, relu_embedding: bool = True) -> None:
        """Make the layers.

        Args:
            channels: of the pyramid.
            width: of the convolutions.
            embed_dim: D, also of the shared layers.
            relu_embedding: end the class layer with a ReLU, as the published detectors do. Text embeddings have
                negative components.
        """
        super().__init__()
        self.convs = nn.Sequential(*(Conv2dNormActivation(a, b) for a, b in pairwise((channels, *(width,) * 4))))
        self.shared = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * BOX_SIDE**2, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
        )
        self.embed = nn.Linear(embed_dim, embed_dim)
        self.relu_embedding = relu_embedding
        codes = nn.Linear(embed_dim, 4)
        self.box = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), codes)
        _init_convolutions(self.convs)
        nn.init.normal_(codes.weight, std=0.001)
        nn.init.zeros_(codes.bias)

    def forward(self, pooled: Float[Tensor, "R C 7 7"]) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R 4"]]:
        """Embeddings, not normalised, and box codes."""
        shared = self.shared(self.convs(pooled))  # (R, D)
        embeddings = self.embed(shared)  # (R, D)
        embeddings = embeddings.relu() if self.relu_embedding else embeddings
        return embeddings.float(), self.box(shared).float()


class MaskHead(nn.Module):
    """Pooled features to a class-agnostic mask."""

    def __init__(self, channels: int, *, width: int, norm: bool = False) -> None:
        """Make the layers.

        Args:
            channels: of the pyramid.
            width: of the convolutions.
            norm: BatchNorm after each convolution, which then has no bias; published for OV-LVIS.
        """
        super().__init__()
        sizes, layer = (channels, *(width,) * 4), nn.BatchNorm2d if norm else None
        self.convs = nn.Sequential(*(Conv2dNormActivation(a, b, norm_layer=layer) for a, b in pairwise(sizes)))
        self.up = nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2), nn.ReLU())
        self.out = nn.Conv2d(width, 1, 1)
        _init_convolutions(self.convs)
        _init_convolutions(self.up)

    def forward(self, pooled: Float[Tensor, "R C 14 14"]) -> Float[Tensor, "R 28 28"]:
        """Logits."""
        return self.out(self.up(self.convs(pooled)))[:, 0].float()


def _init_convolutions(layers: nn.Module) -> None:
    for module in layers.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class RoiSampler:
    """Draws the proposals of an image that the second stage learns from, and assigns their targets."""

    def __init__(self, *, samples: int = 512, match_low_quality: bool = False) -> None:
        """Set the hyperparameters.

        Args:
            samples: proposals per image.
            match_low_quality: let each object have its best proposal (of at least `ROI_IOU`), even one that overlaps
                another object more; published for OV-LVIS.
        """
        best_from = ROI_IOU if match_low_quality else None
        self.matching = {"positive": ROI_IOU, "negative": ROI_IOU, "best_from": best_from}
        self.sample = BalancedPositiveNegativeSampler(samples, POSITIVE_FRACTION)

    def __call__(
        self,
        proposals: Float[Tensor, "P 4"],
        boxes: Float[Tensor, "N 4"],
        labels: Int64[Tensor, " N"],
        crowds: Float[Tensor, "M 4"],
        *,
        background: int,
    ) -> tuple[Float[Tensor, "S 4"], Int64[Tensor, " S"], Int64[Tensor, " S"]]:
        """Draw from an image's proposals and its objects, from torch's global stream.

        Args:
            proposals: xyxy, pixels of the input, not empty.
            boxes: of the objects; likewise, may be empty.
            labels: of the objects.
            crowds: xyxy; background mostly inside one of these is not drawn.
            background: its label.

        Returns:
            The boxes drawn, their labels, and the index of their object (0 for background).
        """
        # match: objects are candidates too, each matched with itself
        all_boxes = torch.cat([boxes, proposals])  # (N + P, 4)
        matched = torch.full((len(proposals),), BACKGROUND, device=boxes.device)
        if len(boxes):
            matched = match_boxes(box_iou(boxes, proposals), **self.matching)  # (P,)
        matched = torch.cat([torch.arange(len(boxes), device=boxes.device), matched])  # (N + P,)

        # draw
        kinds = ignore_crowds((matched >= 0).long(), all_boxes, crowds)
        positive, negative = self.sample([kinds])
        drawn = torch.cat([positive[0].nonzero()[:, 0], negative[0].nonzero()[:, 0]])  # (S,)

        # targets
        index = matched[drawn]  # (S,)
        all_labels = torch.cat([labels, labels.new_full((1,), background)])  # (N + 1,), the last for background
        return all_boxes[drawn], all_labels[torch.where(index >= 0, index, len(labels))], index.clamp(min=0)


def unit(embeddings: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
    """L2-normalise embeddings; one of length zero stays zero, with a gradient of zero."""
    length = embeddings.float().norm(dim=1, keepdim=True)  # (R, 1)
    return torch.where(length > MIN_LENGTH, embeddings.float() / length.clamp(min=MIN_LENGTH), 0.0)


def class_logits(
    embeddings: Float[Tensor, "R D"], text: Float[Tensor, "V D"], *, scale: Float[Tensor, ""]
) -> Float[Tensor, "R V"]:
    """Cosines with the text embeddings (L2-normalised, background last) times the temperature, in float32."""
    with torch.autocast(embeddings.device.type, enabled=False):
        return scale.float() * (unit(embeddings) @ text.float().T)


def class_loss(
    logits: Float[Tensor, "R V"],
    labels: Int64[Tensor, " R"],
    *,
    is_novel: Bool[Tensor, " K"],
    background_weight: float,
) -> Float[Tensor, ""]:
    """Cross-entropy over base classes and background, the mean over proposals.

    Args:
        logits: V = K + 1 columns.
        labels: K is background; never a novel class.
        is_novel: classes that are masked out.
        background_weight: of background proposals; the others have 1.
    """
    hidden = F.pad(is_novel, (0, 1), value=False)  # (V,)
    losses = F.cross_entropy(logits.masked_fill(hidden, -torch.inf), labels, reduction="none")  # (R,)
    weights = torch.where(labels == len(is_novel), background_weight, 1.0)
    return (losses * weights).sum() / max(len(labels), 1)


def box_loss(
    codes: Float[Tensor, "R 4"],
    rois: Float[Tensor, "R 4"],
    targets: Float[Tensor, "R 4"],
    is_object: Bool[Tensor, " R"],
) -> Float[Tensor, ""]:
    """L1 of the box codes of objects, over the number of all proposals; boxes are xyxy."""
    expected = BoxCoder(BOX_WEIGHTS).encode_single(targets[is_object], rois[is_object])
    return F.l1_loss(codes[is_object], expected, reduction="sum") / max(len(codes), 1)


def mask_targets(
    masks: Bool[Tensor, "N H W"], rois: Float[Tensor, "R 4"], index: Int64[Tensor, " R"]
) -> Bool[Tensor, "R 28 28"]:
    """Crop each proposal from the mask of its object.

    Args:
        masks: of the input.
        rois: xyxy, pixels of the input.
        index: the mask of each.
    """
    used, position = index.unique(return_inverse=True)
    numbered = torch.cat([position[:, None].to(rois.dtype), rois], dim=1)  # (R, 5)
    with torch.autocast(rois.device.type, enabled=False):
        crops = roi_align(masks[used][:, None].float(), numbered, MASK_OUT, 1.0, sampling_ratio=-1, aligned=True)
    return crops[:, 0] >= 0.5


def decode_boxes(codes: Float[Tensor, "R 4"], rois: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
    """The inverse of the encoding of `box_loss`: xyxy, pixels of the input."""
    return BoxCoder(BOX_WEIGHTS).decode_single(codes, rois)
