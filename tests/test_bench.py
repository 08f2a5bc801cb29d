"""bench.py: what is counted, and that both sides compute the same. No times."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bench
import roberta
import runtime
from conftest import ROOT

EXACT = ["--dropout", "0", "--dtype", "float32", "--threads", "1", "--steps", "1", "--rounds", "1"]


@pytest.mark.parametrize("case, expected", [
    # K = round(0.15 * 13) = 2 masked and the first token; two layers of H = 128, the second for 3 queries:
    # 6 * (32 tokens * 2 HH + 19 queries * 10 HH + 2 (HH + 200 H)) + 12 * 16 H * 19, by 3 rows
    ("bert-tiny:3x16:200",
     3 * (6 * (64 * 128**2 + 190 * 128**2 + 2 * (128**2 + 200 * 128)) + 12 * 16 * 128 * 19)),
    # RoBERTa: no first token
    ("roberta-tiny:3x16:200",
     3 * (6 * (64 * 128**2 + 180 * 128**2 + 2 * (128**2 + 200 * 128)) + 12 * 16 * 128 * 18)),
    # ALBERT: one layer of H = 256 (64 keys, 10 queries), and E = 128 in embeddings and head; K = round(9.15)
    ("albert-laptop:1x64:500",
     6 * (64 * 2 * 256**2 + 10 * 10 * 256**2 + 9 * (256 * 128 + 128 * 500) + 64 * 128 * 256)
     + 12 * 64 * 256 * 10),
])
def test_useful_flops_by_hand(case, expected):
    assert bench.useful_flops(bench.read_case(case)) == expected


def test_useful_flops_are_those_that_pytorch_counts():
    """In a forward pass, a third of them; the last layer's are fewer there, too."""
    case = bench.read_case("roberta-tiny:2x16:200")
    model = roberta.ForPreTraining(roberta.Config(**case["config"])).eval()
    batch = bench.make_batch(case)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch["input_ids"], positions=batch["positions"])  # the fused kernel's are not counted
    assert bench.useful_flops(case) == 3 * counter.get_total_flops()


def test_what_a_case_changes():
    case = bench.read_case("bert-laptop", dropout=0.2, layers=3, mask_prob=0.3, rows=5, length=128)
    config = case["config"]
    assert (case["rows"], case["length"], case["masked"], config["vocab_size"]) == (5, 128, 38, 8192)
    assert config["num_hidden_layers"] == 3
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.2
    batch = bench.make_batch(case)
    assert torch.equal(batch["labels"], batch["input_ids"].gather(1, batch["positions"]))
    assert all(len(set(row)) == 38 and 0 < min(row) and max(row) < 127 for row in batch["positions"].tolist())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "figures.json"
    bench.main(["pretraining", "--cases", "bert-tiny:2x16:200", *EXACT, "--json", str(file)])
    return json.loads(file.read_text())


def test_both_sides_have_one_loss(measured):
    ours, default, best = measured["results"]
    assert [row["side"] for row in measured["results"]] == ["ours", "default", "best"]
    assert ours["how"] == "float32" and default["how"] == "float32 sdpa"
    assert best["how"] == min(best["tried_ms"], key=best["tried_ms"].get)
    assert len(best["tried_ms"]) == (4 if runtime.pick_dtype(torch.device("cpu")) == "bfloat16" else 2)
    assert default["loss"] == pytest.approx(ours["loss"], abs=1e-3)
    assert best["loss"] == pytest.approx(ours["loss"], abs=0.05)


def test_figures_in_json(measured):
    assert measured["what"] == "pretraining" and "--cases bert-tiny:2x16:200" in measured["command"]
    assert measured["machine"]["torch"] == torch.__version__ and "cores" in measured["machine"]["machine"]
    gflop = bench.useful_flops(bench.read_case("bert-tiny:2x16:200")) / 1e9
    for row in measured["results"]:
        assert row["gflop"] == gflop and row["tokens_per_s"] == pytest.approx(32000 / row["ms"])
        assert row["times_ours"] == pytest.approx(row["ms"] / measured["results"][0]["ms"])
        assert row["times_fast"] == pytest.approx(row["ms"] / row["fast_ms"])


def test_a_worker_knows_nothing_of_the_other_side(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # as runtime sets it in this process
    assert "GOMP_SPINCOUNT" not in bench.environment()
    assert bench.environment(GOMP_SPINCOUNT="300000")["GOMP_SPINCOUNT"] == "300000"
    code = "import sys, bench; sys.exit('runtime' in sys.modules or 'torch' in sys.modules)"
    bench.run("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}")


def test_a_neighbour_ends():
    with pytest.raises(ZeroDivisionError), bench.neighbour("one_thread") as process:
        assert process.poll() is None
        1 / 0
    assert process.poll() is not None


@pytest.mark.parametrize("argv, message", [
    (["pretraining", "--cases", "bert-nano"], "--cases bert-nano: neither one of bert-10m, roberta-18m, "),
    (["costs", "--cases", "bert-tiny:2x9999:200"], "--cases bert-tiny:2x9999:200: rows have 8 to 512 tokens"),
    (["tokenizers", "--cases", "bert-10m"], "tokenizers takes no --cases"),
    (["pretraining", "--json", "/no/such/folder/a.json"], "--json /no/such/folder/a.json cannot be written"),
    (["accuracy"], "accuracy needs --text and --val_text"),
    (["everything"], "invalid choice: 'everything'"),
])
def test_bad_input_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        bench.main(argv)
    out, error = capsys.readouterr()
    assert exit.value.code == 2 and message in error and error.count("\n") == 1 and out == ""
