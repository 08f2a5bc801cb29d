"""The tables of README.md and results/README.md have the numbers of the files in results/, and no others."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "results"))

import speedrun
import tables


def test_the_tables_are_what_the_script_writes():
    assert tables.readme() == (ROOT / "README.md").read_text()
    for names in (tables.FLOAT32, tables.BFLOAT16):
        assert f"[{tables.times_as_fast(names)}](results/README.md)" in tables.readme()
    assert tables.results() == (ROOT / "results" / "README.md").read_text()
    assert speedrun.table(tables.read("speedrun.json")) == (ROOT / "results" / "speedrun.md").read_text()


def test_every_table_of_figures_is_written_by_the_script():
    """In the README: a table without that comment has no number with a fraction."""
    for block in re.split(r"\n\n", (ROOT / "README.md").read_text()):
        if block.startswith("|"):
            assert not re.search(r"\d\.\d", block), block


def test_a_log_is_kept_thinned(tmp_path, monkeypatch):
    lines = [{"unigram_nats": 6.0}, *({"step": i, "loss": 1.0} for i in range(1000)),
             {"step": 500, "val_loss": 2.0}, {"final": True, "step": 1000, "val_loss": 1.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(tables, "HERE", str(tmp_path))
    tables.keep(str(tmp_path), "run")
    kept = [json.loads(line) for line in (tmp_path / "logs" / "run.jsonl").read_text().splitlines()]
    assert kept[0] == lines[0] and kept[-2:] == lines[-2:]
    steps = [line["step"] for line in kept if "loss" in line]
    assert len(steps) == 143 and steps[-1] == 999 and {b - a for a, b in zip(steps, steps[1:])} == {7}


def test_links_lead_to_files_that_are_there():
    for text in ("README.md", "results/README.md"):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / text).read_text()):
            if "://" not in link:
                assert ((ROOT / text).parent / link).exists(), link
