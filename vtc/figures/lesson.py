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
class Source:
    """Code to be read; a notebook shows it coloured."""

    text: str

    def _repr_mimebundle_(self, **_: object) -> dict:
        return {"text/markdown": f"```python\n{self.text}\n```", "text/plain": self.text}


def show(*parts: Callable, docs: bool = False) -> Source:
    """Functions, methods or classes of the package as they are written; `docs`: with their docstrings."""
    return Source("\n\n".join(_written(part, docs) for part in parts))


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


@dataclass(frozen=True)
class Table:
    """A frame of which a reader sees the first rows; the rest is folded."""

    frame: pd.DataFrame
    rows: int

    def _repr_mimebundle_(self, **_: object) -> dict:
        first, rest = self.frame.iloc[: self.rows], self.frame.iloc[self.rows :]
        with pd.option_context("display.max_colwidth", None):  # sentences in full
            html, more = (part.to_html(index=False) for part in (first, rest))
            text = first.to_string(index=False)
        if len(rest):
            html += f"<details><summary>{len(rest)} more rows</summary>{more}</details>"
            text += f"\n... and {len(rest)} more rows"
        return {"text/html": html, "text/plain": text}


def table(frame: pd.DataFrame, rows: int = 10) -> Table:
    """A frame for reading: at most `rows` rows, the others folded below them."""
    return Table(frame, rows)


@dataclass(frozen=True)
class Page:
    """A whole offline page inside a notebook."""

    html: str
    title: str
    height: int  # pixels

    def _repr_mimebundle_(self, **_: object) -> dict:
        style = f"width:100%;height:{self.height}px;border:1px solid #8888;background:white"
        frame = f'<iframe title="{escape(self.title)}" style="{style}" srcdoc="{escape(self.html)}"></iframe>'
        return {"text/html": frame, "text/plain": self.title}


def page(path: Path, title: str, height: int = 1100) -> Page:
    """The page of a file, shown whole; it runs by itself, without the notebook's kernel."""
    return Page(path.read_text(encoding="utf-8"), title, height)


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
