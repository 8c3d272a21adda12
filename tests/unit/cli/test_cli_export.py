"""`llm-qfl export` and `llm-qfl predict --with language`: a run's adapter on its own model or not at all."""

import csv
import importlib.util
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from llm_qfl.cli.main import app
from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.data.features import FeatureMap
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.setup import Setup
from llm_qfl.language import files
from llm_qfl.language.export import export_adapter
from llm_qfl.language.models import load_base
from llm_qfl.language.server import ServerLanguage

CLASSES = ("negative", "positive")
BIAS = {"positive": -0.75, "negative": 0.75}
TEXTS = ("I love this, truly", 'it is "bad", and sad', "meh")
OLD_NAME = "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft 0.21 asks transformers 5.23 by its old name


def make_run(folder, model="tiny-6", task="classification"):
    """What a run leaves behind of its language model, with an adapter whose update is felt."""
    config = LanguageConfig(model=str(model), adapter_layers=2, beta=0.5, rank=3, device="cpu", dtype="float32")
    server = ServerLanguage(load_base(config.model, folder), config, seed=3)
    rng = np.random.default_rng(0)
    values = {k: rng.normal(0, 0.2, v.shape).astype(np.float32) for k, v in server.adapter.arrays().items()}
    server.set_adapter(values)
    card = {"rounds": "3", "method": "fedbiot"}
    export_adapter(folder / "adapter", server.base, server.adapter, values, card, class_bias=BIAS)
    plan = TextPlan("text", "Text: {row}\nClass:", CLASSES)
    none = FeatureMap("none", np.zeros(1), np.ones(1), np.eye(1))
    setup = Setup(CLASSES, "language", 4, ("tweet",), none, plan)
    (folder / "model").mkdir()
    (folder / "model" / "features.json").write_text(json.dumps({**setup.to_dict(), "model": {}}))
    keys = {"language.model": str(model), "language.task": task, "language.max-tokens": 80}
    (folder / "config.json").write_text(json.dumps({"config": keys}))
    return folder


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the run folder to spoil."""
    return shutil.copytree(made, tmp_path / "the-run")


@pytest.fixture
def data(tmp_path):
    with open(tmp_path / "tweets.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "tweet"], *enumerate(TEXTS)])
    return tmp_path / "tweets.csv"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code in (0, 2), (result.output, result.exception)
    return result


def refused(message, *arguments):
    """One line on the terminal, exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.output), result.output
    assert result.output.count("\n") == 1, result.output


def plain_probabilities(model, tokenizer):
    """p(class | text) with transformers alone: one pass a row and word, softmax of the sums."""
    found = []
    for text in TEXTS:
        sums = []
        for word in CLASSES:
            prompt, whole = (
                tokenizer(t)["input_ids"] for t in (f"Text: {text}\nClass: ", f"Text: {text}\nClass: {word}")
            )
            with torch.no_grad():
                each = torch.log_softmax(model(torch.tensor([whole]), use_cache=False).logits[0].double(), -1)
            sums.append(sum(each[i - 1, whole[i]].item() for i in range(len(prompt), len(whole))))
        found.append(np.exp(sums) / np.exp(sums).sum())
    return np.array(found)


def predictions(*arguments):
    result = run("predict", *arguments)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.output)))
    found = np.array([[float(row[f"probability_{name}"]) for name in CLASSES] for row in rows])
    assert [row["prediction"] for row in rows] == [CLASSES[i] for i in found.argmax(axis=1)]
    return found


@pytest.mark.filterwarnings(OLD_NAME)
def test_exported_folder_and_predictions_are_those_of_peft(folder, data, tmp_path):
    result = run("export", folder, "--to", tmp_path / "out" / "adapter")
    assert (result.exit_code, result.output.strip()) == (0, str(tmp_path / "out" / "adapter")), result.output
    for path in (folder / "adapter").iterdir():
        assert (tmp_path / "out" / "adapter" / path.name).read_bytes() == path.read_bytes()
    base = load_base("tiny-6", tmp_path)
    peft = PeftModel.from_pretrained(base.model, tmp_path / "out" / "adapter")
    found = predictions(folder, data, "--with", "language")
    np.testing.assert_allclose(found, plain_probabilities(peft, base.tokenizer), atol=1e-5)
    with peft.disable_adapter():
        assert np.abs(found - plain_probabilities(peft, base.tokenizer)).max() > 1e-2


def test_the_prior_that_the_run_measured_is_divided_out(folder, data):
    plain = predictions(folder, data, "--with", "language")
    odds = plain * np.exp([BIAS[name] for name in CLASSES])
    found = predictions(folder, data, "--with", "language", "--flat-prior")
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), rtol=1e-6)
    card = (folder / "adapter" / "README.md").read_text()
    assert "| class biases for a flat prior, nats | positive -0.750, negative +0.750 |" in card
    refused("--flat-prior is about the language model", "predict", folder, data, "--flat-prior")


def test_biases_that_are_missing_or_damaged_are_refused(folder, data):
    path, asked = folder / "adapter" / "base.json", ("predict", folder, data, "--with", "language")
    about = json.loads(path.read_text())
    plain = predictions(*asked[1:])
    for bias in ({"negative": 0.5}, {"negative": 0.5, "good": -0.5}, {}):
        path.write_text(json.dumps({**about, "class-bias": bias}))
        refused("--flat-prior needs class biases of negative, positive", *asked, "--flat-prior")
        np.testing.assert_array_equal(predictions(*asked[1:]), plain)
    del about["class-bias"]
    path.write_text(json.dumps(about))  # of a run before there were any
    refused("got none; they are measured where", *asked, "--flat-prior")
    for bias in ("12", None, [0.5, -0.5], {"negative": True}, {"negative": "1"}, {"negative": float("nan")}):
        path.write_text(json.dumps({**about, "class-bias": bias}))
        refused("expected class-bias to map label words to numbers", *asked)


@pytest.mark.filterwarnings(OLD_NAME)
def test_merged_model_needs_transformers_alone(folder, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("export", folder, "--merge")
    assert (result.exit_code, result.stdout.strip()) == (0, "the-run-merged"), result.output
    merged = tmp_path / "the-run-merged"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".the-run-merged")]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in merged.iterdir()}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    found = predictions(folder, data, "--with", "language")
    np.testing.assert_allclose(plain_probabilities(model, tokenizer), found, atol=1e-5)
    card = (merged / "README.md").read_text()
    assert load_base("tiny-6", tmp_path).digest in card
    assert "| rounds | 3 |" in card
    refused("is there already", "export", folder, "--merge")
    refused("is there already", "export", folder, "--to", merged)


@pytest.mark.filterwarnings(OLD_NAME)
def test_base_model_in_a_folder(data, tmp_path):
    base = load_base("tiny-6", tmp_path)
    there = tmp_path / "base"
    base.model.save_pretrained(there)
    base.tokenizer.save_pretrained(there)
    folder = tmp_path / "run"
    folder.mkdir()
    make_run(folder, there)
    expected = predictions(folder, data, "--with", "language")  # where the run had it
    assert str(tmp_path) not in "".join(path.read_text(errors="ignore") for path in (folder / "adapter").iterdir())
    there.rename(tmp_path / "elsewhere")
    for arguments in (["export", folder, "--to", tmp_path / "out"], ["predict", folder, data, "--with", "language"]):
        refused("language.model: expected .*name it with --base", *arguments)
    found = predictions(folder, data, "--with", "language", "--base", tmp_path / "elsewhere")
    np.testing.assert_array_equal(found, expected)
    assert run("export", folder, "--merge", "--to", tmp_path / "out", "--base", tmp_path / "elsewhere").exit_code == 0
    other = load_base("tiny-5", tmp_path)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    refused(
        r"made for base \(\w{16}\), the model given is .*other \(\w{16}\); name the right one with --base",
        *("export", folder, "--merge", "--to", tmp_path / "out2", "--base", tmp_path / "other"),
    )
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("arguments", [["export"], ["export", "--merge"], ["predict", "--with", "language"]])
class TestRefusals:
    def ask(self, message, folder, data, arguments, *more):
        command, *options = arguments
        target = folder.parent / "target"
        rest = [data] if command == "predict" else ["--to", target]
        refused(message, command, folder, *rest, *options, *more)
        assert not target.exists()

    def test_no_adapter(self, folder, data, arguments):
        shutil.rmtree(folder / "adapter")
        self.ask("no adapter/base.json in it; expected the folder of a finished run", folder, data, arguments)

    def test_another_base(self, folder, data, arguments):
        self.ask("made for tiny-6 .* the model given is tiny-5", folder, data, arguments, "--base", "tiny-5")

    def test_unknown_stack(self, folder, data, arguments, tmp_path):
        (tmp_path / "strange").mkdir()
        (tmp_path / "strange" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
        self.ask("stack is 'mamba', known are", folder, data, arguments, "--base", tmp_path / "strange")

    def test_truncated_file(self, folder, data, arguments):
        path = folder / "adapter" / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-20])
        self.ask(r"no whole safetensors file \(cut short\?\)", folder, data, arguments)

    def test_a_matrix_is_missing(self, folder, data, arguments):
        path = folder / "adapter" / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file(dict(list(tensors.items())[1:]), path)
        self.ask("expected 28 matrices, got 27: missing", folder, data, arguments)

    def test_of_another_plan(self, folder, data, arguments):
        path = folder / "adapter" / "base.json"
        about = json.loads(path.read_text())
        path.write_text(json.dumps({**about, "layers": [3, 5]}))
        self.ask(r"made for the layers \[3, 5\], its matrices are of \[4, 5\]", folder, data, arguments)

    @pytest.mark.parametrize("change", [{"lora_alpha": 60}, {"use_rslora": True}, {"layers_to_transform": [5]}])
    def test_peft_would_read_something_else(self, folder, data, arguments, change):
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        self.ask(f"adapter_config.json does not go with its other files: {next(iter(change))}", folder, data, arguments)

    def test_packages(self, folder, data, arguments, monkeypatch):
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else found(name, *a))
        self.ask("not installed here: peft; install llm-qfl with its extra `language`", folder, data, arguments)

    def test_no_room(self, folder, data, arguments, monkeypatch):
        if arguments[0] == "export":
            monkeypatch.setattr(files, "SPARE", 1 << 60)
            self.ask("no room on disk for the", folder, data, arguments)


@pytest.mark.filterwarnings(OLD_NAME)
def test_a_relative_base_folder_starts_at_the_project(folder, data, tmp_path, monkeypatch):
    base = load_base("tiny-6", tmp_path)
    project = tmp_path / "project"
    base.model.save_pretrained(project / "models" / "base")
    base.tokenizer.save_pretrained(project / "models" / "base")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    make_run(fresh, project / "models" / "base")
    config = json.loads((fresh / "config.json").read_text())
    config["config"]["language.model"] = "./models/base"
    (fresh / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("LLM_QFL_PROJECT", str(project))
    assert predictions(fresh, data, "--with", "language").shape == (3, 2)


def test_rows_of_columns(folder, data, tmp_path):
    """The words that the run chose for its columns are what the model reads."""
    plan = TextPlan("levels", "{row}\nClass:", CLASSES, (1,), ("width",), (2.0,), (1.0,))
    numbers = FeatureMap("none", np.zeros(2), np.ones(2), np.eye(2))
    setup = Setup(CLASSES, "columns", 4, ("height", "width"), numbers, plan)
    (folder / "model" / "features.json").write_text(json.dumps(setup.to_dict()))
    (tmp_path / "rows.csv").write_text("width,height\n2.1,5\n9,5\n1.9,-7\n")
    found = predictions(folder, tmp_path / "rows.csv", "--with", "language")
    np.testing.assert_array_equal(found[0], found[2])  # both average
    assert not np.array_equal(found[0], found[1])
    (tmp_path / "rows.csv").write_text("width,height\nwide,5\n")
    refused("column 'width' is not numeric", "predict", folder, tmp_path / "rows.csv", "--with", "language")


def test_what_predict_needs_of_the_run(folder, data, tmp_path):
    with_language = ["predict", folder, data, "--with", "language"]
    config, features = folder / "config.json", folder / "model" / "features.json"
    texts = {path: path.read_text() for path in (config, features)}
    for path, old, new, message in (
        (config, '"classification"', '"generation"', "tuned to write texts"),
        (config, '"language.max-tokens": 80', '"x": 1', "expected a number at language.max-tokens, got None"),
        (config, "{", "", "cannot be read as a run's"),
        (config, "80", "20", "the prompt without the row's text takes .* raise language.max-tokens"),
        (
            features,
            '"words": ["negative"',
            '"words": ["pos"',
            "'pos' are the beginning of those of 'positive'",
        ),
        (features, '"text": {', '"no-text": {', "does not say how rows read as text"),
        (features, '"class_names"', '"names"', "cannot be read as a run's"),
    ):
        assert old in texts[path], (old, texts[path])
        path.write_text(texts[path].replace(old, new, 1))
        refused(message, *with_language)
        path.write_text(texts[path])
    (tmp_path / "other.csv").write_text("text\nhello\n")
    refused("missing columns: tweet", "predict", folder, tmp_path / "other.csv", "--with", "language")
    (tmp_path / "empty.csv").write_text("tweet,id\n,1\n")
    refused("1 empty texts in column 'tweet'", "predict", folder, tmp_path / "empty.csv", "--with", "language")
    refused("cannot be read as a model", "predict", folder, data)
    assert run(*with_language).exit_code == 0
