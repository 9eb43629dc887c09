"""Look at the text of a training as far as planning does: where it comes from, what identifies it.

No torch, no tokenizer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mxsweep.config.checks import expanded, file_digest, is_folder
from mxsweep.config.knob_defaults import defaults
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.named_texts import check_text_file, has_rows
from mxsweep.config.refusals import longer_than_the_model, too_little_text, unreadable
from mxsweep.config.task_config import TaskConfig
from mxsweep.config.train_config import CorpusConfig, InitConfig
from mxsweep.files.checkpoints import EMBEDDED, model_folder, read_mapping, tokenizer_files
from mxsweep.files.digests import file_digests
from mxsweep.files.text_files import PACKED
from mxsweep.files.visible_files import visible_files
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import written


def check_corpus(config: CorpusConfig, task: TaskConfig) -> None:
    """Refuse a corpus that is not there, or that a task evaluates, as far as can be told without reading it all.

    Raises:
        ConfigError: no path, or one that is not there or does not begin as a text; a file for validation or for a
            task that is the corpus.
    """
    if config.source == "stories":
        for knob in ("path", "heldout"):
            if (value := getattr(config, knob)) is not None:
                raise ConfigError(
                    f"corpus.{knob}: {value!r} goes with corpus=text or hub, and corpus=stories takes none"
                )
        for knob in ("name", "split", "field"):
            if (value := getattr(config, knob)) != (default := defaults()[f"corpus.{knob}"]):
                raise ConfigError(
                    f"corpus.{knob}: {value!r} goes with corpus=hub{' or text' if knob == 'field' else ''}, and "
                    f"corpus=stories takes none; allowed: {written(default)}"
                )
        return
    if config.path is None:
        what = {"text": "a text file", "hub": "a data set's name or folder"}[config.source]
        raise ConfigError(f"corpus.path: none is given; corpus={config.source} needs {what}")
    if config.source == "text":
        check_text_file("corpus.path", config.path, config.field)
    elif not expanded("corpus.path", config.path).exists() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", config.path):
        raise ConfigError(
            f"corpus.path: {config.path!r} does not exist; give the name of a data set on the Hugging Face hub "
            "(owner/name), a folder or a file of one"
        )
    if config.heldout is not None:
        check_text_file("corpus.heldout", config.heldout, config.field)
    _refuse_same_file(config, task)


def check_enough_text(corpus: CorpusConfig, init: InitConfig, length: int) -> None:
    """Refuse a file that is too short for a sequence to train on and one held out, where its size alone says so.

    It does where bytes are tokens, and nothing packs them: rows hold less text than they take.

    Raises:
        ConfigError: with one sentence.
    """
    in_bytes = init.is_random and init.tokenizer in ("auto", "bytes")
    if corpus.source != "text" or not in_bytes:
        return
    if (tokens := _bytes_of("corpus.path", corpus.path)) is not None:
        share = 0 if corpus.heldout is not None else round(corpus.heldout_share * tokens)
        _check_long_enough(length, "the corpus", tokens - share)
        if corpus.heldout is None:
            _check_long_enough(length, f"corpus.heldout_share={corpus.heldout_share:g}", share)
    if (tokens := _bytes_of("corpus.heldout", corpus.heldout)) is not None:
        _check_long_enough(length, "corpus.heldout", tokens)


def _bytes_of(knob: str, name: str | None) -> int | None:
    """Return how many tokens a file has at most, its end's among them; None without one, or where it is packed."""
    path = None if name is None else expanded(knob, name)
    return None if path is None or path.suffix.lower() in PACKED else path.stat().st_size + 1


def _check_long_enough(length: int, of: str, tokens: int) -> None:
    if tokens <= length:
        raise ConfigError(too_little_text(length, of, tokens))


def corpus_identity(config: CorpusConfig) -> dict[str, Any]:
    """Return what decides the text, files by their content. Raises ConfigError for a file that vanished."""
    if config.source == "stories":
        return {"source": config.source}
    path = expanded("corpus.path", config.path or "")
    if config.source == "text":
        what = _text_identity("corpus.path", path, config.field)
    else:
        files = _files(path)
        names = [file.relative_to(path).as_posix() if path.is_dir() else file.suffix for file in files]
        what = {"files": dict(zip(names, _digests("corpus.path", files), strict=True))} if files else {}
        what |= {} if files else {"name": config.path}
        what |= {"configuration": config.name, "split": config.split, "field": config.field}
    if config.heldout is not None:
        heldout: Any = _text_identity("corpus.heldout", expanded("corpus.heldout", config.heldout), config.field)
    else:
        heldout = config.heldout_share
    return {"source": config.source, **what, "heldout": heldout}


def _text_identity(knob: str, path: Path, field: str) -> dict[str, Any]:
    """Return what decides the text of a file: its content, and of rows the field."""
    return {"file": _digests(knob, [path])[0]} | ({"field": field} if has_rows(path) else {})


def init_identity(config: InitConfig, corpus: CorpusConfig) -> dict[str, Any]:
    """Return what decides the weights that a training begins with: sizes and tokenizer, a folder's by its content."""
    tokenizer: Any = config.tokenizer
    if tokenizer == "auto":
        tokenizer = "words" if corpus.source == "stories" else "bytes"
    elif tokenizer != "bytes":
        folder = expanded("init.tokenizer", tokenizer)
        files = tokenizer_files(folder)
        tokenizer = dict(zip((file.name for file in files), _digests("init.tokenizer", files), strict=True))
    return {**config.sizes, "tokenizer": tokenizer}


def check_init(config: InitConfig, model: ModelConfig, length: int) -> None:
    """Refuse sizes of which there is no model, a tokenizer that is not there, and a model that has no say.

    So too sequences of a length that the model's settings, where they are here, do not allow.

    Raises:
        ConfigError: with one sentence.
    """
    if not config.is_random:
        for name, size in config.sizes.items():
            if size:
                raise ConfigError(f"init.{name}: {size} has no say with init=model, whose sizes are the model's own")
        if config.tokenizer != "auto":
            raise ConfigError(f"init.tokenizer: {config.tokenizer!r} has no say with init=model; allowed: auto")
        if (longest := _longest_text(model.path)) is not None and longest < length:
            raise ConfigError(longer_than_the_model(length, model.label, longest))
        return
    if model.path != EMBEDDED:
        raise ConfigError(
            f"model: {model.label!r} has no say where training begins with random weights; allowed: train=finetune, or "
            "leave it out"
        )
    for name, size in config.sizes.items():
        if size < 1:
            raise ConfigError(f"init.{name}: {size} is not allowed; allowed: at least 1, or 0 with init=model")
    if config.hidden % config.heads or config.hidden // config.heads % 2:
        raise ConfigError(
            f"init.heads: {config.heads} heads do not share {config.hidden} channels (init.hidden) evenly; allowed: "
            "a number that leaves each an even number of channels"
        )
    if config.heads % config.kv_heads:
        raise ConfigError(
            f"init.kv_heads: {config.kv_heads} is no divisor of init.heads, {config.heads}; allowed: a divisor"
        )
    if config.tokenizer not in ("auto", "bytes"):
        folder = expanded("init.tokenizer", config.tokenizer)
        if not is_folder(folder) or not tokenizer_files(folder):
            raise ConfigError(
                f"init.tokenizer: {config.tokenizer!r} is no folder with a tokenizer; allowed: auto, bytes, or a "
                "folder that holds a tokenizer.json"
            )


def _longest_text(path: str) -> int | None:
    """Return how many tokens a model takes, as the config.json of its folder says; None where none is here."""
    folder = model_folder(path)
    settings = {} if folder is None else read_mapping(folder / "config.json")
    settings = settings.get("text_config", settings)
    longest = settings.get("max_position_embeddings") if isinstance(settings, dict) else None
    return longest if isinstance(longest, int) else None


def _files(path: Path) -> list[Path]:
    """Return the files of a data set that is here; none of one on the hub. Raises ConfigError."""
    try:
        return visible_files(path) if path.is_file() or is_folder(path) else []
    except OSError as error:
        raise ConfigError(
            f"corpus.path: {str(path)!r} cannot be read: {error.filename}: {error.strerror or error}"
        ) from None


def _digests(knob: str, files: list[Path]) -> list[str]:
    try:
        return file_digests(files)
    except OSError as error:
        raise ConfigError(unreadable(knob, str(files[0]), error)) from None


def _refuse_same_file(config: CorpusConfig, task: TaskConfig) -> None:
    """Raise ConfigError where a file that is trained on is one that is evaluated, for the loss or by a task."""
    path = expanded("corpus.path", str(config.path))
    trained = set(_digests("corpus.path", _files(path)))
    if (
        config.heldout is not None
        and _digests("corpus.heldout", [expanded("corpus.heldout", config.heldout)])[0] in trained
    ):
        raise ConfigError(
            f"corpus.heldout: {config.heldout!r} holds the same as corpus.path; allowed: a text that is not trained on"
        )
    for name, file in task.data.items():
        if file_digest(file) in trained:
            raise ConfigError(
                f"corpus.path: {config.path!r} holds the same as {file!r}, which {name} evaluates; allowed: texts that "
                "are not evaluated"
            )
