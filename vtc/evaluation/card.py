"""What a saved model is and how good it is, as the README.md of its folder; every number comes from a run."""

from __future__ import annotations

from pathlib import Path

from vtc import compressors, files
from vtc.evaluation import summary
from vtc.evaluation.ask import measured
from vtc.evaluation.exam import MEANS, exam
from vtc.evaluation.scores import FAMILIES
from vtc.models.io import WEIGHTS
from vtc.models.vlm import VLM
from vtc.profiles import Profile

CARD = """# {name}, {tokens}: a tiny vision-language model

{weights:,} weights ({size:.1f} MB), of which N = {N:,} multiply each token of its LLM. It answers questions
about the made images of the small world (GridQA) and nothing else: it is here to be looked into, not to be
used. `notebooks/05_ablate_high_compression.ipynb` shows where its tokens look as the question changes.

Made by

    {command}

Error on {questions:,} test questions about {images} images, whose handwriting was never trained on: {errors}.
Task by task, beside the share of the commonest answer, which needs no look at the image:

| task | what is asked | score | commonest answer |
|---|---|---|---|
{table}

`VLM.from_pretrained(folder)` of `vtc.models.vlm` loads it; safetensors and JSON only, MIT licence.
"""


def write(p: Profile, model: VLM, folder: Path, command: str) -> None:
    """Ask a model that lies in `folder` the profile's test questions, and write its README.md there.

    command: what made it.
    """
    made, row = exam(p), measured(p, model)
    asked = summary.asked(made).set_index("task")["commonest answer"]
    lines = [
        f"| {task} | {MEANS[task]} | {row[f'score_{task}']:.2f} | {asked[task]:.2f} |" for task in asked.index
    ]
    errors = ", ".join(f"{row[f'error_{family}']:.2f} ({name})" for family, name in FAMILIES.items())
    text = CARD.format(
        name=compressors.label(model.config.compressor),
        tokens=f"{model.V} visual token{'s' * (model.V != 1)}",
        weights=sum(weight.numel() for weight in model.parameters()),
        size=(folder / WEIGHTS).stat().st_size / 1e6,
        N=model.N,
        command=command,
        questions=row["questions"],
        images=len(made.scenes),
        errors=errors,
        table="\n".join(lines),
    )
    files.write(folder / "README.md", text)
