"""
The first 20 losses of each model and recipe are those of golden.json: float32, one thread, made-up text.

    python tests/test_golden.py        # writes golden.json anew, where they are meant to change
"""

import json
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pytest

import train_mlm

GOLDEN = Path(__file__).parent / "golden.json"
RUNS = [(model, recipe) for model in ("bert", "roberta", "albert") for recipe in ("fast", "paper")]


def write_text(file):
    """Sentences of invented words, of which each likes to follow one of two. NumPy keeps this generator's
    numbers the same for all time."""
    rng = np.random.RandomState(0)
    words = ["".join(rng.choice(list("bdfgklmnprst")) + rng.choice(list("aeiou")) for _ in range(n))
             for n in rng.randint(1, 4, 200)]
    def sentence():
        chain = [rng.randint(200)]
        while len(chain) < rng.randint(4, 16):
            chain.append((7 * chain[-1] + rng.randint(2)) % 200)
        return " ".join(words[i] for i in chain).capitalize() + "."
    file.write_text("\n\n".join("\n".join(" ".join(sentence() for _ in range(4)) for _ in range(5))
                                for _ in range(60)))


def losses(folder, model, recipe, *more):
    """-> of 20 steps, as the log has them. The folder keeps the text and its token files."""
    text, out_dir = Path(folder) / "text.txt", Path(folder) / "out"
    write_text(text)
    train_mlm.main(["--model", model, "--preset", f"{model}-tiny", "--recipe", recipe, "--data", str(text),
                    "--cache_dir", str(Path(folder) / "cache"), "--vocab_size", "400", "--seq_length", "64",
                    "--batch_size", "16", "--max_steps", "20", "--device", "cpu", "--dtype", "float32",
                    "--threads", "1", "--log_interval", "1", "--eval_rows", "16", "--overwrite",
                    "--out_dir", str(out_dir), *more])
    lines = [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "lr" in line and "step" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("model, recipe", RUNS)
def test_the_first_losses(model, recipe, folder):
    """Another processor sums in another order; what dropout draws, and all else, is the same everywhere."""
    golden = json.loads(GOLDEN.read_text())[f"{model} {recipe}"]
    found = losses(folder, model, recipe)
    assert len(found) == 20 and found == pytest.approx(golden, rel=1e-5)


@pytest.mark.parametrize("more", [("--threads", "2"), ("--accumulation", "4")])
def test_threads_and_micro_batches_change_no_loss(more, folder):
    """The fast recipe has no dropout, which micro-batches draw one after the other."""
    one = losses(folder, "bert", "fast")
    assert losses(folder, "bert", "fast", *more) == pytest.approx(one, rel=1e-6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        made = {f"{model} {recipe}": losses(temporary, model, recipe) for model, recipe in RUNS}
    lines = [f'"{run}": {json.dumps(values)}' for run, values in made.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
