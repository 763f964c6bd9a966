"""Images and questions: GridQA, made here from a seed, and folders in LLaVA's format.

GridQA keeps the two abilities that the paper separates. An image is a grid of cells that hold coloured shapes
or *real* handwritten digits (UCI digits, in scikit-learn; test images use handwriting never trained on).
Reasoning questions need a few facts about the image and some thought; OCR-like ones need many details of it.
Cells vary in size and objects stand off their centres, so that no number of visual tokens fits the grid by
design.
"""

from vtc.data.gridqa.questions import (
    FAMILIES,
    MAKERS,
    OCR,
    REASONING,
    TASKS,
    WORDS,
    Question,
    ask,
    facts,
    home,
    in_words,
    taught_with_images,
)
from vtc.data.gridqa.scenes import (
    COLORS,
    DIGITS,
    SHAPES,
    Scenes,
    dense_labels,
    handwriting,
    make_scenes,
    render,
)
from vtc.data.images import load_image
from vtc.data.llava import Conversation, read_llava

__all__ = [
    "COLORS", "DIGITS", "FAMILIES", "MAKERS", "OCR", "REASONING", "SHAPES", "TASKS", "WORDS", "Conversation",
    "Question", "Scenes", "ask", "dense_labels", "facts", "handwriting", "home", "in_words", "load_image",
    "make_scenes", "read_llava", "render", "taught_with_images",
]  # fmt: skip
