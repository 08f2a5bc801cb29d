"""Tests import the project's files from the folder above and reach no network."""

import os
import socket
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        raise OSError(f"a test tried to connect to {address}")
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Real English: docstrings of the standard library, a paragraph a line, a blank line between modules."""
    import data
    documents = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-f]*.py")):
        paragraphs = [line for text in data.docstrings(str(file)) for line in data.prose(text)]
        if paragraphs:
            documents.append("\n".join(paragraphs))
    file = tmp_path_factory.mktemp("text") / "corpus.txt"
    file.write_text("\n\n".join(documents), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def prepared(text_file, tmp_path_factory):
    """Its token files, with a byte-level BPE of 600 ids."""
    import data
    cache = str(tmp_path_factory.mktemp("cache"))
    return data.prepare(data.open_corpus([str(text_file)]), None, "bpe", 600, cache)
