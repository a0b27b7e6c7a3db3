"""A small tokenizer for the phantom task: it round-trips any text and encodes the text of the task in few tokens.

It is a byte-level BPE without merges. A piece of text in the vocabulary is one token; any other piece is split into bytes:

    {"thought": "spot upper left zoom   ->   [{"thought": "] [spot] [ upper] [ left] [ zoom]
    glioma                              ->   [g] [l] [i] [o] [m] [a]

The ids start with the 256 bytes, followed by the pieces and the special tokens of Qwen2.5-VL as *added* tokens. As in the
original tokenizer, every added token is a control token, and the text that a model writes in a turn has ordinary ids only.
"""

import os
import re
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MAX_IDS = 512

# In the order of Qwen2.5-VL. As in the original, the tool and code tokens are added but not special.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)

# Fixed text around the words that a model chooses: JSON of a turn, headers of the chat, lists of options.
SKELETONS = (
    '{"thought": "',
    '", "actions": [{"name": "',
    '", "arguments": {"box": [[',
    "], [",
    "]]}}]}",
    '", "arguments": {"answer": "',
    '"}}]}',
    ", ",
    "system\n",
    "user\n",
    "assistant\n",
    "\nOptions:",
    *(f"\n{letter}" for letter in "ABCDE"),
)

# Each is a token on its own and another with a leading space.
WORDS = (
    *("upper", "middle", "lower", "left", "centre", "right"),
    *("close", "medium", "wide"),
    *("flat", "rows", "columns", "checks"),
    *("spot", "zoom", "mark", "shows", "Terminate"),
    *("A", "B", "C", "D", "E"),
    *("Which", "Where", "where", "texture", "is", "the", "and", "lesion"),
    *("Look", "twice", "answer", "Answer", "question", "from", "it", "in", "of", "now", "Now", "then"),
    *("The", "This", "this", "Here", "region", "image", "enlarged", "marked", "zoomed"),
    *("error", "Error", "box", "invalid", "tool"),
    *("yes", "no", "Yes", "No"),
)

# The same for gazes, with the tags of the protocol `medeyes`.
GAZE_SKELETONS = (
    "<reasoning>",
    '</reasoning><action>{"name": "Gaze", "coordinate": [',
    "]}</action>",
    "</reasoning><answer>",
    "</answer>",
    "<feedback>",
    "</feedback>",
)
GAZE_WORDS = ("Search", "odd", "one")

# The same for windows, with the tool of the protocol `viewer`.
WINDOW_SKELETONS = ('", "arguments": {"preset": "', "ct_window")
WINDOW_WORDS = ("lung", "bone", "brain", "soft", "tissue")

# The same for traces, with the markup of the protocol `vrt`. Some of the markup are added tokens, as in Sa2VA's tokenizer.
TRACE_SKELETONS = (
    *(f" <{tag}><obj{number}> " for tag in ("ver", "vea") for number in (1, 2)),
    "</ver>",
    "</vea>",
    "\n\n<answer>",
    "</answer>",
    *(f" {words} {number}" for words, count in (("row", 20), ("column", 20), ("size", 10)) for number in range(count)),
)
OUTLINE_SKELETONS = ("\n\n<action>outline</action>", "Outlined.")  # a call of the protocol `outline`, and what answers it
TRACE_WORDS = ("disc", "square", "triangle", "ring", "or", "higher", "further", "larger")
TRACE_SPECIAL_TOKENS = ("[SEG]",)
TRACE_ADDED_TOKENS = ("<think>", "</think>")

# Pre-tokenization, close to that of Qwen2.5-VL: words with the leading space, single digits, white space. Each punctuation mark
# is a piece of its own, so that a thought's full stop cannot absorb the quotation mark that begins a skeleton. Skeletons are
# matched first, and longer ones before shorter ones, so that none hides another.
_CUTS = r" ?\p{L}+|\p{N}|[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"

# The part of Qwen2.5-VL's chat template that handles text, images and videos.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(extra: Sequence[str] = (), words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of the phantom task. The same arguments always give the same ids.

    Args:
      extra: Further pieces of text that become one token each, such as the sentence of an observation. Like the skeletons of a
        turn, they match wherever they occur. The ids of bytes and words do not depend on them.
      words: Further words, each a token on its own and another with a leading space. Their ids follow those of `extra`.

    Raises:
      ValueError: If an extra piece is empty, or there are more than `MAX_IDS` ids.
    """
    if not all(extra):
        raise ValueError("extra: got an empty piece, expected texts")
    phrases = {*SKELETONS, *extra}
    pieces = (*SKELETONS, *_spaced(WORDS), *extra, *_spaced(words))
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for piece in pieces:
        vocabulary.setdefault(_byte_symbols(piece), len(vocabulary))
    total = len(vocabulary) + len(SPECIAL_TOKENS) + len(ADDED_TOKENS)
    if total > MAX_IDS:
        added = f"{len(extra)} extra pieces and {len(words)} words"
        raise ValueError(f"got {total} ids, including {added}; expected at most {MAX_IDS}")

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    phrase_cuts = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=lambda p: (-len(p), p)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{phrase_cuts}|{_CUTS}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for special, tokens in ((True, SPECIAL_TOKENS), (False, ADDED_TOKENS)):
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def save(directory: str | os.PathLike[str], extra: Sequence[str] = ()) -> None:
    """Writes the tokenizer as files that `transformers.AutoTokenizer.from_pretrained` reads."""
    build_tokenizer(extra).save_pretrained(directory)


def save_for_gazes(directory: str | os.PathLike[str], extra: Sequence[str] = ()) -> None:
    """Writes the tokenizer like `save`, with the tags and words of gazes, which the other tasks do not need."""
    build_tokenizer((*GAZE_SKELETONS, *extra), GAZE_WORDS).save_pretrained(directory)


def save_for_windows(directory: str | os.PathLike[str], extra: Sequence[str] = ()) -> None:
    """Writes the tokenizer like `save`, with the presets of windows, which the other tasks do not need."""
    build_tokenizer((*WINDOW_SKELETONS, *extra), WINDOW_WORDS).save_pretrained(directory)


def save_for_traces(directory: str | os.PathLike[str], extra: Sequence[str] = ()) -> None:
    """Writes the tokenizer like `save`, with the markup and words of traces, which the other tasks do not need."""
    tokenizer = build_tokenizer((*TRACE_SKELETONS, *extra), TRACE_WORDS)
    tokenizer.add_tokens([*TRACE_SPECIAL_TOKENS], special_tokens=True)
    tokenizer.add_tokens([*TRACE_ADDED_TOKENS])
    tokenizer.save_pretrained(directory)


def save_for_outlines(directory: str | os.PathLike[str], extra: Sequence[str] = ()) -> None:
    """Writes the tokenizer like `save_for_traces`, with one token each for a call of `outline` and its observation."""
    save_for_traces(directory, (*OUTLINE_SKELETONS, *extra))


def _spaced(words: Iterable[str]) -> list[str]:
    return [space + word for word in words for space in ("", " ")]


def _byte_symbols(text: str) -> str:
    """Returns the text in the byte-level alphabet: " upper" becomes "Ġupper"."""
    cuts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(cut for cut, _ in cuts)
