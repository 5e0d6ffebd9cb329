"""The flags of the six commands that train, as frozen dataclasses: names, defaults and help.

Nothing here imports torch, so that `--help` is instant. What must hold of the values is in `checks.py`, what stands in
for those that are not given in `defaults.py`. Deliberately absent: configuration files, nested groups.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.clip.names import Pad, StudentHead, TemplateName
from foveate.data.flags import AnnotationFlags, LabelMapFlags
from foveate.heads.catseg.names import Residual, Version
from foveate.heads.common.names import Length, PyramidKind
from foveate.heads.fvit.names import Resize, Statistics
from foveate.heads.panoptic.names import Templates

SMALL_CLIP = "foveate-small"  # the shipped small CLIP
CONV = "conv"  # --model of proposals without a CLIP
SMALL_CONFIG = Path(__file__).parent.parent / "clip" / "small" / "open_clip_config.json"
HELD_OUT = "val"  # split of a --validate root
Track = Literal["tensorboard", "wandb", "trackio", "none"]


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of every run that trains."""

    out: Path
    """Folder of this run; the same command resumes a stopped run. The trained model is written to OUT/model."""
    steps: int = 600
    """Optimizer steps."""
    batch: int = 8
    """Images per process and pass."""
    seed: int = 0
    """Seed of the initial weights, the data order and all other randomness."""
    log_every: int = 10
    """Steps between lines of OUT/metrics.jsonl."""
    save_every: int = 500
    """Steps between checkpoints."""
    validate: str | None = None
    """Held-out data, given like --data (split val, if it has splits): at every checkpoint the loss over a fixed set of
    64 of its images is measured, with fixed random draws. The checkpoint with the lowest loss is kept in addition to
    the newest ones."""
    product: Literal["last", "best"] = "last"
    """Which weights are written at the end: the last, or those with the lowest held-out loss."""
    skip_nonfinite: int = 0
    """Steps in a row with a non-finite loss or gradient that are skipped before the run stops; 0: stop at the first.
    Such a step never changes the weights; its images are in OUT/nonfinite.jsonl."""
    track: Track = "tensorboard"
    """Where metrics are logged in addition to OUT/metrics.jsonl: tensorboard, to OUT/tensorboard; wandb or trackio, to
    a run named after the folder OUT, with the configuration in OUT/config.json. Their packages must be installed and
    set up."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    compile: bool = False
    """Run the blocks of the CLIP's towers through torch.compile: faster on a GPU, after a minute of compiling."""
    dry_run: bool = False
    """Print the plan of the run (time, memory, files), measured on one batch, and stop."""
    allow_changed_data: bool = False
    """Resume although images were added, removed or renamed, or their annotations changed, since the run began: the
    order of the steps that are left is drawn over the new list, so that in the epoch under way some images may be seen
    twice and some not. Otherwise such a run is refused, with the names."""


@dataclass(frozen=True, kw_only=True)
class ReaderFlags(RunFlags):
    """Flags of every run that reads a data set through loader workers and starts from a CLIP."""

    model: str = SMALL_CLIP
    """The CLIP to start from: foveate-small, OUT/model of a distillation, or an open_clip architecture."""
    pretrained: str | None = None
    """Weights of an open_clip architecture: a file, or an open_clip tag such as laion2b_s34b_b88k."""
    split: str = "train"
    """Split of the data set to train on."""
    accumulate: int = 1
    """Batches per process and step, whose gradients are added up; BatchNorm sees one of them at a time."""
    workers: int = 1
    """Processes that decode images; 0 decodes in the training process."""
    strict: bool = False
    """Stop at the first image that cannot be used, instead of counting it."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(AnnotationFlags, ReaderFlags):
    """Distil a CLIP into itself, so that its dense features match its image crops (CLIPSelf)."""

    data: str
    """Training images (no annotations needed): any folder of images; a COCO, LVIS, VOC or Objects365 root, or what
    CVAT, FiftyOne, Roboflow or YOLO export; tar shards as a folder, as "shards-{00000..00331}.tar", or as a URL of
    that form (cached in $FOVEATE_CACHE/shards)."""
    model: str = SMALL_CLIP
    """The CLIP to distil: foveate-small, an open_clip architecture such as EVA02-B-16, or a saved model folder."""
    split: str = "train"
    """Which part of an annotated root: train, val or test, and for VOC also trainval."""
    annotations: Path | None = None
    """Annotation file to read instead of the standard one: COCO, LVIS or Objects365 JSON."""
    steps: int = 1000
    """Optimizer steps. The paper: 6 epochs of COCO."""
    batch: int = 4
    """Images per process and step (and pass, with --accumulate). The paper: 2 on each of 8 GPUs."""
    accumulate: int = 1
    """Batches per process and step, whose gradients are added up: batch 4 is batch 2 accumulated twice."""
    lr: float | None = None
    """Peak learning rate; default: the paper's 1e-5, and 1e-3 for foveate-small."""
    weight_decay: float | None = None
    """AdamW's weight decay of matrices (norms, biases and other vectors have none); default: the paper's 0.1,
    and 0.05 for foveate-small."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas. The paper for OpenAI weights: 0.9 0.98."""
    eps: float = 1e-8
    """AdamW's epsilon. The paper for OpenAI weights: 1e-6."""
    warmup: int | None = None
    """Steps of linear warm-up before the cosine to zero; default: a tenth of the steps but at most the paper's
    1000, and 20 for foveate-small."""
    layers: int | None = None
    """Train only the last N transformer blocks; default: all."""
    objective: Literal["clipself", "region-text", "image-text"] = "clipself"
    """Training objective: clipself distils the teacher's embeddings of crops. The baselines learn from text:
    region-text, the noun that the teacher assigns to each crop (A.4); image-text, each image's caption (Tab. 1, row
    5)."""
    captions: Path | None = None
    """Captions for the two baselines: JSON in COCO's format or {"file name": ["caption", ...]}; default: those of the
    data set, annotations/captions_SPLIT2017.json of a COCO root or KEY.txt beside KEY.jpg in tar shards. region-text
    also accepts a list of nouns: .txt, one per line, or a JSON list. Nouns that occur fewer than 5 times in the
    captions are ignored; the others are written to OUT/nouns.json, with their counts."""
    regions: str = "grid"
    """Regions to distil: grid, the cells of random patch grids; annotations, the annotated boxes; or a JSON FILE of
    boxes (region proposals): COCO annotations, a COCO results list, or {"file name": [[x1, y1, x2, y2], ...]}, in
    pixels."""
    grid: int = 6
    """Maximum number of rows and columns of a patch grid (the paper's M)."""
    grid_rule: Literal["published", "all"] = "published"
    """Grid sizes to sample from: the published code's 24 (for M = 6), or all 36 as in the paper's text."""
    max_regions: int = 20
    """Maximum number of regions per image and step."""
    size: int | None = None
    """Longest side of the student's input [pixels]; default: the paper's 64 patches and at most 1024 (1024 for B/16,
    896 for L/14), and 192 for foveate-small."""
    pad: Pad = "black"
    """Padding of the student's input: black before colour normalisation (published code) or zeros after it (the paper's
    text). Stored with the model, so that evaluation pads the same way."""
    head: StudentHead = "value"
    """How the last block makes the dense map; value is the paper's. gated is values3 with a learned factor per
    attention head, saved with the model; evaluate such a model with --head values3."""
    window: int | None = None
    """Side of the student's attention windows [patches], in all blocks but the last of each quarter. The paper: 16
    (Sec. 4.4). Default: global attention."""
    keep: float = 0.0
    """Weight of a loss term that keeps the student's image embedding of a crop close to the teacher's, so that
    whole-image accuracy is retained; 0: off."""
    correlation: float = 0.0
    """Weight of a loss term that preserves the similarities between locations of the teacher's dense map (made with
    the naclip head, at temperature 0.1); 0: off."""
    alpha: float = 1.0
    """Weight interpolation of the saved model: alpha * student + (1 - alpha) * teacher. The paper: 0.7 for B/16, 0.95
    for L/14; 1: off."""
    save_every: int = 200
    """Steps between checkpoints."""
    validate: str | None = None
    """Held-out images, given like --data (split val, if it has splits): at every checkpoint the loss over a fixed set
    of 64 of them is measured, and the checkpoint with the lowest loss is kept in addition to the newest ones. If boxes
    are distilled, its annotated boxes are used."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the towers; bfloat16 is several times faster on a recent GPU and slower on most CPUs. The trained
    weights stay float32."""
    tokens: Literal["all", "valid"] = "all"
    """Which tokens of the padded square the student computes: all (the paper), or only the valid ones that contain part
    of the image, which is faster but not exactly the paper's method, since no token attends to padding."""
    checkpointing: bool = False
    """Activation checkpointing: store only the input of each of the student's blocks and recompute the rest in the
    backward pass; far less memory, about a third more time."""
    fsdp: bool = False
    """Shard the student's weights over the processes (FSDP2): for towers as large as ViT-H/14."""
    recipe: str | None = None
    """Use the flags that `foveate recipes` lists under this name as defaults; explicit flags override them."""


@dataclass(frozen=True, kw_only=True)
class HeadFlags(ReaderFlags):
    """Flags of the three heads that are trained on a CLIP."""

    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}. Default: annotations/splits.json of the root, OV-COCO's split for
    COCO, rare = novel for LVIS; otherwise all categories are base."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.1
    """AdamW's weight decay of matrices."""
    clip_gradient: float | None = 1.0
    """Maximum norm of the gradient."""
    warmup: int = 0
    """Steps of linear warm-up."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic; weights stay float32."""
    workers: int = 2
    """Processes that decode images; 0 decodes in the training process."""


@dataclass(frozen=True, kw_only=True)
class TrainFViT(AnnotationFlags, HeadFlags):
    """Train F-ViT, an open-vocabulary detector on a frozen CLIP ViT (Sec. 3.3), on base categories only."""

    data: Path
    """COCO, LVIS, VOC, Objects365, CVAT, FiftyOne, Roboflow or YOLO root with annotated boxes, or a world."""
    annotations: Path | None = None
    """Annotation file to read instead of the standard one: COCO, LVIS or Objects365 JSON."""
    recipe: str | None = None
    """Use the flags of this row of `foveate recipes fvit` as defaults; explicit flags override them."""
    steps: int = 600
    """Optimizer steps. The paper: 3 epochs of OV-COCO, 48 of OV-LVIS, 64 images per step."""
    lr: float = 1e-4
    """Learning rate of AdamW after the warm-up."""
    weight_decay: float = 0.1
    """AdamW's weight decay of all tensors, vectors too, as published."""
    warmup: int = 250
    """Steps of linear warm-up."""
    milestones: tuple[int, ...] = ()
    """Steps at which the learning rate is divided by 10; none: constant, as on OV-COCO."""
    size: int | None = None
    """Side of the square input [pixels], a multiple of two patches; default: 640 for patch size 16, 896 for 14,
    192 for foveate-small."""
    augment: bool = True
    """Random horizontal flips and large-scale jitter."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest factor of the large-scale jitter; 1 1: none."""
    cache: bool = False
    """Cache the frozen tower's feature maps in OUT/maps; needs --no-augment."""
    masks: bool = False
    """Also train a mask head; needs annotations with polygons (COCO, LVIS)."""
    lvis_heads: bool = False
    """Heads as published for OV-LVIS: BatchNorm in the convolutions of the RPN and of the mask head, and low-quality
    matches: each object is assigned its best proposal, even if that overlaps another object more."""
    relu_embedding: bool = True
    """Apply a ReLU to the class embeddings of proposals, as published."""
    statistics: Statistics = "imagenet"
    """Normalise images with ImageNet's mean and standard deviation, as published, or with the CLIP's."""
    resize: Resize = "bilinear"
    """Resize images bilinearly without antialiasing (as cv2), as published, or bicubically with antialiasing."""
    background_weight: float | None = None
    """Weight of the background in the class loss; default: 0.9 for LVIS, 0.6 otherwise."""
    pyramid: PyramidKind = "taps"
    """Feature pyramid (Tab. A6): four taps of the tower (the paper's); simple: ViTDet's, from the last block; fpn: the
    last block with a top-down path."""
    taps: tuple[int, ...] = ()
    """Blocks that feed the pyramid, from 0, before the last one; default: 3 5 7 of 12 and 6 10 14 of 24 blocks."""
    layers: int = 0
    """Also train the last N blocks of the tower; the paper freezes all."""
    layer_decay: float = 0.7
    """With --layers: the learning rate of each block, as a factor of the next block's."""
    channels: int | None = None
    """Width of the pyramid and of the heads; default: 256, and 64 for foveate-small."""
    templates: TemplateName = "vild"
    """Prompts for class names: ViLD's 63 templates, CLIP's 80 for ImageNet, or none."""
    benchmark: Literal["ov-coco", "ov-lvis-b", "ov-lvis-l"] | None = None
    """Benchmark whose score fusion the detector uses at inference; default: OV-LVIS's for LVIS, OV-COCO's
    otherwise."""


@dataclass(frozen=True, kw_only=True)
class TrainCatSeg(LabelMapFlags, HeadFlags):
    """Train CAT-Seg (Cho et al., CVPR 2024): semantic segmentation by aggregating the cosines of a CLIP's dense map.

    Classes that the split lists as novel are not trained on; any vocabulary can be used at inference.
    """

    recipe: str | None = None
    """Use the flags of this row of `foveate recipes catseg` as defaults; explicit flags override them."""
    steps: int = 600
    """Optimizer steps. CAT-Seg: 80,000 of 4 images."""
    batch: int = 4
    """Images per process and pass."""
    lr: float | None = None
    """Learning rate of AdamW, which falls to 0 in a cosine; default: 2e-4, and 1e-3 for foveate-small."""
    clip_lr: float = 0.01
    """Learning rate of the CLIP's attention, which is trained too, as a fraction of --lr."""
    weight_decay: float = 1e-4
    """AdamW's weight decay of matrices."""
    clip_gradient: float = 0.01
    """Maximum norm of the gradient."""
    version: Version = "2024"
    """2024: one prompt per class, guidance features from the CLIP; 2023 (the paper's): 80 prompts per class, guidance
    features from an ImageNet backbone."""
    residual: Residual | None = None
    """What the values of the last block are added to: token, each token, as in CLIPSelf's dense map; cls, the class
    token. Default: as in CAT-Seg's code: cls for version 2024, token for 2023."""
    backbone: str | None = None
    """With --version 2023: timm backbone of the guidance features; resnet101 with a ViT-B,
    swin_base_patch4_window12_384 with a ViT-L."""
    backbone_weights: str | None = None
    """Weights of the backbone: a file in timm's layout, or none for random weights (for tests); default: timm's
    pretrained weights, from its cache or downloaded."""
    size: int | None = None
    """Side of a training crop, and of a window at test time [pixels]; default: 384, and 96 for foveate-small. The
    CLIP's input scales with it (24 patches for 384 pixels); at test time images are resized to a square of 5/3 of
    it."""
    channels: int | None = None
    """Channels per class; default: 128, and 32 for foveate-small."""
    depth: int = 2
    """Number of aggregation layers, each over space and then over classes."""
    augment: bool = True
    """Random crops, flips and colour jitter; otherwise whole images are resized to a square."""


@dataclass(frozen=True, kw_only=True)
class TrainPanoptic(AnnotationFlags, HeadFlags):
    """Train a mask generator like ODISE's (Tab. 5): Mask2Former's decoder on a frozen encoder.

    It learns from the segments of base classes only, things and stuff.

    The encoder is the tower of the CLIP, or a Mask2Former or a Stable Diffusion in a folder (--encoder). With
    --class-names it also learns which base class a mask is, from text embeddings, so that any vocabulary can be
    queried; with --no-class-names it is class-agnostic, and only CLIP classifies. The decoder has ODISE's dimensions,
    and smaller ones for foveate-small. ODISE trains for 92,188 steps of 64 COCO images, with a tenth of the learning
    rate from step 81,945 and a hundredth from step 88,773. On 100 images of the world, foveate-small needs --batch 2
    --steps 800 --milestones 680 --warmup 20, six minutes on one core; this finds stuff and a third of the things.
    """

    data: Path
    """COCO root with panoptic annotations, or a world."""
    recipe: str | None = None
    """Use the flags of this row of `foveate recipes panoptic` as defaults; explicit flags override them."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; stuff that it does not name is base. Default:
    annotations/splits.json of the root; otherwise all classes are base, as ODISE's 133 of COCO."""
    class_names: bool = True
    """Also learn to classify masks by class name (ODISE's label model); otherwise masks are class-agnostic."""
    labels: Path | None = None
    """File of the names of each class, `id:name,synonym` per line, as in OpenSeg, by the data set's ids or in their
    order; default: the names of the annotation file."""
    templates: Templates = "photo"
    """Prompts for class names: ODISE's one template, ViLD's 63, CLIP's 80 for ImageNet, or none."""
    embeddings: Length = "raw"
    """Text embeddings of the class head: raw, as the text tower returns them (ODISE), or unit, L2-normalised."""
    encoder: Path | None = None
    """A transformers Mask2Former folder, whose decoder is then fine-tuned, or a diffusers Stable Diffusion folder
    (ODISE's); default: the CLIP's image tower."""
    weight_decay: float = 0.05
    """AdamW's weight decay of matrices."""
    lr: float | None = None
    """Learning rate of AdamW after the warm-up; default: 1e-4, and 4e-4 for foveate-small."""
    clip_gradient: float | None = None
    """Maximum norm of the gradient; default: 0.01, and 10 for foveate-small."""
    milestones: tuple[int, ...] = ()
    """Steps at which the learning rate is divided by 10; none: constant."""
    size: int | None = None
    """Side of the square input [pixels], a multiple of two patches of the CLIP, of 32 for a Mask2Former's encoder, of
    64 for Stable Diffusion; default: 1024 or the next smaller multiple, and 128 for foveate-small."""
    augment: bool = True
    """Random horizontal flips and large-scale jitter."""
    jitter: tuple[float, float] | None = None
    """Smallest and largest factor of the large-scale jitter; 1 1: none. Default: 0.1 2, and 1 1 for
    foveate-small."""
    pyramid: PyramidKind = "taps"
    """Feature pyramid on the CLIP's tower (Tab. A6): four taps; simple: from the last block; fpn: likewise with a
    top-down path."""
    taps: tuple[int, ...] = ()
    """Blocks of the CLIP that feed the pyramid, from 0, before the last one; default: 3 5 7 of 12, 6 10 14 of 24."""
    channels: int | None = None
    """Width of the encoder's maps; default: 256, 512 for Stable Diffusion, 64 for foveate-small."""
    queries: int | None = None
    """Masks per image; default: 100, and 30 for foveate-small."""
    depth: int | None = None
    """Layers of the decoder; default: 9, and 2 for foveate-small."""


@dataclass(frozen=True, kw_only=True)
class Proposals(AnnotationFlags, ReaderFlags):
    """Train an RPN on base categories only and generate region proposals for `foveate distill --regions FILE`.

    Runs in one process: it takes minutes, and the proposals are written to one file in the order of the images.
    """

    data: Path
    """Training data: COCO, LVIS, VOC, Objects365, CVAT, FiftyOne, Roboflow or YOLO root with annotated boxes, or a
    world."""
    out: Path
    """Folder of this run; the same command resumes a stopped run. The proposals are written to
    OUT/proposals_SPLIT.json."""
    model: str = SMALL_CLIP
    """The CLIP whose frozen features are used: foveate-small, an open_clip architecture such as EVA02-B-16, or a
    saved model folder. Or conv, a small convolutional network that is trained with the rest."""
    split: str = "train"
    """Split that is trained on and that proposals are generated for."""
    annotations: Path | None = None
    """Annotation file to read instead of the standard one: COCO, LVIS or Objects365 JSON."""
    novel: Path | None = None
    """JSON file {"base": [names], "novel": [names]}; only boxes of base categories are trained on. Default:
    annotations/splits.json of the root, OV-COCO's split for COCO, rare = novel for LVIS; otherwise all categories are
    trained on."""
    images: Path | None = None
    """Images to generate proposals for (a folder, or the SPLIT of a root), instead of the training images."""
    steps: int = 300
    """Optimizer steps; 300 find 96 % of the rendered world's base objects at IoU 0.5 among 100 boxes."""
    batch: int = 8
    """Images per step, and per batch when proposals are generated."""
    lr: float = 1e-3
    """Peak learning rate of AdamW: 20 steps of warm-up, a cosine to zero."""
    size: int | None = None
    """Longest side of the input [pixels], a multiple of two patches; default: 64 patches and at most 1024, and
    192 for foveate-small and for conv."""
    channels: int | None = None
    """Width of the pyramid and of the RPN; default: 128, and 64 for foveate-small and for conv."""
    augment: bool = True
    """Random horizontal flips in training."""
    max_boxes: int = 100
    """Maximum number of proposals per image."""
    min_score: float = 0.0
    """Minimum score of a proposal, in [0, 1]."""
    nms: float = 0.7
    """IoU threshold of non-maximum suppression."""
    save_every: int = 200
    """Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(RunFlags):
    """Pretrain a CLIP on image-caption pairs with the contrastive loss.

    The shipped small CLIP was made by this command (its card, clip/small/README.md, has the exact line and its log).
    The same command resumes a stopped run. Runs in one process: captions are contrasted within a batch, and embeddings
    are not gathered over processes. Unreadable pairs are rejected before the first step.
    """

    data: Path
    """Folder of tar shards, KEY.jpg beside KEY.txt (`foveate world DIR --pairs 60000` writes DIR/pairs)."""
    out: Path
    """Folder for the model (an open_clip folder), metrics.jsonl and the checkpoints to resume from."""
    config: Path = SMALL_CONFIG
    """open_clip_config.json of the model to build; the small CLIP's by default. "residual" builds its variant with
    a CNN image tower (like RN50)."""
    text_from: str | None = None
    """A CLIP (foveate-small, or a saved model folder) whose text tower is used, frozen, so that the new image
    tower shares its embedding space and learns faster. Default: the text tower is trained too."""
    steps: int = 2000
    """Optimizer steps."""
    batch: int = 256
    """Pairs per step."""
    lr: float = 2e-3
    """Peak learning rate of Muon, for the transformers' matrices; AdamW takes half of it, for everything else."""
    warmup: int = 50
    """Steps of linear warm-up before the cosine to zero."""
    patch_dropout: float = 0.5
    """Fraction of each image's patches dropped while training, twice the speed (ViTs only; a residual tower sees whole
    images)."""
    whole_steps: int = 300
    """Number of final steps on whole images, without patch dropout."""
    log_every: int = 1
    """Steps between lines of OUT/metrics.jsonl."""
    save_every: int = 100
    """Steps between checkpoints."""
    validate: str | None = None
    """Folder of held-out pairs, given like --data: at every checkpoint the loss over a fixed set of 256 of them is
    measured, without patch dropout. The checkpoint with the lowest loss is kept in addition to the newest ones."""
