"""What an LLM's chat template puts around a question: text -> token ids, as the LLM was taught to read it.

The template is asked once what it writes for a conversation of two turns; the pieces between the messages
are what stands around any question. A tokenizer without a template (the word-level one of the LLMs that are
trained here) reads questions as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

from vtc import InputError

# for an LLM that was never taught to chat
PLAIN = (
    "{{ bos_token | default('', true) }}{% for m in messages %}{% if m.role == 'user' %}"
    "Question: {{ m.content }}\n{% else %}Answer:\n{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)
MARKS = ("FIRST", "SAID", "SECOND")  # stand for the messages while the template is asked


@dataclass(frozen=True)
class Frame:
    """The text that a template writes around messages."""

    first: str  # before the first question: system prompt, the user's turn begins
    later: str  # before a later one, behind what ended the answer before it
    after: str  # behind a question: the assistant's turn begins
    end: str  # the token that ends an answer


def frame(tokenizer: PreTrainedTokenizerBase) -> Frame | None:
    """What this tokenizer's template writes; None without one. InputError where it loses a message."""
    if not tokenizer.chat_template:
        return None
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS)]
    rest, pieces = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), []
    for mark in MARKS:
        piece, found, rest = rest.partition(mark)
        if not found:
            raise InputError("the LLM's chat template loses a message: mend its chat_template.jinja")
        pieces.append(piece)
    first, _, between = pieces
    specials = [tokenizer.eos_token, *(str(token) for token in tokenizer.added_tokens_decoder.values())]
    ends = [token for token in specials if token and token in between]
    if tokenizer.eos_token in ends or not ends:
        end = tokenizer.eos_token
    else:
        end = min(ends, key=between.index)
    return Frame(first, between.partition(end)[2] or between, rest, end)


def ready(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer with a template, with what ends an answer as its end, and with padding.

    Raises InputError where it has no token that ends a text.
    """
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no eos_token: an answer must end")
    tokenizer.chat_template = tokenizer.chat_template or PLAIN
    tokenizer.eos_token = frame(tokenizer).end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # what is padding is masked, whatever its id
    return tokenizer


def question_ids(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], later: bool = False
) -> list[list[int]]:
    """Questions with what the template writes around them -> token ids; later: not the first of a talk."""
    around = frame(tokenizer)
    if around is not None:
        before = around.later if later else around.first
        questions = [f"{before}{question}{around.after}" for question in questions]
    return _ids(tokenizer, questions)


def prefix_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the template puts before any question: a system prompt, the user's turn begins."""
    if not tokenizer.chat_template:
        return 0
    probes = question_ids(tokenizer, ["What", "is", "a", "1", "("])  # a space may merge with what follows
    return len(commonprefix(probes))


def answer_ids(tokenizer: PreTrainedTokenizerBase, answers: list[str]) -> list[list[int]]:
    """Answers -> token ids, the end included."""
    return [[*ids, tokenizer.eos_token_id] for ids in _ids(tokenizer, answers)]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
