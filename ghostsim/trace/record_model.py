"""Loads what is to be recorded: a causal LM in float32 with eager attention, and the token ids it reads."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn

from ghostsim.errors import InputError, Location
from ghostsim.trace.format import file_sha256

Ids = npt.NDArray[np.int32]
PREFILL = 512
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def load_model(name: str, device: str) -> nn.Module:
    """Load a causal LM from a folder or by name.

    Raises
    ------
    InputError
        If transformers cannot load it.
    """
    _quiet()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, attn_implementation="eager"
        )
        return model.to(device).eval()
    except Exception as error:  # noqa: BLE001  (loaders of third parties raise anything)
        raise _refused(name, "model", error) from None


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _refused(name: str, what: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(
        f"MODEL: found {name!r}, whose {what} fails ({reason}), "
        "expected the folder or the name of a causal language model"
    )


def model_folder(name: str) -> Path:
    """Return the folder that holds the files of a model."""
    if Path(name).is_dir():
        return Path(name)
    return Path(transformers.utils.cached_file(name, "config.json")).parent


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights file; of several, that of their sorted `sha256sum` lines."""
    files = next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise InputError(f"MODEL: found no weights, expected a file like {WEIGHTS[0]}", Location(folder))
    sums = [(file_sha256(file), file.name) for file in files]
    if len(sums) == 1:
        return sums[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in sums).encode()).hexdigest()


def read_ids(source: Path, model: str, vocabulary: int) -> Ids:
    """Return the token ids of a file: `.npy` and `.json` hold ids, anything else is text for the model's tokenizer.

    Raises
    ------
    InputError
        If the file cannot be read or holds no token of the model.
    """
    try:
        ids = _ids_of(source, model)
    except (OSError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"found no text and no token ids ({reason}), expected one", Location(source)) from None
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if ids.ndim != 1 or len(wrong):
        what = f"token id {wrong.flat[0]}" if len(wrong) else f"an array of {ids.ndim} dimensions"
        raise InputError(f"found {what}, expected a list of ids from 0 to {vocabulary - 1}", Location(source))
    return ids.astype(np.int32)


def _ids_of(source: Path, model: str) -> npt.NDArray[np.int64]:
    if source.suffix == ".npy":
        return np.asarray(np.load(source, allow_pickle=False).astype(np.int64, casting="safe"))
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".json":
        return np.asarray([_whole(number) for number in json.loads(text)], dtype=np.int64)
    return np.asarray(load_tokenizer(model)(text)["input_ids"], dtype=np.int64)


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{number!r} is no token id")
    return number


def load_tokenizer(model: str) -> Callable[..., dict[str, Any]]:
    """Load the tokenizer of a model.

    Raises
    ------
    InputError
        If transformers cannot load it.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except Exception as error:  # noqa: BLE001
        raise _refused(model, "tokenizer", error) from None
    tokenizer.model_max_length = 1 << 40  # the length is checked where it is known
    return cast(Callable[..., dict[str, Any]], tokenizer)


def token_classes(ids: Ids, model: str) -> npt.NDArray[np.uint8]:
    """Return the class of each token: 1 a special token of the model's tokenizer, 2 punctuation, 0 anything else."""
    tokenizer: Any = load_tokenizer(model)
    distinct, place = np.unique(ids, return_inverse=True)
    special = set(tokenizer.all_special_ids)
    kinds = [1 if i in special else 2 if _punctuation(tokenizer.decode([i])) else 0 for i in distinct.tolist()]
    return np.asarray(kinds, dtype=np.uint8)[place]


def _punctuation(text: str) -> bool:
    shown = text.strip()
    return bool(shown) and not any(char.isalnum() for char in shown)


def check_runs(model: nn.Module, ids: Tensor) -> None:
    """Run the model as it is, so that its own faults are not taken for the recorder's.

    Raises
    ------
    InputError
        If it fails.
    """
    try:
        with torch.inference_mode():
            model(input_ids=ids[None], use_cache=False)
    except Exception as error:  # noqa: BLE001
        raise _refused(type(model).__name__, "forward", error) from None


def generate(model: nn.Module, prompt: Ids, count: int, say: Callable[[str], None]) -> Ids:
    """Return `prompt` and `count` more tokens, each the likeliest one."""
    # transformers renamed the argument in 5.x and warns of the old name.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    device = next(model.parameters()).device
    ids, cache = torch.tensor(prompt, dtype=torch.long, device=device)[None], None
    pending, new = list(ids.split(PREFILL, dim=1)), list[int]()
    with torch.inference_mode():
        while len(new) < count:
            say(f"generate token {len(new) + 1} of {count}")
            out = model(input_ids=pending.pop(0), use_cache=True, **{name: cache})
            cache = getattr(out, name)
            if not pending:
                new.append(int(out.logits[0, -1].argmax()))
                pending = [torch.tensor([new[-1:]], device=device)]
    return np.concatenate([prompt, np.asarray(new, dtype=np.int32)])


def losses(logits: Tensor, following: Ids) -> npt.NDArray[np.float32]:
    """Return the loss in nats of each step's prediction of the token that follows it."""
    target = torch.tensor(following, dtype=torch.long, device=logits.device)
    loss = nn.functional.cross_entropy(logits.float(), target, reduction="none")
    return np.asarray(loss.cpu().numpy(), dtype=np.float32)
