"""How many, how large, how long: the four sizes at which the same notebooks run, and the folders they use."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vtc import InputError
from vtc.shapes import CLIP_L_336, LLMS, LLMShape, TowerShape, WorldConfig

GB = 10**9
NO_IMAGE = 1 / 3  # how often a step of nested budgets has no image (V = 0), beside any one other V
_ABOVE = Path(__file__).resolve().parent.parent
CHECKOUT = _ABOVE if (_ABOVE / "notebooks").is_dir() else None  # the repository; None: installed alone
ROOT = CHECKOUT or Path.cwd()  # where results, figures and runs lie


@dataclass(frozen=True)
class Schedule:
    """How long, on how much at once and how fast one model learns in one stage."""

    steps: int
    batch: int  # images a step (scenes in words, where there is none), over all processes together
    lr: float  # peak learning rate; Muon's matrices learn at three times as much (`vtc.training.optim`)
    pack: int = 1  # questions in one sequence behind an image
    power: float = 0.5  # an LLM d wide learns at (width / d)^power times the rate, see `Recipe.width`


@dataclass(frozen=True)
class Recipe:
    """One data budget and schedule for every cell of the sweep (paper, section 3: as LLaVA's two stages)."""

    text: Schedule | None  # the LLM alone: scenes told in words, and facts; None: LLMs are given
    align: Schedule  # compressor and projector learn, the LLM is frozen
    instruct: Schedule  # questions; the LLM learns too
    facts: int = 256  # in every other step of the text stage
    # The LLM's share of the rate of the instruct stage. At the whole rate it forgets nearly all facts (told
    # in words .97 of them right before, .01 after); at a twentieth it keeps them (.22 before, .18 after).
    llm_share: float = 0.05
    # Width of the LLM for which these rates are meant; None: all widths learn at the same.
    width: int | None = None
    warmup: float = 0.05  # share of a stage's steps in which the rate rises to its peak
    muon: bool = True  # matrices learn by Muon, the rest by AdamW; False: AdamW for all
    checkpoint_every: int = 500  # steps between two checkpoints
    # Positions that an image's visual tokens take up at most, closer together where they are more (as in
    # V2PE, arXiv 2412.09616); None: one each. With 16, more tokens stay where the LLM has read before.
    span: int | None = None

    def lr(self, stage: Schedule, d: int) -> float:
        """The peak learning rate of a stage for an LLM d wide."""
        return stage.lr if self.width is None else stage.lr * (self.width / d) ** stage.power


@dataclass(frozen=True)
class Profile:
    """Numbers that differ between sizes; everything a reader sees stays the same."""

    name: str
    V: tuple[int, ...]  # visual tokens of the sweep; 0 is the text-only control
    sizes: tuple[LLMShape, ...]  # N is counted from these widths, never typed
    seeds: tuple[int, ...]  # seeds measured by one `vtc reproduce`
    recorded_seeds: tuple[int, ...]  # seeds that the recorded rows hold
    images_train: int
    images_test: int
    images_validation: int
    tower: TowerShape
    tower_recipe: Schedule | None  # pre-training on dense labels; None: the tower is a checkpoint
    recipe: Recipe
    zoo: tuple[str, ...]  # compressors or sets (`vtc.compressors.sets`) that `vtc reproduce` measures
    zoo_V: tuple[int, ...]  # token counts at which `vtc reproduce` measures them
    zoo_size: str  # LLM of notebook 05
    winners_Q: tuple[int, ...]  # text tokens at which cells of equal cost N (Q + V) are compared
    workers: int  # processes that measure cases side by side, one thread each
    draws: int  # bootstrap draws of an interval
    feature_bytes: int  # of one split's features that may be kept; more are computed when asked for
    note: str  # what it needs and how long it takes
    world: WorldConfig = WorldConfig()  # what GridQA's images show and its questions ask for
    # Two compressors whose overall scores differ by less are equivalent; written before the runs.
    margin: float = 0.02
    recorded_zoo_V: tuple[int, ...] = (1, 4, 16)  # token counts that the recorded rows of notebook 05 hold
    twin: WorldConfig = WorldConfig(least=6.0, entities=2)  # flipped: small marks, 640 facts
    recompute: bool = False  # True: recorded rows are not looked at
    data_version: str = "gridqa-2"  # of the questions and images: another word where `vtc.data` makes others
    run: str = field(default="")  # folder under runs/ (VTC_RUN names it too); else the profile's name

    @property
    def g(self) -> int:
        """Side of the vision grid."""
        return self.tower.g

    @property
    def s(self) -> int:
        """Patches of an image, g * g."""
        return self.tower.s

    @property
    def pixels(self) -> int:
        """Side of an image in pixels."""
        return self.tower.pixels

    @property
    def results(self) -> Path:
        """Recorded rows, committed; `vtc record` alone writes them."""
        return ROOT / "results" / self.name

    @property
    def recorded_figures(self) -> Path:
        """Recorded figures, committed; written by `vtc record` alone."""
        return ROOT / "figures" / self.name

    @property
    def runs(self) -> Path:
        """Everything measured now: rows, checkpoints, figures, executed notebooks (VTC_RUNS moves it)."""
        return Path(os.environ.get("VTC_RUNS", ROOT / "runs")) / (self.run or self.name)

    @property
    def figures(self) -> Path:
        """Figures drawn now."""
        return self.runs / "figures"

    @property
    def cache(self) -> Path:
        """Weights and checkpoints, which a seed can remake; another recipe has another folder."""
        return self.runs / "cache" / self.fingerprint

    @property
    def cache_before_align(self) -> Path:
        """The tower, its features and the LLMs that have read text; learning curves share them."""
        numbers = self._numbers
        numbers["recipe"] = {k: v for k, v in numbers["recipe"].items() if k not in ("align", "instruct")}
        return self.runs / "cache" / _short(numbers)

    @property
    def fingerprint(self) -> str:
        """A short hash of all the numbers that decide a result; it names what they made, rows and caches."""
        return _short(self._numbers)

    @property
    def _numbers(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if name not in UNDECIDING}

    @property
    def variants(self) -> dict[str, Profile]:
        """Profiles that answer one question each, by the table of their rows.

        Recorded once and replayed: where recorded rows are not looked at, those of a variant still are.
        02_twin: the flipped world. 02_doubled: every stage twice as long, does the error still fall?
        05_twice, 05_fourfold: what follows the text stage 2 or 4 times as long: does a gap stay?
        """
        p, image = replace(self, recompute=False), ("align", "instruct")
        return {
            "02_twin": replace(p, world=self.twin),
            "02_doubled": p._longer(2, ("text", *image)),
            "05_twice": p._longer(2, image),
            "05_fourfold": p._longer(4, image),
        }

    def _longer(self, times: int, names: tuple[str, ...]) -> Profile:
        stages = {name: getattr(self.recipe, name) for name in names}
        longer = {name: stage and replace(stage, steps=times * stage.steps) for name, stage in stages.items()}
        return replace(self, recipe=replace(self.recipe, **longer))

    def size(self, name: str) -> LLMShape:
        """The LLM of that name; InputError names those there are."""
        for size in self.sizes:
            if size.name == name:
                return size
        raise InputError(
            f"LLM size {name!r}: profile {self.name} has {', '.join(s.name for s in self.sizes)}"
        )

    def __str__(self) -> str:
        lines = [
            f"profile {self.name}: {self.note}",
            f"  grid {self.g} x {self.g} = {self.s} patches of {self.tower.patch} pixels",
            f"  V in {', '.join(map(str, self.V))}",
            "  LLMs " + ", ".join(f"{s.name} (N = {s.N:,})" for s in self.sizes),
            f"  {self.images_train:,} training images, {self.images_validation:,} validation and "
            f"{self.images_test:,} test images, seeds {', '.join(map(str, self.seeds))} measured anew, "
            f"{', '.join(map(str, self.recorded_seeds))} recorded",
        ]
        return "\n".join(lines)


# fields of a profile that change which cases are measured, where or how, but the result of none
UNDECIDING = (
    *("name", "seeds", "recorded_seeds", "zoo", "zoo_V", "zoo_size", "workers", "draws", "note", "winners_Q"),
    *("recompute", "run", "feature_bytes", "twin", "margin", "recorded_zoo_V"),
)


def _short(numbers: dict[str, object]) -> str:
    """A short hash of these numbers."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:10]


def _tiny(d: int, layers: int = 3) -> LLMShape:
    """One of a family that differs in width alone: heads 16 wide, MLPs 3 d."""
    return LLMShape(f"d{d}", layers, d, d_ff=3 * d, heads=d // 16, tied=True)


SMOKE = Profile(
    name="smoke",
    V=(0, 1, 16),
    sizes=(_tiny(16, 1), _tiny(32, 1)),
    seeds=(0,),
    recorded_seeds=(0,),
    images_train=128,
    images_test=32,
    images_validation=32,
    tower=TowerShape(d=32, layers=2, heads=2, patch=8, levels=(1, 2), pixels=96, stem=(8, 16)),
    tower_recipe=Schedule(steps=10, batch=16, lr=3e-3),
    recipe=Recipe(
        text=Schedule(steps=6, batch=8, lr=3e-3, pack=4),
        align=Schedule(steps=4, batch=8, lr=3e-3),
        instruct=Schedule(steps=6, batch=8, lr=2e-3, pack=4),
        facts=16,
        checkpoint_every=3,
        span=16,
    ),
    zoo=("tokenpacker", "rivals", "ablations", "nested"),
    zoo_V=(1, 16),
    recorded_zoo_V=(1, 16),
    zoo_size="d16",
    winners_Q=(6, 50),
    workers=2,
    draws=50,
    feature_bytes=2 * GB,
    note="tiny everything, every code path; minutes, numbers mean nothing",
)

LAPTOP = Profile(
    name="laptop",
    V=(0, 1, 4, 9, 16, 36, 144),
    sizes=tuple(_tiny(d) for d in (16, 24, 32, 48, 64, 96)),
    seeds=(0,),
    recorded_seeds=(0, 1, 2, 3, 4),
    images_train=4096,
    images_test=512,
    images_validation=512,
    tower=TowerShape(d=64, layers=4, heads=2, patch=8, levels=(1, 2, 3, 4), pixels=96, stem=(16, 32)),
    tower_recipe=Schedule(steps=2500, batch=16, lr=3e-3),
    recipe=Recipe(
        text=Schedule(steps=4000, batch=16, lr=4e-3, pack=8, power=1.0),
        align=Schedule(steps=1500, batch=32, lr=3e-3),
        instruct=Schedule(steps=2000, batch=16, lr=3e-3, pack=8),
        width=32,
        span=16,
    ),
    zoo=("tokenpacker", "quecc", "lookup"),
    zoo_V=(1,),
    zoo_size="d32",
    winners_Q=(6, 50),
    workers=2,
    draws=2000,
    feature_bytes=2 * GB,
    note="two cores, 6 GB; 37 minutes from nothing (measured), minutes in replay",
)

GPU = replace(
    LAPTOP,
    name="gpu",
    V=(0, 1, 4, 16, 36, 64, 144, 576),
    sizes=tuple(_tiny(d) for d in (16, 32, 48, 64, 96, 128, 192)),
    seeds=(0, 1, 2, 3, 4),
    images_train=32768,
    images_test=4096,
    images_validation=1024,
    tower=replace(LAPTOP.tower, pixels=192),
    tower_recipe=Schedule(steps=4000, batch=256, lr=3e-3),
    recipe=replace(  # the rates and their rule for the width are the laptop's
        LAPTOP.recipe,
        text=replace(LAPTOP.recipe.text, steps=20_000, batch=128),
        align=replace(LAPTOP.recipe.align, steps=2000, batch=128),
        instruct=replace(LAPTOP.recipe.instruct, steps=6000, batch=128),
        facts=2048,
    ),
    zoo=("tokenpacker", "rivals", "ablations", "nested", "others"),
    zoo_V=(1, 4, 16, 36),
    recorded_zoo_V=(1, 4, 16, 36),
    workers=1,
    feature_bytes=40 * GB,
    note="one data-centre GPU, 30 minutes a stage, resumable",
)


def _qwen(size: str) -> LLMShape:
    return replace(LLMS[f"qwen1.5-{size.lower()}"], name=size, checkpoint=f"Qwen/Qwen1.5-{size}-Chat")


PAPER = replace(
    GPU,
    name="paper",
    V=(0, 1, 4, 16, 36, 64, 144, 576),
    sizes=tuple(_qwen(size) for size in ("0.5B", "1.8B", "4B", "7B", "14B")),
    seeds=(0,),
    recorded_seeds=(0,),
    images_train=558_128,
    tower=replace(CLIP_L_336, checkpoint="ViT-L-14-336"),
    tower_recipe=None,
    recipe=Recipe(  # LLaVA-1.5's two stages, one epoch each, as the paper takes them (and QueCC's scripts)
        text=None,
        align=Schedule(steps=2_181, batch=256, lr=1e-3),  # 558,128 images
        instruct=Schedule(steps=5_197, batch=128, lr=2e-5),  # mix-665k
        warmup=0.03,
        muon=False,
        checkpoint_every=500,
    ),
    zoo_size="7B",
    note="a cluster, through accelerate; LLaVA-558k then mix-665k",
)

PROFILES = {p.name: p for p in (SMOKE, LAPTOP, GPU, PAPER)}


def get(name: str, recompute: bool = False, run: str = "") -> Profile:
    """The profile of that name; raises InputError, naming the four, for any other word.

    VTC_SEEDS, such as "1" or "0,1,2", takes the place of the profile's seeds.
    """
    if name not in PROFILES:
        raise InputError(f"profile {name!r} is not known: choose one of {', '.join(PROFILES)}")
    p = replace(PROFILES[name], recompute=recompute, run=run or os.environ.get("VTC_RUN", ""))
    return replace(p, seeds=numbers(os.environ.get("VTC_SEEDS", ""), "seeds") or p.seeds)


def checkout(command: str) -> None:
    """InputError where the package is installed without the repository that a command needs."""
    if CHECKOUT is None:
        raise InputError(
            f"`vtc {command}` needs the repository with its notebooks: clone it and `pip install -e .` there"
        )


def numbers(text: str, what: str, kind: type = int) -> tuple:
    """The numbers in "0,1,2", each once, none in an empty text; InputError, naming `what`, otherwise."""
    try:
        return tuple(dict.fromkeys(kind(part) for part in text.replace(",", " ").split()))
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{what} {text!r}: expected {wanted} and commas, such as 0,1,2") from None
