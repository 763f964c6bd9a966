"""Images and questions: GridQA, a small world made here from a seed, and folders in LLaVA's format.

Every question of GridQA makes two demands. The eye must find a handwritten digit (UCI digits, in
scikit-learn; every split has handwriting of its own) among few or many, large or small ones. The memory must
hold a fact about it, a common or a rare one. Distributions of both are stated in `vtc.shapes.WorldConfig`.
"""

# ruff: noqa: F401  (the names below are this package's interface)
from vtc.data.gridqa.ask import AT, NONE, TASKS, Questions, about, ask, in_words
from vtc.data.gridqa.binding import PANEL, ask_any, ask_binding
from vtc.data.gridqa.drawing import dense_labels, render
from vtc.data.gridqa.facts import Facts, scenes_of
from vtc.data.gridqa.typed import Right, right_answer
from vtc.data.gridqa.words import DIGITS, LANDS, WORDS
from vtc.data.gridqa.world import SPLITS, Scenes, handwriting, make_scenes
from vtc.data.images import load_image
from vtc.data.llava import Conversation, read_llava
from vtc.shapes import WorldConfig
