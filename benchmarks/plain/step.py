"""One training step, plainly: teacher on all crops, student on padded squares, loss, backward, AdamW."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from plain.towers import blocks_of, dense


class PlainStep:
    """Two towers and an optimizer; a step takes what the plain loader's collate gives."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        patch: int,
        lr: float = 1e-5,
        weight_decay: float = 0.1,
        bfloat16: bool = False,
    ) -> None:
        """Freeze all but the student's blocks; norms, biases and other vectors are not decayed."""
        student.requires_grad_(False)
        teacher.requires_grad_(False)
        for block in blocks_of(student):
            block.requires_grad_(True)
        self.student, self.teacher, self.patch, self.bfloat16 = student, teacher.eval(), patch, bfloat16
        self.device = next(student.parameters()).device
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
            {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, foreach=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=bfloat16 and self.device.type == "cuda")

    def step(self, images: Tensor, boxes: Tensor, crops: Tensor) -> Tensor:
        """Everything of a step but the loading."""
        images, boxes, crops = images.to(self.device), boxes.to(self.device), crops.to(self.device)
        loss = self.loss(images, *self.valid(boxes, crops))
        self.update(loss)
        return loss.detach()

    def valid(self, boxes: Tensor, crops: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pick what is no padding: one (N, 4) an image, and all crops in one tensor."""
        chosen = [some[:, 4] > 0.5 for some in boxes]
        kept = [some[mask, :4] for some, mask in zip(boxes, chosen, strict=True)]
        return kept, torch.cat([some[mask] for some, mask in zip(crops, chosen, strict=True)])

    def loss(self, images: Tensor, boxes: list[Tensor], crops: Tensor) -> Tensor:
        """1 - mean cosine over all regions of the batch."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            targets = self.targets(crops)
            return 1 - F.cosine_similarity(self.regions(images, boxes), targets, dim=1).mean()

    @torch.no_grad()
    def targets(self, crops: Tensor) -> Tensor:
        """The teacher's image embeddings, by the library's own forward."""
        return F.normalize(self.teacher(crops).float(), dim=1)

    def regions(self, images: Tensor, boxes: list[Tensor]) -> Tensor:
        """The student's map, normalised and averaged inside the boxes of each image."""
        maps = F.normalize(dense(self.student, images).float(), dim=1)
        return torch.cat([pool_boxes(maps[i], some, self.patch) for i, some in enumerate(boxes)])

    def update(self, loss: Tensor) -> None:
        """Backward and AdamW."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def pool_boxes(dense_map: Tensor, boxes: Tensor, patch: int) -> Tensor:
    """RoIAlign 1 x 1 of one image, (D, h, w) and (N, 4) -> (N, D), normalised."""
    pooled = roi_align(dense_map[None], [boxes], 1, spatial_scale=1 / patch, sampling_ratio=-1, aligned=True)
    return F.normalize(pooled[:, :, 0, 0], dim=1)


def pool_masks(dense_map: Tensor, masks: Tensor) -> Tensor:
    """Mean inside each mask, the map repeated for each: (D, h, w) and (N, h, w) -> (N, D), normalised."""
    repeated = dense_map[None].repeat(len(masks), 1, 1, 1)  # (N, D, h, w)
    weights = masks[:, None].float()
    total = (repeated * weights).flatten(2).sum(dim=2)
    return F.normalize(total / weights.flatten(2).sum(dim=2).clamp(min=1), dim=1)
