"""The table of commands: the only list of them, which help, dispatch, documentation and tests read.

A new command is one row here, one dataclass of its flags and one function that takes it. Only the modules of the
command that was typed are imported, so that `--help` never waits for torch.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from foveate.errors import InputError


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    words: str
    """As typed after `foveate`."""
    config: str
    """Dataclass of its flags, "module:Class"."""
    procedure: str
    """Function that takes that dataclass, "module:function"."""
    summary: str
    """One line for the list of commands."""
    example: str
    """What may follow the words."""

    def load_config(self) -> type[Any]:
        """Import the dataclass of the flags."""
        return _load(self.config)

    def load_procedure(self) -> Callable[[Any], object]:
        """Import the function that does the work."""
        return _load(self.procedure)


COMMANDS: dict[str, tuple[Command, ...]] = {
    "start": (
        Command("demo", "foveate.reproduce.flags:Demo", "foveate.reproduce.demo:run",
                "distil the shipped CLIP on a rendered world: 5 minutes, 2 cores",
                "--out runs/demo"),
        Command("segment", "foveate.cli.segment:Segment", "foveate.cli.segment:run",
                "give every pixel of images a class of any vocabulary",
                'images/ --model foveate-small --vocab "grass, dog, sky" --out segmented'),
        Command("detect", "foveate.cli.detection:Detect", "foveate.cli.detection:run_detect",
                "find objects of any vocabulary with a trained detector",
                'images/ --model runs/fvit/model --vocab "dog, red cup" --out detected'),
        Command("distill", "foveate.train.flags:DistillConfig", "foveate.train.distill:run",
                "train a CLIP's dense features on its own image crops",
                "--data coco --out runs/mine"),
        Command("evaluate regions", "foveate.cli.evaluate:Regions", "foveate.cli.evaluate:run_regions",
                "classify annotated regions by dense features and by crops",
                "--data coco --model runs/mine/model"),
        Command("show similarity", "foveate.cli.show:Similarity", "foveate.cli.show:run_similarity",
                "draw where images match a text",
                '--data images/ --model runs/mine/model --text "a dog" grass --out similarity.png'),
    ),
    "train": (
        Command("train-fvit", "foveate.train.flags:TrainFViT", "foveate.train.fvit:run",
                "train F-ViT, an open-vocabulary detector",
                "--data coco --model runs/mine/model --out runs/fvit"),
        Command("train-catseg", "foveate.train.flags:TrainCatSeg", "foveate.train.catseg:run",
                "train CAT-Seg, open-vocabulary semantic segmentation",
                "--data coco --model runs/mine/model --out runs/catseg"),
        Command("train-panoptic", "foveate.train.flags:TrainPanoptic", "foveate.train.panoptic:run",
                "train a mask generator for open-vocabulary panoptic segmentation",
                "--data coco --model runs/mine/model --out runs/panoptic"),
        Command("proposals", "foveate.train.flags:Proposals", "foveate.train.proposals:run",
                "make region proposals for distill --boxes",
                "--data coco --out runs/proposals"),
        Command("pretrain", "foveate.train.flags:Pretrain", "foveate.train.pretrain:run",
                "pretrain a small CLIP on images with captions",
                "--pairs world/pairs --out runs/small"),
    ),
    "evaluate": (
        Command("evaluate agreement", "foveate.cli.evaluate:Agreement", "foveate.cli.evaluate:run_agreement",
                "compare dense features with crops, without labels",
                "--data images/ --model runs/mine/model --reference foveate-small"),
        Command("evaluate retrieval", "foveate.cli.evaluate:Retrieval", "foveate.cli.evaluate:run_retrieval",
                "retrieve images and regions by locations of the dense features",
                "--data coco --model runs/mine/model"),
        Command("evaluate global", "foveate.cli.evaluate_global:Global", "foveate.cli.evaluate_global:run_global",
                "zero-shot classification and retrieval of whole images",
                "--data imagenet/val --model runs/mine/model --reference foveate-small"),
        Command("evaluate pareto", "foveate.cli.evaluate_global:Pareto", "foveate.cli.evaluate_global:run_pareto",
                "mix student and teacher weights: dense against global accuracy",
                "--data coco --model runs/mine/model --reference foveate-small --plot pareto.png"),
        Command("evaluate detection", "foveate.cli.detection:Detection", "foveate.cli.score:run_detection",
                "AP of base and novel categories, of a model or a results file",
                "--data coco --model runs/fvit/model"),
        Command("evaluate semantic", "foveate.cli.semantic:Semantic", "foveate.cli.score:run_semantic",
                "mIoU of semantic segmentation, of a model or of label maps",
                "--data ADEChallengeData2016 --model runs/catseg/model"),
        Command("evaluate panoptic", "foveate.cli.panoptic:Panoptic", "foveate.cli.score:run_panoptic",
                "PQ of panoptic segmentation, of a model or of results files",
                "--data coco --model runs/panoptic/model --clip-with runs/mine/model"),
    ),
    "predict": (
        Command("embed", "foveate.cli.embed:Embed", "foveate.cli.embed:run",
                "write image, dense or box features of images to one file",
                "images/ --model runs/mine/model --what dense --out features.safetensors"),
        Command("show kmeans", "foveate.cli.show:KMeans", "foveate.cli.show:run_kmeans",
                "draw clusters of the dense features",
                "--data images/ --model runs/mine/model --before foveate-small --out kmeans.png"),
        Command("show sizes", "foveate.cli.show:Sizes", "foveate.cli.show:run_sizes",
                "plot accuracy against input size from results files",
                "--results before=before.json after=after.json --out sizes.png"),
    ),
    "convert": (
        Command("convert", "foveate.cli.convert:Convert", "foveate.cli.convert:run",
                "write a CLIP, or a published head, in another layout",
                "runs/mine/model converted --to hf"),
        Command("export", "foveate.cli.export:Export", "foveate.cli.export:run",
                "write a CLIP's image tower as ONNX or torch.export",
                "--model runs/mine/model --out dense.onnx"),
    ),
    "data": (
        Command("world", "foveate.cli.world:World", "foveate.cli.world:run",
                "render the embedded data set in COCO's format",
                "world --train 1000"),
        Command("convert-maps ade-full", "foveate.cli.convert_maps:AdeFull", "foveate.cli.convert_maps:run_ade_full",
                "convert the label maps of the full ADE20K",
                "ADE20K_2021_17_01 --out ade-full --split val"),
        Command("convert-maps context", "foveate.cli.convert_maps:Context", "foveate.cli.convert_maps:run_context",
                "convert the label maps of PASCAL Context",
                "trainval --labels labels.txt --out context459"),
    ),
    "paper": (
        Command("recipes", "foveate.reproduce.flags:Recipes", "foveate.reproduce.list_recipes:run",
                "list the named settings of training and evaluation",
                "clipself-b16-patches"),
        Command("reproduce", "foveate.reproduce.flags:Reproduce", "foveate.reproduce.runner:run",
                "run the paper's tables and write a page of results",
                "tab1 figs --out runs/reproduce"),
    ),
}  # fmt: skip
"""The commands by group, in the order of the list that `foveate --help` prints."""


def all_commands() -> tuple[Command, ...]:
    """Every command, in the order of the table."""
    return tuple(command for group in COMMANDS.values() for command in group)


def find_command(arguments: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that the arguments begin with, and the arguments after its words.

    Raises:
        InputError: no command is called so; the message names the nearest.
    """
    commands = {command.words: command for command in all_commands()}
    for count in (2, 1):
        words = " ".join(arguments[:count])
        if words in commands:
            return commands[words], list(arguments[count:])
    # the nearest of what was typed, else of its first word alone, whose others may be flags or paths
    typed = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    nearest = [difflib.get_close_matches(words, commands, n=1, cutoff=0.5) for words in (typed, arguments[0])]
    hint = next((f" Did you mean `foveate {names[0]}`?" for names in nearest if names), "")
    raise InputError(f"need one of the commands that `foveate --help` lists; got {typed or arguments[0]!r}.{hint}")


def commands_under(word: str) -> tuple[Command, ...]:
    """The commands of two words that begin with this one, such as those of `evaluate`."""
    return tuple(command for command in all_commands() if command.words.startswith(f"{word} "))


def help_lines(groups: dict[str, tuple[Command, ...]]) -> list[str]:
    """A line for each command, its group beside the first of it, a blank line between groups."""
    lines: list[str] = []
    for group, commands in groups.items():
        for command in commands:
            heading = group if command is commands[0] else ""
            lines.append(f"  {heading:8}  {command.words:21}  {command.summary}")
        lines.append("")
    return lines[:-1]


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
