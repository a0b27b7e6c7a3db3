"""VRT's protocol with a tokenizer that has its markup, as the published one has it."""

import dataclasses
from functools import cache
from tempfile import TemporaryDirectory

from data_prep.phantom.tokenizer import build_tokenizer
from tests.kit import tiny
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.processor import Processor

VRT = PROTOCOLS["vrt"]


@cache
def folder() -> TemporaryDirectory:
    """Returns the directory of the tokenizer."""
    directory = TemporaryDirectory()
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["[SEG]"], special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(directory.name)
    return directory


@cache
def chat() -> Chat:
    return Chat(folder().name).allowing(VRT.allowed_tokens)


def processor() -> Processor:
    return dataclasses.replace(tiny.processor(4), chat=chat())
