"""Serves a checkpoint to clients of OpenAI's chat completions API: single replies, and whole episodes of a protocol."""
