"""This module is a model's tokenizer and chat template as `transformers`, which owns their formats, reads them.

No other module of the gateway's imports `transformers`: that costs 0.6 s and 40 MiB. Tokens are made by the library's Rust part directly, in the state in which
the library itself uses it: truncation and padding that are stored in tokenizer.json are off. A call through its Python part costs 20 us more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model", "sentencepiece.bpe.model")
"""A model has a tokenizer where one of these is."""


class TemplateRefused(Exception):
    """The model's chat template does not compile, or refuses the messages; the text says which."""


class ModelTokenizer:
    """The tokenizer of one model folder. `present`: there is one; `problem`: why one that is there cannot be used. Safe to use in several threads."""

    def __init__(self, model: Path) -> None:
        """Raises whatever the library raises for files that are there and cannot be read: OSError, ValueError or a bare Exception."""
        made: tuple[Any, str] = _load(model) if any((model / name).is_file() for name in _FILES) else (None, "")
        self._whole, self.problem = made
        self.present = self._whole is not None
        self._fast: Any = None
        if self._whole is not None and self._whole.is_fast:
            self._fast = self._whole.backend_tokenizer
            self._fast.no_truncation()
            self._fast.no_padding()
            self._fast.encode_special_tokens = bool(self._whole.split_special_tokens)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of a short text; `special`: with the tokens that the model puts around every text."""
        if self._fast is None:
            return list(self._whole.encode(text, add_special_tokens=special))
        ids: list[int] = self._fast.encode(text, add_special_tokens=special).ids
        return ids

    def encode_long(self, text: str, *, special: bool = True) -> list[int]:
        """Return the same for a long one. A batch lets other threads run meanwhile, which a single text does not."""
        if self._fast is None:
            return self.encode(text, special=special)
        (encoded,) = self._fast.encode_batch([text], add_special_tokens=special)
        ids: list[int] = encoded.ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of token ids, as SGLang's detokenizer makes it: nothing is cleaned up. Ids beyond the vocabulary are passed over."""
        decode = self._whole.decode if self._fast is None else self._fast.decode
        text: str = decode(list(ids), skip_special_tokens=skip_special)
        return text

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text that the model's chat template makes; of several the one named `tool_use` where there are tools, else `default`.

        Raises TemplateRefused, whatever the template raises in its sandbox.
        """
        try:
            text: str = self._whole.apply_chat_template(
                list(messages),
                tools=None if tools is None else list(tools),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **(variables or {}),
            )
        except Exception as error:
            raise TemplateRefused(str(error) or type(error).__name__) from error
        return text

    @property
    def template(self) -> str | None:
        """The source of the chat template that is used without tools; None where the model has none."""
        made = None if self._whole is None else self._whole.chat_template
        if isinstance(made, dict):
            made = made.get("default")
        return made if isinstance(made, str) else None

    @property
    def eos(self) -> int | None:
        """The tokenizer's end-of-sequence token."""
        token = None if self._whole is None else self._whole.eos_token_id
        return token if isinstance(token, int) else None

    @property
    def bos(self) -> int | None:
        """The tokenizer's begin-of-sequence token."""
        token = None if self._whole is None else self._whole.bos_token_id
        return token if isinstance(token, int) else None

    @property
    def normalizer(self) -> object | None:
        """What changes a text before it is cut into tokens. An unknown one may take anything away."""
        return object() if self._fast is None else self._fast.normalizer

    def vocabulary(self) -> Mapping[str, int]:
        """Return every token's text and id, added tokens included."""
        vocabulary: dict[str, int] = {} if self._whole is None else self._whole.get_vocab()
        return vocabulary


def _load(model: Path) -> tuple[Any, str]:
    """Load by the model's own class, as SGLang does; where only code of the model's could (which is not run here), by its tokenizer.json alone.

    Returns the tokenizer, or None and why there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"local_files_only": True, "clean_up_tokenization_spaces": False}
    try:
        return AutoTokenizer.from_pretrained(str(model), trust_remote_code=False, **options), ""
    except Exception as error:
        if not (model / "tokenizer.json").is_file():
            return None, f"{type(error).__name__}: {error}"
        return PreTrainedTokenizerFast.from_pretrained(str(model), **options), ""
