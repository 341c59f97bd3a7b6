"""The model adapter: replies do not depend on batching, likelihoods agree with the model, damage is named."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import toys

import tasks
from harness.base import UserError, read_jsonl
from tasks import batching, scoring
from tasks.evaluate import diagnose, evaluate
from tasks.lmms import CheckpointModel

BENCHMARKS = ["scienceqa", "gqa", "pope"]


@pytest.fixture
def asked():
    return toys.questions("scienceqa")  # with and without image, of different lengths


def test_replies_do_not_depend_on_the_batch_size(checkpoint, model, tmp_path):
    alone = CheckpointModel(checkpoint, batch_size=1)
    for benchmark in BENCHMARKS:
        protocol, questions = tasks.protocol(f"{benchmark}@miniature"), toys.questions(benchmark)
        batched = evaluate(checkpoint, protocol, questions, model=model, replies_path=tmp_path / "a.jsonl")
        single = evaluate(checkpoint, protocol, questions, model=alone, replies_path=tmp_path / "b.jsonl")
        assert batched == single
        assert len({row["reply"] for row in batched}) > 1, "a model that always says the same cannot show a mix-up"


def ready(model, protocol, questions):
    """The prompts of a protocol, made ready, with their images."""
    shown = [[] if q.image is None else [questions.images[q.image]] for q in questions.questions]
    return model.desk.prompts(tasks.prompts(protocol, questions), shown.__getitem__)


def batches(asked, size):
    return batching.equal([batching.Item(n, row.layout, row.length) for n, row in enumerate(asked.rows)], size)


def test_no_batch_of_equal_lengths_is_padded(model, asked):
    made = ready(model, tasks.protocol("scienceqa@miniature"), asked)
    seen = []
    for batch in batches(made, 4):
        inputs = model.inputs(made, batch)
        assert (inputs["attention_mask"] == 1).all()
        assert not (inputs["input_ids"] == model.processor.tokenizer.pad_token_id).any()
        assert (inputs["input_ids"][:, 0] == 1).all()
        assert (inputs["input_ids"][:, 1] != 1).all(), "the template brings its own start token"
        seen += batch
    assert sorted(seen) == list(range(len(asked.questions)))


def test_replies_file_carries_the_contract_fields(checkpoint, model, asked, tmp_path):
    protocol = tasks.protocol("scienceqa@miniature")
    rows = evaluate(checkpoint, protocol, asked, model=model, replies_path=tmp_path / "replies.jsonl")
    saved = read_jsonl(tmp_path / "replies.jsonl")
    assert saved == rows
    assert list(saved[0]) == ["id", "cluster", "group", "prompt_sha256", "reply", "tokens"]
    assert [row["id"] for row in saved] == [q.id for q in asked.questions]
    digests = [scoring.prompt_digest(p) for p in tasks.prompts(protocol, asked)]
    assert [row["prompt_sha256"] for row in saved] == digests
    assert all(0 < row["tokens"] <= protocol.generation.max_new_tokens for row in saved)


def test_a_model_can_be_evaluated_through_lmms_eval_itself_twice(model):
    """lmms-eval deletes the modules of a model after a run unless told otherwise."""
    from tasks import bridge, engine

    protocol, questions = tasks.protocol("gqa@miniature"), toys.questions("gqa")
    values = [engine.run(model, bridge.build(protocol, questions))["results"] for _ in range(2)]
    assert values[0] == values[1]


def test_gold_logprobs_are_those_of_the_model_fed_one_sequence(model, asked):
    protocol = tasks.protocol("scienceqa@miniature")
    prompts = tasks.prompts(protocol, asked)
    images = [None if q.image is None else asked.images[q.image] for q in asked.questions]
    answers = ["yes", "two dog", "no", "red red red", "a", "b"]
    found = model.gold_logprobs(prompts, images, answers)
    for prompt, image, answer, logs in zip(prompts, images, answers, found, strict=True):
        ids = model.answer_ids(answer)
        assert logs.dtype == np.float32
        assert logs.shape == (len(ids), len(model.processor.tokenizer))
        np.testing.assert_allclose(np.exp(logs.astype(np.float64)).sum(axis=-1), 1.0, atol=1e-5)
        content = ([{"type": "image"}] if image is not None else []) + [{"type": "text", "text": prompt}]
        text = model.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = model.processor(
            text=[text], images=None if image is None else [image], return_tensors="pt", add_special_tokens=False
        )
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logits = model.model(**inputs).logits[0, start - 1 : start - 1 + len(ids)]
        np.testing.assert_allclose(logs, torch.log_softmax(logits, -1).numpy(), atol=1e-4)


def test_the_first_greedy_token_is_the_most_likely_gold_position(model, asked):
    protocol = tasks.protocol("scienceqa@miniature")
    images = [None if q.image is None else asked.images[q.image] for q in asked.questions]
    logs = model.gold_logprobs(tasks.prompts(protocol, asked), images, ["yes"] * len(images))
    made = ready(model, protocol, asked)
    for batch in batches(made, 4):
        first = model.model.generate(**model.inputs(made, batch), max_new_tokens=1, do_sample=False)[:, -1].tolist()
        assert first == [int(logs[n][0].argmax()) for n in batch]


def test_diagnosis_against_itself_and_against_another_model(model, asked):
    protocol = tasks.protocol("scienceqa@miniature")
    own = diagnose(model, protocol, asked)
    assert own.rows["teacher_kl"].isna().all() and own.rows["teacher_agrees"].isna().all()
    same = diagnose(model, protocol, asked, own.logprobs)
    assert same.rows["teacher_agrees"].all()
    assert (same.rows["teacher_kl"] == 0.0).all()
    assert (same.rows["nll"] > 0).all()
    size = len(model.processor.tokenizer)
    assert same.rows["entropy"].between(0, np.log(size)).all()
    assert same.rows["confidence"].between(1 / size, 1).all()
    uniform = [np.full_like(logs, -np.log(size)) for logs in own.logprobs]
    other = diagnose(model, protocol, asked, uniform)
    expected = [float((-np.log(size) - logs).mean()) for logs in own.logprobs]
    np.testing.assert_allclose(other.rows["teacher_kl"].to_numpy(dtype=float), expected, rtol=1e-5)
    assert list(other.rows.columns) == ["protocol", "id", "nll", "confidence", "entropy", "teacher_agrees", "teacher_kl"]


def test_a_teacher_of_other_questions_or_tokens_is_refused(model, asked):
    protocol = tasks.protocol("scienceqa@miniature")
    own = diagnose(model, protocol, asked)
    with pytest.raises(UserError, match="for 5 questions, expected 6"):
        diagnose(model, protocol, asked, own.logprobs[:-1])
    with pytest.raises(UserError, match="one tokenizer"):
        diagnose(model, protocol, asked, [logs[:, :-1] for logs in own.logprobs])


def test_preprocessing_is_pils_on_every_machine(model):
    assert type(model.processor.image_processor).__name__ == "CLIPImageProcessorPil"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(checkpoint, tmp_path, name):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    (folder / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        CheckpointModel(folder)


def test_truncated_weights_are_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        CheckpointModel(folder)


def test_a_shard_that_the_index_lists_must_be_there(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00002.safetensors"}}')
    with pytest.raises(UserError, match=r"model-00002\.safetensors is missing"):
        CheckpointModel(folder)


def test_weights_that_lack_a_tensor_are_refused(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "q_proj" in name)
    save_file({k: v for k, v in tensors.items() if k != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks the weights"):
        CheckpointModel(folder)


def pickled(checkpoint, folder, **more):
    """A copy of a checkpoint whose weights are a pickle, as older ones are published."""
    from safetensors.torch import load_file

    shutil.copytree(checkpoint, folder)
    torch.save({**load_file(folder / "model.safetensors"), **more}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_give_the_same_replies(checkpoint, model, tmp_path):
    other = CheckpointModel(pickled(checkpoint, tmp_path / "pickled"), batch_size=4)
    protocol, questions = tasks.protocol("gqa@miniature"), toys.questions("gqa")
    replies = [evaluate("", protocol, questions, model=m, replies_path=tmp_path / "r.jsonl") for m in (model, other)]
    assert replies[0] == replies[1]


class _Code:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_pickle_with_code_in_it_is_never_run(checkpoint, tmp_path, capsys):
    folder = pickled(checkpoint, tmp_path / "evil", x=_Code())
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle with code in it, which is never run"):
        CheckpointModel(folder)
    assert "never run" not in capsys.readouterr().out


def test_a_pickle_that_is_cut_off_is_named(checkpoint, tmp_path):
    file = pickled(checkpoint, tmp_path / "cut") / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"pytorch_model\.bin is truncated or damaged"):
        CheckpointModel(file.parent)


def test_a_half_fetched_safetensors_index_is_not_made_up_for_by_a_pickle(checkpoint, tmp_path):
    folder = pickled(checkpoint, tmp_path / "both")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00002.safetensors"}}')
    with pytest.raises(UserError, match=r"model-00002\.safetensors is missing"):
        CheckpointModel(folder)


def test_damaged_weights_do_not_pass_as_predictions(checkpoint, tmp_path, asked):
    broken = CheckpointModel(checkpoint)
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="predicts NaN"):
        diagnose(broken, tasks.protocol("scienceqa@miniature"), asked)


class _Half:
    """One of two processes: every second batch is its own; what the other found comes from a shared book."""

    def __init__(self, rank, book):
        self.rank, self.book, self.seen = rank, book, []

    def mine(self, number):
        self.seen.append(number)
        return number % 2 == self.rank

    def join(self, found):
        self.book.update(found)
        return self.book


def test_processes_divide_whole_batches_and_find_what_one_finds(checkpoint, model, asked, tmp_path):
    protocol = tasks.protocol("scienceqa@miniature")
    whole = evaluate(checkpoint, protocol, asked, model=model, replies_path=tmp_path / "a.jsonl")
    texts = tasks.prompts(protocol, asked)
    images = [None if q.image is None else asked.images[q.image] for q in asked.questions]
    answers = ["yes", "two dog", "no", "red red red", "a", "b"]
    logs = model.gold_logprobs(texts, images, answers)
    book, logbook, parts = {}, {}, [CheckpointModel(checkpoint, batch_size=4) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.share = _Half(rank, logbook)
        if rank == 0:
            with pytest.raises(KeyError):  # the other's batches are really left to it
                part.gold_logprobs(texts, images, answers)
        else:
            found = part.gold_logprobs(texts, images, answers)
        assert part.share.seen == list(range(len(part.share.seen)))
    assert all(np.array_equal(a, b) for a, b in zip(found, logs, strict=True))
    for rank, part in enumerate(parts):
        part.share = _Half(rank, book)
        if rank == 1:
            assert 0 < len(book) < len(texts)
            assert evaluate(checkpoint, protocol, asked, model=part, replies_path=tmp_path / "b.jsonl") == whole
        else:
            with pytest.raises(KeyError):
                evaluate(checkpoint, protocol, asked, model=part, replies_path=tmp_path / "b.jsonl")


def test_recall_sees_the_processors_outputs_before_the_model_does(checkpoint, asked):
    model = CheckpointModel(checkpoint, batch_size=4)
    own, other = (asked.images[asked.questions[n].image] for n in (0, 1))
    before = model.gold_logprobs(["Is it red"], [own], ["yes"])[0]
    instead = torch.tensor(model.processor.image_processor(other)["pixel_values"][0])
    seen = []

    def exchanged(inputs):
        seen.append(sorted(inputs))
        return {**inputs, "pixel_values": instead[None]}

    model.recall = exchanged
    after = model.gold_logprobs(["Is it red"], [own], ["yes"])[0]
    model.recall = None
    assert seen == [["attention_mask", "input_ids", "pixel_values"]]
    np.testing.assert_array_equal(after, model.gold_logprobs(["Is it red"], [other], ["yes"])[0])
    assert np.abs(before - after).max() > 1e-3
