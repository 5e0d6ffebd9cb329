"""The command line: one verb a file; flags and help are read off each verb's frozen dataclass (tyro).

torch and open_clip are imported by the verb that runs, never here, so that `--help` and mistyped flags answer at once.
A mistake in the input, and what the system refuses (a full disk), end with a message and status 2, no traceback.
"""

import sys
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from foveate.cli import (
    demo,
    detection,
    distill,
    evaluate,
    evaluate_global,
    panoptic,
    pretrain,
    proposals,
    recipes,
    reproduce,
    score,
    semantic,
    show,
    train_catseg,
    train_fvit,
    train_panoptic,
    world,
)
from foveate.convert import flags as convert
from foveate.engine.config import DistillConfig
from foveate.errors import InputError
from foveate.export import flags as export
from foveate.io.files import versions
from foveate.predict import flags as predict

Evaluate = (
    Annotated[evaluate.Regions, subcommand("regions")]
    | Annotated[evaluate.Agreement, subcommand("agreement")]
    | Annotated[evaluate.Retrieval, subcommand("retrieval")]
    | Annotated[evaluate_global.Global, subcommand("global")]
    | Annotated[evaluate_global.Pareto, subcommand("pareto")]
    | Annotated[detection.Detection, subcommand("detection")]
    | Annotated[semantic.Semantic, subcommand("semantic")]
    | Annotated[panoptic.Panoptic, subcommand("panoptic")]
)

ConvertMaps = Annotated[convert.AdeFull, subcommand("ade-full")] | Annotated[convert.Context, subcommand("context")]

Show = (
    Annotated[show.KMeans, subcommand("kmeans")]
    | Annotated[show.Similarity, subcommand("similarity")]
    | Annotated[show.Sizes, subcommand("sizes")]
)
Command = (
    Annotated[demo.Demo, subcommand("demo")]
    | Annotated[world.World, subcommand("world")]
    | Annotated[pretrain.Pretrain, subcommand("pretrain")]
    | Annotated[DistillConfig, subcommand("distill")]
    | Annotated[proposals.Proposals, subcommand("proposals")]
    | Annotated[recipes.Recipes, subcommand("recipes")]
    | Annotated[convert.Convert, subcommand("convert")]
    | Annotated[
        ConvertMaps,
        subcommand("convert-maps", description="Make maps of numbers of semantic ground truth in other forms."),
    ]
    | Annotated[Evaluate, subcommand("evaluate", description="Measure what a CLIP knows, dense and whole.")]
    | Annotated[train_fvit.TrainFViT, subcommand("train-fvit")]
    | Annotated[predict.Detect, subcommand("detect")]
    | Annotated[train_catseg.TrainCatSeg, subcommand("train-catseg")]
    | Annotated[train_panoptic.TrainPanoptic, subcommand("train-panoptic")]
    | Annotated[predict.Segment, subcommand("segment")]
    | Annotated[reproduce.Reproduce, subcommand("reproduce")]
    | Annotated[predict.Embed, subcommand("embed")]
    | Annotated[export.Export, subcommand("export")]
    | Annotated[Show, subcommand("show", description="Draw what the dense features hold.")]
)

DESCRIPTION = """Foveate: CLIPSelf for any CLIP.

  foveate demo                                     the whole path on a rendered world, about five minutes on two cores
  foveate distill --data COCO --out runs/mine      teach a CLIP dense features from its own image crops
  foveate evaluate regions --data COCO --model runs/mine/model
  foveate embed PICTURES --out features.safetensors
"""


def main(arguments: list[str] | None = None) -> None:
    """Parse and run one verb; exit with 2 and a message when the input is wrong."""
    typed = sys.argv[1:] if arguments is None else arguments
    if typed in (["--version"], ["-V"]):
        print(f"foveate {versions()['foveate']}")
        return
    try:
        run(parse(typed))
    except (InputError, OSError) as error:  # OSError: the disk is full, a folder may not be read, ...
        print(f"foveate: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("foveate: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def parse(arguments: list[str]) -> Any:
    """Read the flags of one verb; those of a verb that trains, with --recipe NAME, default to the recipe's.

    Raises:
        InputError: there is no such recipe.
    """
    settings = (OmitArgPrefixes, OmitSubcommandPrefixes)
    verb = arguments[0] if arguments and arguments[0] in recipes.NAMED else None
    recipe = None if verb is None else recipes.named_in(arguments)
    if recipe is not None:
        default = recipes.start(recipes.find(recipe, verb=verb))
        return tyro.cli(type(default), prog=f"foveate {verb}", default=default, args=arguments[1:], config=settings)
    return tyro.cli(Command, prog="foveate", description=DESCRIPTION, args=arguments, config=settings)  # pyright: ignore[reportCallIssue, reportArgumentType]


def run(command: Any) -> None:
    """Run the verb whose flags these are."""
    match command:
        case demo.Demo():
            demo.run(command)
        case world.World():
            world.run(command)
        case pretrain.Pretrain():
            pretrain.run(command)
        case DistillConfig():
            distill.run(command)
        case proposals.Proposals():
            proposals.run(command)
        case recipes.Recipes():
            recipes.run(command)
        case convert.Convert():
            from foveate.convert.run import run as run_convert

            run_convert(command)
        case convert.AdeFull():
            from foveate.convert.maps import run_ade_full

            run_ade_full(command)
        case convert.Context():
            from foveate.convert.maps import run_context

            run_context(command)
        case evaluate.Regions():
            evaluate.run_regions(command)
        case evaluate.Agreement():
            evaluate.run_agreement(command)
        case reproduce.Reproduce():
            reproduce.run(command)
        case evaluate.Retrieval():
            evaluate.run_retrieval(command)
        case evaluate_global.Global():
            evaluate_global.run_global(command)
        case evaluate_global.Pareto():
            evaluate_global.run_pareto(command)
        case train_fvit.TrainFViT():
            train_fvit.run(command)
        case train_panoptic.TrainPanoptic():
            train_panoptic.run(command)
        case predict.Detect():
            from foveate.predict.detect import run as run_detect

            run_detect(command)
        case detection.Detection() if command.from_results is not None:
            score.run_detection(command)
        case detection.Detection():
            detection.run_detection(command)
        case train_catseg.TrainCatSeg():
            train_catseg.run(command)
        case predict.Segment():
            from foveate.predict.segment import run as run_segment

            run_segment(command)
        case semantic.Semantic() if command.from_results is not None:
            score.run_semantic(command)
        case semantic.Semantic():
            semantic.run(command)
        case panoptic.Panoptic() if command.from_results is not None:
            score.run_panoptic(command)
        case panoptic.Panoptic():
            panoptic.run(command)
        case predict.Embed():
            from foveate.predict.embed import run as run_embed

            run_embed(command)
        case export.Export():
            from foveate.export.run import run as run_export

            run_export(command)
        case show.KMeans():
            show.run_kmeans(command)
        case show.Similarity():
            show.run_similarity(command)
        case show.Sizes():
            show.run_sizes(command)


if __name__ == "__main__":
    main()
