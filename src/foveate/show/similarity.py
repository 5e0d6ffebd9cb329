"""Similarity maps: cosine of the dense map with a text, before and after side by side (Sec. 1, Fig. 1).

All panels of a row share the scale that is drawn beside them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from foveate.clip.model import Clip
from foveate.clip.names import Head, TemplateName
from foveate.clip.text import embed_vocabulary
from foveate.ops.resample import fitted_size
from foveate.show.charts import write_figure
from foveate.show.maps import dense_map, extent_of, new_sheet
from foveate.show.palette import INK, QUIET

MAP = "inferno"  # uniform in lightness, readable in grey and by the colour-blind


@torch.inference_mode()
def similarity_map(
    clip: Clip,
    image: UInt8[Tensor, "3 H W"],
    text: str,
    *,
    size: int,
    head: Head = "value",
    templates: TemplateName = "none",
) -> Float[Tensor, "rows columns"]:
    """Cosine in [-1, 1] of a text with each pixel of the image resized to `size`, interpolated between locations.

    Args:
        size: side of the padded square input [pixels].
        templates: "none" embeds the text without a prompt; "vild" and "clip" are for class names.
    """
    dense = dense_map(clip, image, size=size, head=head)  # (D, h, w)
    embedding = embed_vocabulary(clip, [text], templates=templates).cpu()  # (1, D)
    cosine = torch.einsum("kd,dhw->khw", embedding, dense)  # (1, h, w)
    smooth = F.interpolate(cosine[None], scale_factor=clip.patch_size, mode="bilinear", align_corners=False)
    height, width = fitted_size(image.shape[1], image.shape[2], size=size)
    return smooth[0, 0, :height, :width]  # (1, 1, h * P, w * P) -> (rows, columns)


def similarity_sheet(
    path: Path,
    rows: list[tuple[str, UInt8[Tensor, "3 _ _"]]],
    *,
    models: list[tuple[str, Clip]],
    size: int,
    head: Head = "value",
    templates: TemplateName = "none",
) -> None:
    """Draw the similarity of each image to its text under several models as one PNG.

    Args:
        rows: a text and RGB, one row each.
        models: a heading and a model, one column each.
    """
    note = f"Cosine of the text at the left with each location; input {size} px, head {head}. One scale per row."
    figure, panels = new_sheet(rows, headings=[heading for heading, _ in models], size=size, note=note, scale=0.75)
    for (text, image), axes in zip(rows, panels, strict=True):
        maps = [similarity_map(clip, image, text, size=size, head=head, templates=templates) for _, clip in models]
        low, high = min(cosine.min().item() for cosine in maps), max(cosine.max().item() for cosine in maps)
        for panel, cosine in zip(axes, maps, strict=True):
            extent = extent_of(cosine, patch=1)
            drawn = panel.imshow(cosine.numpy(), cmap=MAP, vmin=low, vmax=high, alpha=0.8, extent=extent)
        bar = figure.colorbar(drawn, cax=axes[-1].inset_axes((1.04, 0.0, 0.05, 1.0)))
        bar.set_label("cosine", fontsize=7, color=QUIET)
        bar.set_ticks([low, (low + high) / 2, high], labels=[f"{value:.2f}" for value in (low, (low + high) / 2, high)])
        bar.ax.tick_params(labelsize=6.5, colors=INK, length=2)
        bar.outline.set_visible(False)
    write_figure(figure, path, made_by="foveate show similarity")
