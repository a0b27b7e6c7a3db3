"""The phantom tokenizer: nothing is lost, turns are short, and its files load as any tokenizer's do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep.phantom.pictures import KINDS
from data_prep.phantom.samples import COLUMN_WORDS, LETTERS, LOOK_QUESTION, ROW_WORDS, SIZE_WORDS
from data_prep.phantom.tokenizer import (
    ADDED_TOKENS,
    MAX_IDS,
    SKELETONS,
    SPECIAL_TOKENS,
    build_tokenizer,
    save,
)

TOKENIZER = build_tokenizer()

any_text = st.text(st.characters(exclude_categories=["Cs"]))
near_the_task = st.lists(
    st.sampled_from([*SKELETONS, *SPECIAL_TOKENS, " upper", "rows", "7", " ", "\n", "\r\n", '."', "é", "<|", "𝔘"])
).map("".join)


def turn(thought, name, **arguments):
    return json.dumps({"thought": thought, "actions": [{"name": name, "arguments": arguments}]})


def length(text):
    return len(TOKENIZER.encode(text, add_special_tokens=False))


@given(any_text | near_the_task)
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.integers(0, len(TOKENIZER) - 1)))
def test_any_ids_decode(ids):
    assert isinstance(TOKENIZER.decode(ids), str)


def test_all_bytes_are_known():
    assert length("".join(map(chr, range(256)))) <= 2 * 256
    assert TOKENIZER.unk_token is None


@given(st.integers(0, 10**9))
def test_digits_are_single_tokens(number):
    assert length(str(number)) == len(str(number))


def test_words_of_the_task_are_single_tokens_bare_and_behind_a_space():
    for word in (
        *ROW_WORDS,
        *COLUMN_WORDS,
        *SIZE_WORDS,
        *KINDS,
        *LETTERS,
        "spot",
        "zoom",
        "mark",
        "shows",
        "Terminate",
    ):
        assert length(word) == 1
        assert length(f" {word}") == 1


@pytest.mark.parametrize("size", SIZE_WORDS)
@pytest.mark.parametrize("tool", ["zoom", "mark"])
def test_turns_are_short(size, tool):
    look = turn(f"spot upper left {tool} {size}", tool, box=[[10, 11, 20, 21]])
    answer = turn("shows rows", "Terminate", answer="B")
    assert length(look + "<|im_end|>") == 22
    assert length(answer + "<|im_end|>") == 9


def test_a_full_stop_does_not_break_the_skeleton_behind_it():
    plain, stopped = (turn(f"shows rows{stop}", "Terminate", answer="B") for stop in ("", "."))
    assert length(stopped) == length(plain) + 1


def test_the_prompt_is_short():
    options = "".join(f"\n{letter} {kind}" for letter, kind in zip(LETTERS, KINDS, strict=True))
    assert length(f"{LOOK_QUESTION}\nOptions:{options}") == 12
    content = [{"type": "image"}, {"type": "text", "text": f"{LOOK_QUESTION}\nOptions:{options}"}]
    chat = [{"role": "system", "content": "Look twice."}, {"role": "user", "content": content}]
    prompt = TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert length(prompt) == 28


def test_control_tokens_come_last_and_text_never_makes_one_by_accident():
    first = TOKENIZER.convert_tokens_to_ids(SPECIAL_TOKENS[0])
    assert sorted(TOKENIZER.added_tokens_decoder) == list(range(first, len(TOKENIZER)))
    assert len(TOKENIZER) == first + len(SPECIAL_TOKENS) + len(ADDED_TOKENS) <= MAX_IDS
    assert max(TOKENIZER.encode(turn("spot", "zoom", box=[[1, 2, 3, 4]]))) < first


@pytest.mark.parametrize("model_type", [None, "qwen2_5_vl"])
def test_its_files_load_with_auto_tokenizer(tmp_path, model_type):
    extra = ("The region, enlarged.",)
    save(tmp_path, extra)
    if model_type:  # as beside exported weights, where transformers might prefer that model's own tokenizer class
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nThe region, enlarged. " + turn("spot", "zoom", box=[[1, 20, 3, 40]]) + "<|im_end|>\nµ"
    built = build_tokenizer(extra)
    assert loaded.get_vocab() == built.get_vocab()
    assert loaded.encode(text) == built.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert loaded.chat_template == built.chat_template


def test_building_twice_gives_the_same_ids():
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()


def test_extra_pieces_leave_other_ordinary_ids_alone():
    more = build_tokenizer(["The region, enlarged."])
    assert len(more.encode("The region, enlarged.")) == 1
    text = turn("spot", "zoom", box=[[1, 2, 3, 4]])
    assert more.encode(text) == TOKENIZER.encode(text)


def test_bad_extra_pieces_are_refused():
    with pytest.raises(ValueError, match="empty"):
        build_tokenizer([""])
    with pytest.raises(ValueError, match="at most 512"):
        build_tokenizer([f"piece {n}" for n in range(200)])
