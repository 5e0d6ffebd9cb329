"""What is said of a proposal: an embedding to compare with texts, a better box, a mask; and their losses (A.3).

    RoIAlign 7 -> 4 convs with BatchNorm -> 2 shared layers of D -> class layer: embedding | box layer -> 4 numbers
    RoIAlign 14 -> 4 convs, with BatchNorm in the published detectors of OV-LVIS -> up 2x -> 28 x 28

Box and mask know no class. The embedding ends with a ReLU, as in the published detectors. The classes are texts: logits
are cosines times a learned temperature; the last text is "background". Columns of classes that must not be learned from
are -inf in training. Assignment is mmdet's, as in the first stage; sampling and box codes are torchvision's.
Deliberately absent: a mask head with BatchNorm in a process without positives (`foveate.heads.fvit.detector`).
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
SHORTEST = 1e-6  # embeddings below this length are no direction


class BoxHead(nn.Module):
    """Pooled features to an embedding and a correction of the box."""

    def __init__(self, channels: int, *, width: int, embed_dim: int, relu_embedding: bool = True) -> None:
        """Make the layers.

        Args:
            channels: of the pyramid.
            width: of the convolutions.
            embed_dim: D, also of the shared layers.
            relu_embedding: end the class layer with a ReLU, as the published detectors do; without it an embedding
                can point anywhere, as text embeddings do.
        """
        super().__init__()
        sizes = (channels, *(width,) * 4)
        self.convs = nn.Sequential(*(Conv2dNormActivation(a, b) for a, b in pairwise(sizes)))
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
        for module in self.convs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(codes.weight, std=0.001)
        nn.init.zeros_(codes.bias)

    def forward(self, pooled: Float[Tensor, "R C 7 7"]) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R 4"]]:
        """Embeddings, not normalised, and box codes."""
        shared = self.shared(self.convs(pooled))  # (R, D)
        embeddings = self.embed(shared)  # (R, D)
        embeddings = embeddings.relu() if self.relu_embedding else embeddings
        return embeddings.float(), self.box(shared).float()


class MaskHead(nn.Module):
    """Pooled features to a mask of whatever the box holds."""

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
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not self.out:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pooled: Float[Tensor, "R C 14 14"]) -> Float[Tensor, "R 28 28"]:
        """Logits."""
        return self.out(self.up(self.convs(pooled)))[:, 0].float()


class RoiSampler:
    """Which proposals a picture's second stage learns from, and what they are."""

    def __init__(
        self, *, samples: int = 512, positive_share: float = 0.25, iou: float = 0.5, match_low_quality: bool = False
    ) -> None:
        """Remember the numbers.

        Args:
            samples: proposals a picture.
            positive_share: of them, at most.
            iou: with an object from which on a proposal is one.
            match_low_quality: let each object have its best proposal (of at least `iou`), even one that overlaps
                another object more; published for OV-LVIS.
        """
        self.matching = {"positive": iou, "negative": iou, "best_from": iou if match_low_quality else None}
        self.sample = BalancedPositiveNegativeSampler(samples, positive_share)

    def __call__(
        self,
        proposals: Float[Tensor, "P 4"],
        boxes: Float[Tensor, "N 4"],
        labels: Int64[Tensor, " N"],
        crowds: Float[Tensor, "M 4"],
        *,
        background: int,
    ) -> tuple[Float[Tensor, "S 4"], Int64[Tensor, " S"], Int64[Tensor, " S"]]:
        """Draw from a picture's proposals and its objects, from torch's global stream.

        Args:
            proposals: xyxy, pixels of the input, not empty.
            boxes: of the objects; likewise.
            labels: of the objects.
            crowds: xyxy; background mostly inside one of these is not drawn.
            background: label of what is no object.

        Returns:
            The boxes drawn, their labels, and the object each one is (0 for background).
        """
        all_boxes = torch.cat([boxes, proposals])  # (N + P, 4)
        own = torch.arange(len(boxes), device=boxes.device)  # (N,), an object stands for itself
        found = own.new_full((len(proposals),), BACKGROUND)
        if len(boxes):
            found = match_boxes(box_iou(boxes, proposals), **self.matching)  # (P,)
        matched = torch.cat([own, found])  # (N + P,)
        kinds = ignore_crowds((matched >= 0).long(), all_boxes, crowds)
        positive, negative = self.sample([kinds])
        drawn = torch.cat([positive[0].nonzero()[:, 0], negative[0].nonzero()[:, 0]])  # (S,)
        of = matched[drawn]
        known = torch.cat([labels, labels.new_full((1,), background)])  # (N + 1,), the last for those of -1
        place = torch.where(of >= 0, of, len(labels))
        return all_boxes[drawn], known[place], of.clamp(min=0)


def unit(embeddings: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
    """Bring embeddings to length 1; one without direction stays zero, and has a gradient of zero."""
    length = embeddings.float().norm(dim=1, keepdim=True)  # (R, 1)
    return torch.where(length > SHORTEST, embeddings.float() / length.clamp(min=SHORTEST), 0.0)


def class_logits(
    embeddings: Float[Tensor, "R D"], text: Float[Tensor, "V D"], *, scale: Float[Tensor, ""]
) -> Float[Tensor, "R V"]:
    """Cosines with the texts, times the temperature, in float32.

    Args:
        embeddings: of any length.
        text: of length 1, the background's last.
        scale: T.
    """
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
        is_novel: columns that take no part.
        background_weight: of proposals that are background; the others have 1.
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
    """L1 of the box codes of objects, over the number of all proposals.

    Args:
        codes: predicted.
        rois: xyxy, where they start from.
        targets: xyxy of the object of each.
        is_object: the others say nothing.
    """
    wanted = BoxCoder(BOX_WEIGHTS).encode_single(targets[is_object], rois[is_object])
    return F.l1_loss(codes[is_object], wanted, reduction="sum") / max(len(codes), 1)


def mask_targets(
    masks: Bool[Tensor, "N H W"], rois: Float[Tensor, "R 4"], which: Int64[Tensor, " R"]
) -> Bool[Tensor, "R 28 28"]:
    """Cut each proposal's part out of its object's mask.

    Args:
        masks: of the input.
        rois: xyxy, pixels of the input.
        which: the mask of each.
    """
    used, place = which.unique(return_inverse=True)
    numbered = torch.cat([place[:, None].to(rois.dtype), rois], dim=1)  # (R, 5)
    with torch.autocast(rois.device.type, enabled=False):
        cut = roi_align(masks[used][:, None].float(), numbered, MASK_OUT, 1.0, sampling_ratio=-1, aligned=True)
    return cut[:, 0] >= 0.5


def decode_boxes(codes: Float[Tensor, "R 4"], rois: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
    """The inverse of what `box_loss` encodes: xyxy, pixels of the input."""
    return BoxCoder(BOX_WEIGHTS).decode_single(codes, rois)
