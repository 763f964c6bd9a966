"""What lessons show beside charts and drawings: code of the package, and one pass shape by shape."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from torch import Tensor

    from vtc.models.vlm import VLM

LETTERS = {  # what a forward pass makes, in order, and its axes
    "images": "(b, pixels, pixels, 3)",
    "features, last layer": "(b, s, d)",
    "features, layers side by side": "(b, s, d_levels)",
    "visual tokens": "(b, V, d_llm)",
    "prompt": "(b, V + Q, d_llm)",
    "after the LLM's layers": "(b, V + Q, d_llm)",
    "next token": "(b, vocabulary)",
}


@dataclass(frozen=True)
class Shown:
    """What a notebook shows, in the forms that it may choose from."""

    forms: dict[str, str]  # kind of content -> content

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return self.forms


def show(*parts: Callable, docs: bool = False) -> Shown:
    """Functions, methods or classes of the package as they are written; `docs`: with their docstrings."""
    text = "\n\n".join(_written(part, docs) for part in parts)
    return Shown({"text/markdown": f"```python\n{text}\n```", "text/plain": text})


def _written(part: Callable, docs: bool) -> str:
    lines = textwrap.dedent(inspect.getsource(part)).rstrip().splitlines()
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    inside = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, defined)]
    for node in [] if docs else inside:
        first = node.body[0]
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            for i in range(first.lineno - 1, first.end_lineno):
                lines[i] = None
    return "\n".join(line for line in lines if line is not None)


def table(frame: pd.DataFrame, rows: int = 10) -> Shown:
    """A frame for reading: at most `rows` rows, the others folded below them."""
    first, rest = frame.iloc[:rows], frame.iloc[rows:]
    with pd.option_context("display.max_colwidth", None):  # sentences in full
        html, more = (part.to_html(index=False) for part in (first, rest))
        text = first.to_string(index=False)
    if len(rest):
        html += f"<details><summary>{len(rest)} more rows</summary>{more}</details>"
        text += f"\n... and {len(rest)} more rows"
    return Shown({"text/html": html, "text/plain": text})


def page(path: Path, title: str, height: int = 1100) -> Shown:
    """A whole offline page of a file, so many pixels high; it runs without the notebook's kernel."""
    style = f"width:100%;height:{height}px;border:1px solid #8888;background:white"
    html = escape(path.read_text(encoding="utf-8"))
    frame = f'<iframe title="{escape(title)}" style="{style}" srcdoc="{html}"></iframe>'
    return Shown({"text/html": frame, "text/plain": title})


def forward_pass(vlm: VLM, images: Tensor, question: str | list[int]) -> dict[str, Tensor]:
    """Images (b, pixels, pixels, 3) and one question for each -> every tensor on the way, see `LETTERS`.

    question: words, or the ids of its tokens. The parts are called as `VLM.logits` calls them.
    """
    import torch

    from vtc.models.prompt import asked, pack

    ids = vlm.tokenizer(question)["input_ids"] if isinstance(question, str) else question
    packed = pack([[asked(ids)]] * len(images), pad=0)
    with torch.no_grad():
        features = vlm.eyes()(images)
        tokens = vlm.encode_image(features, packed)
        prompt, layout = vlm.embedded(packed, features, tokens)
        seen = {"attention_mask": layout.mask(prompt.dtype), "position_ids": layout.position_ids}
        out = vlm.llm.base_model(inputs_embeds=prompt, use_cache=False, **seen).last_hidden_state
        following = vlm.llm.get_output_embeddings()(out[:, -1])
    made = images, features.last, features.levels, tokens, prompt, out, following
    return dict(zip(LETTERS, made, strict=True))


def shapes(made: dict[str, Tensor]) -> pd.DataFrame:
    """A forward pass as a table: what | axes | shape | numbers (how many there are for one image)."""
    rows = [
        {"what": name, "axes": LETTERS[name], "shape": str(tuple(x.shape)), "numbers": x[0].numel()}
        for name, x in made.items()
    ]
    return pd.DataFrame(rows)
