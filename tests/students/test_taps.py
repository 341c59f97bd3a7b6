"""What both models show: against transformers' own attention, by hand, packed against alone, blind against seeing."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from tap_toys import batch_of, own_columns, token_batch

from harness.base import UserError
from students import taps
from students.blind import Blind
from students.data.pack import collate, encode, groups
from students.data.samples import TrainingSet
from students.energies.align_kd import Energy as AlignKD
from students.energies.align_kd import focus
from students.energies.fd import Energy as FD
from students.energies.llava_kd import Energy as LlavaKD
from students.models._attention import first_attention
from students.models.llava import LlavaAdapter
from students.shape import LlavaShape
from students.tokens import build_tokenizer
from students.vision.pictures import pixel_table

N_V, V_SIDE = 4, 8
SHAPE = {"layers": 2, "vision_hidden": 16, "vision_layers": 1, "vision_heads": 2, "image": V_SIDE, "patch": 4}
ALL = taps.NAMES
WORDS = ("red", "blue", "green", "dark red", "what colour is 0123456789")


@pytest.fixture(scope="module")
def pair_of_models(tmp_path_factory):
    """A student and a teacher, two layers each, with attention far from uniform."""
    where = tmp_path_factory.mktemp("taps")
    tokenizer = build_tokenizer(WORDS)
    for name, hidden, heads, seed in (("student", 16, 2, 0), ("teacher", 32, 4, 1), ("twin", 16, 2, 5)):
        shape = LlavaShape(hidden=hidden, heads=heads, intermediate=2 * hidden, initializer_range=0.3, **SHAPE)
        LlavaAdapter.build(shape, tokenizer, seed).save(where / name)
    return where


@pytest.fixture(scope="module")
def student(pair_of_models):
    return LlavaAdapter.load(pair_of_models / "student")


@pytest.fixture(scope="module")
def made(student, data):
    """Tokens, pixels and packed rows of the twelve questions (the last three have no image)."""
    encoded = encode(data.samples, student.processor)
    return encoded, pixel_table(student, data), groups(encoded, 3)


@pytest.fixture(scope="module")
def teacher(pair_of_models, data):
    return taps.LiveTeacher(pair_of_models / "teacher", data, "cpu")


@pytest.fixture(scope="module")
def eager(pair_of_models):
    """The student's checkpoint in transformers' own class with eager attention."""
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(
        pair_of_models / "student", attn_implementation="eager", dtype=torch.float32
    ).eval()


# ---- the student -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [frozenset(), ALL, {"vision"}, {"attention"}])
def test_observing_changes_no_state(student, made, wanted):
    batch = batch_of(made)
    hidden, seen = student.observe(batch, frozenset(wanted))
    assert torch.equal(hidden, student.hidden(batch))
    assert set(seen) - {"attention_mask"} == wanted


def test_vision_is_tower_and_projector_by_hand(student, made):
    batch = batch_of(made)
    features = student.tower(batch.pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]  # without CLS
    expected = student.projector(features)
    assert expected.shape == (len(batch.pixel_values), N_V, student.tap_width("vision"))
    torch.testing.assert_close(student.observe(batch, {"vision"})[1]["vision"], expected)
    torch.testing.assert_close(student.vision(batch.pixel_values), expected)


def test_vision_logits_are_those_of_the_whole_sequence(student, made):
    batch = batch_of(made)
    everything = student.head(student.hidden(batch))
    image_token = student.processor.tokenizer.convert_tokens_to_ids("<image>")
    places = batch.input_ids == image_token
    expected = everything[places].reshape(len(batch.pixel_values), N_V, -1)
    got = student.observe(batch, {"vision_logits"})[1]["vision_logits"]
    torch.testing.assert_close(got, expected)
    assert got.shape[-1] == student.tap_width("vision_logits")


def test_attention_is_transformers_own_for_a_single_question(student, eager, made):
    for row in made[2]:
        for index in row:
            batch = batch_of(made, [[index]])
            with torch.no_grad():
                whole = eager(
                    input_ids=batch.input_ids, pixel_values=batch.pixel_values, output_attentions=True
                ).attentions[0][0]  # fmt: skip
            got = student.observe(batch, {"attention"})[1]
            assert got["attention"].shape == (1, len(own_columns(batch, 0)[1]), N_V, student.tap_width("attention"))
            assert got["attention_mask"].all()
            if batch.pixel_values is None:
                assert not got["attention"].any()
                continue
            keys = torch.nonzero(batch.input_ids[0] == student.model.config.image_token_id)[:, 0]
            expected = whole[:, own_columns(batch, 0)[1]][:, :, keys].permute(1, 2, 0)
            torch.testing.assert_close(got["attention"][0], expected, rtol=1e-5, atol=1e-6)
            assert expected.std() > 0.01  # not uniform


def test_packing_changes_no_attention(student, made):
    batch = batch_of(made)
    packed = student.observe(batch, {"attention"})[1]
    assert packed["attention_mask"].sum(1).tolist() == list(batch.text_tokens)
    for k, index in enumerate(batch.indices):
        alone = student.observe(batch_of(made, [[index]]), {"attention"})[1]["attention"][0]
        torch.testing.assert_close(packed["attention"][k, : len(alone)], alone, rtol=1e-5, atol=1e-6)
        assert not packed["attention"][k, len(alone) :].any()


def test_packed_attention_is_the_eager_map_under_the_packed_mask(student, eager, made):
    batch = batch_of(made)
    floor = torch.zeros(batch.attention_mask.shape).masked_fill(~batch.attention_mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        whole = eager(
            input_ids=batch.input_ids, pixel_values=batch.pixel_values, attention_mask=floor, output_attentions=True,
            position_ids=batch.position_ids,
        ).attentions[0]  # fmt: skip
    got = student.observe(batch, {"attention"})[1]["attention"]
    for k, has in enumerate(batch.image >= 0):
        row, columns = own_columns(batch, k)
        keys = torch.nonzero(batch.input_ids[row] == student.model.config.image_token_id)[:, 0]
        if has:
            expected = whole[row][:, columns][:, :, keys].permute(1, 2, 0)
            torch.testing.assert_close(got[k, : len(columns)], expected, rtol=1e-5, atol=1e-6)


def test_attention_of_grouped_queries_too(made):
    """Two query heads on each key head, as in larger Llamas."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    language = LlamaModel._from_config(config, attn_implementation="eager").eval()
    batch = batch_of(made, made[2][:1])
    embeds = torch.randn(*batch.input_ids.shape, 16)
    keys = torch.arange(1, 1 + N_V).expand(1, -1)
    floor = torch.zeros(batch.attention_mask.shape).masked_fill(~batch.attention_mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        whole = language(
            inputs_embeds=embeds, attention_mask=floor, position_ids=batch.position_ids, output_attentions=True
        ).attentions[0]
        got, _ = first_attention(language, embeds, batch, keys)
    for k in range(len(batch.indices)):
        _, columns = own_columns(batch, k)
        torch.testing.assert_close(got[k, : len(columns)], whole[0][:, columns][:, :, 1 : 1 + N_V].permute(1, 2, 0))


def test_the_models_attention_stays_fast(student, made):
    student.observe(batch_of(made), ALL)
    assert student.model.config.text_config._attn_implementation == "sdpa"


def test_what_the_teacher_looks_at_most_is_an_image_token(teacher, made):
    """Numbers of `focus` count vision tokens: the released code subtracts an offset for what stands before the image."""
    encoded, _, rows = made
    row = next(r for r in rows if encoded.images[r[0]] is not None)[:1]
    seen = teacher.observe([row], {"attention"})
    for planted in range(N_V):
        attention = torch.full_like(seen["attention"], 0.01)
        attention[:, :, planted] = 0.5
        (found,) = focus(attention, seen["attention_mask"], 1)[0].tolist()
        batch = collate(encoded, [row], made[1])
        columns = torch.nonzero(batch.input_ids[0] == teacher.adapter.model.config.image_token_id)[:, 0]
        assert columns[found] == columns[0] + planted
        assert batch.input_ids[0, columns[0] - 1] != teacher.adapter.model.config.image_token_id


# ---- the teacher -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [ALL, {"vision"}, {"vision_logits"}, {"attention"}, {"vision", "attention"}])
def test_the_short_ways_give_what_a_whole_pass_gives(teacher, made, wanted):
    encoded, pixels, rows = made
    assert [e.tolist() for e in teacher.encoded.prompts] == [e.tolist() for e in encoded.prompts]
    for some in (rows, rows[::-1], rows[:2] + rows[:1], [r for r in rows if encoded.images[r[0]] is None]):
        _, expected = teacher.adapter.observe(collate(encoded, some, pixels), wanted)
        got = teacher.observe(some, wanted)
        assert set(wanted) <= set(got)
        for name, values in expected.items():
            torch.testing.assert_close(got[name], values, rtol=1e-5, atol=1e-5)
            assert not got[name].requires_grad
        assert got["group"].tolist() == collate(encoded, some, pixels).image.tolist()
        assert "source" not in got


def test_the_teacher_is_frozen_and_runs_no_more_than_it_must(teacher, made):
    assert not any(p.requires_grad for p in teacher.adapter.model.parameters())
    assert not teacher.adapter.model.training
    language = teacher.adapter.model.model.language_model
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in (("all", language), ("layer", language.layers[0]), ("second", language.layers[1]))
    ]
    teacher.observe(made[2], {"vision", "attention"})
    assert ran == []
    teacher.observe(made[2], {"vision_logits"})
    assert ran.count("all") == 1
    for hook in hooks:
        hook.remove()


def test_blind_samples_are_shown_the_mean_image_even_inside_a_row(pair_of_models, student, made, make_data):
    blind = (0, 4, 7)  # samples 0, 3, 6 show the first image, 1, 4, 7 the second
    data = make_data(blind)
    teacher = taps.LiveTeacher(pair_of_models / "teacher", data, "cpu")
    encoded, pixels, _ = made
    mean = torch.stack([pixels[key] for key in sorted(pixels)]).mean(0)
    rows = [[3, 0, 6, 3], [9], [4, 7], [2], [6, 0]]  # the first is cut so that going back is another permutation than going
    batch = collate(encoded, rows, pixels)
    mine = student.observe(batch, ALL)[1]
    paired = taps.pair(mine, teacher.observe(rows, ALL), batch)
    for k, index in enumerate(batch.indices):
        if encoded.images[index] is None:
            assert all(tap.group[k] == -1 for tap in paired.values())
            continue
        table = dict.fromkeys(pixels, mean) if index in blind else pixels
        _, alone = teacher.adapter.observe(collate(encoded, [[index]], table), ALL)
        _, own = student.observe(collate(encoded, [[index]], pixels), ALL)
        for name, tap in paired.items():
            n = batch.text_tokens[k] if name == "attention" else N_V
            torch.testing.assert_close(tap.teacher[tap.group[k]][:n], alone[name][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(tap.student[tap.group[k]][:n], own[name][0], rtol=1e-4, atol=1e-5)
    assert paired["vision"].teacher.shape[0] == 6  # 3, 6, 3 | 0, then 4, 7, then 2, then 6 | 0


def test_nobody_blind_nothing_added(student, made, data):
    encoded, pixels, _ = made
    same, table = taps.shown(data, encoded, pixels)
    assert same is encoded
    assert table.keys() == pixels.keys()


def test_mean_image_is_over_the_training_images(made, make_data):
    encoded, pixels, _ = made
    data = make_data((0, 9))  # 9 has no image to hide
    changed, table = taps.shown(data, encoded, pixels)
    np.testing.assert_allclose(table[taps.MEAN_IMAGE], np.mean([pixels[k].numpy() for k in pixels], 0), atol=1e-6)
    assert changed.images == (taps.MEAN_IMAGE, *encoded.images[1:])
    assert taps.MEAN_IMAGE not in pixels


# ---- energies on real taps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fd", "align_kd", "llava_kd"])
def test_terms_are_active(student, teacher, made, name):
    """The released code trains no map, and its attention and focused terms never run."""
    batch = batch_of(made)
    widths = taps.widths(ALL, student, teacher.adapter)
    assert widths == {"vision": (16, 32), "attention": (2, 4), "vision_logits": (student.vocabulary_size,) * 2}
    energy = {"fd": FD, "align_kd": lambda w: AlignKD(w, k=2), "llava_kd": lambda w: LlavaKD()}[name](widths)
    hidden, mine = student.observe(batch, energy.needs)
    tokens = token_batch(student, batch, hidden, taps.pair(mine, teacher.observe(made[2], energy.needs), batch))
    terms = energy.terms(tokens) if name != "fd" else {"fd": energy(tokens)}
    projector = student.projector.linear_1.weight
    first = student.model.model.language_model.layers[0].self_attn.q_proj.weight
    reaches = {"attention": (projector, first), "relation": (projector, first), "text": (projector, first)}
    for term, values in terms.items():
        through = reaches.get(term, (projector,))
        for gradient in torch.autograd.grad(values.sum(), through, retain_graph=True):
            assert gradient.abs().max() > 0, term
    for term, parameter in (("attention", "heads"), ("focused", "project"), ("vision", "project"), ("fd", "project")):
        if term in terms and hasattr(energy, parameter):
            (gradient,) = torch.autograd.grad(terms[term].sum(), getattr(energy, parameter).weight, retain_graph=True)
            assert gradient.abs().max() > 0, term
    assert all(p.grad is None for p in teacher.adapter.model.parameters())


def test_a_student_that_is_its_teacher_costs_nothing(pair_of_models, student, made, data):
    itself = taps.LiveTeacher(pair_of_models / "student", data, "cpu")
    batch = batch_of(made)
    hidden, mine = student.observe(batch, ALL)
    tokens = token_batch(student, batch, hidden, taps.pair(mine, itself.observe(made[2], ALL), batch))
    tokens.teacher_logits = tokens.student_logits.detach()
    widths = taps.widths(ALL, student, itself.adapter)
    for energy in (FD(widths), AlignKD(widths, k=2), LlavaKD()):
        assert energy(tokens).abs().max() < 1e-6
    other = taps.LiveTeacher(pair_of_models / "twin", data, "cpu")
    tokens.taps = taps.pair(mine, other.observe(made[2], ALL), batch)
    assert (FD(widths)(tokens)[batch.image >= 0] > 1e-3).all()


def test_energies_leave_the_checkpoint_alone(student, made, teacher, tmp_path, pair_of_models):
    batch = batch_of(made)
    energy = AlignKD(taps.widths(ALL, student, teacher.adapter), k=2)
    hidden, mine = student.observe(batch, energy.needs)
    energy(token_batch(student, batch, hidden, taps.pair(mine, teacher.observe(made[2], energy.needs), batch))).sum().backward()
    student.save(tmp_path / "saved")
    student.model.zero_grad(set_to_none=True)
    from safetensors import safe_open

    def tensors(folder):
        with safe_open(folder / "model.safetensors", "pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 - no mapping

    assert tensors(tmp_path / "saved") == tensors(pair_of_models / "student")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {path.name for path in (pair_of_models / "student").iterdir()}


# ---- bad input -------------------------------------------------------------------------------------------------------------


def test_an_unknown_tap_is_named_with_its_neighbour(student, teacher, made):
    batch = batch_of(made)
    for call in (
        lambda: student.observe(batch, {"vison"}),
        lambda: student.tap_width("vison"),
        lambda: teacher.observe(made[2], {"vison"}),
        lambda: taps.widths({"vison"}, student, teacher.adapter),
    ):
        with pytest.raises(UserError, match=r"unknown tap 'vison'. Did you mean 'vision'"):
            call()


def test_models_that_cut_images_differently_are_refused(student, made, tmp_path, data):
    finer = LlavaShape(hidden=16, heads=2, intermediate=32, **{**SHAPE, "patch": 2})
    LlavaAdapter.build(finer, build_tokenizer(WORDS), 0).save(tmp_path)
    other = taps.LiveTeacher(tmp_path, data, "cpu")
    with pytest.raises(UserError, match="takes 4 tokens for the student and 16 for the teacher"):
        taps.widths({"vision"}, student, other.adapter)
    batch = batch_of(made)
    for name in ALL:
        with pytest.raises(UserError, match="takes 4 tokens for the student and 16 for the teacher"):
            taps.pair(student.observe(batch, {name})[1], other.observe(made[2], {name}), batch)


def test_another_chat_template_is_refused_where_text_is_compared(student, made, pair_of_models, tmp_path, data):
    folder = shutil.copytree(pair_of_models / "teacher", tmp_path / "teacher")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<answer>", "red <answer>"))
    other = taps.LiveTeacher(folder, data, "cpu")
    batch = batch_of(made)
    mine = student.observe(batch, ALL)[1]
    n = batch.text_tokens[0]
    with pytest.raises(UserError, match=f"sample number {batch.indices[0]} has {n} tokens of text for the student and {n + 1}"):
        taps.pair(mine, other.observe(made[2], ALL), batch)
    without = {name: tap for name, tap in mine.items() if not name.startswith("attention")}
    assert taps.pair(without, other.observe(made[2], {"vision", "vision_logits"}), batch).keys() == {"vision", "vision_logits"}


def test_a_mixture_of_answers_has_no_features(pair_of_models, data, make_data):
    with pytest.raises(UserError, match="of blind_teacher 'mean_image' alone, and this signal has 'shuffled over 6 images"):
        taps.LiveTeacher(pair_of_models / "teacher", make_data((1,)), "cpu", str(Blind("shuffled")))
    taps.LiveTeacher(pair_of_models / "teacher", data, "cpu", str(Blind("shuffled")))  # nobody is blind


def test_an_attention_that_is_not_llamas_is_refused(student, made):
    batch = batch_of(made)
    layer = student.model.model.language_model.layers[0]
    own = layer.self_attn
    layer.self_attn = torch.nn.Identity()
    try:
        with pytest.raises(UserError, match=r"'attention' knows LlamaAttention and Qwen2Attention, and .* has Identity"):
            student.attention(batch, student.vision(batch.pixel_values))
    finally:
        layer.self_attn = own


def test_text_only_data_needs_no_tower(pair_of_models, student, made, data):
    only = TrainingSet(tuple(dataclasses.replace(s, image=None) for s in data), {})
    teacher = taps.LiveTeacher(pair_of_models / "teacher", only, "cpu")
    encoded = encode(only.samples, student.processor)
    rows = groups(encoded, 3)
    batch = collate(encoded, rows, {})
    hidden, mine = student.observe(batch, ALL)
    paired = taps.pair(mine, teacher.observe(rows, ALL), batch)
    assert paired["vision"].student.shape == (0, N_V, 16)
    assert all((tap.group == -1).all() for tap in paired.values())
    widths = taps.widths(ALL, student, teacher.adapter)
    for energy in (FD(widths), AlignKD(widths, k=2), LlavaKD()):
        energy(token_batch(student, batch, hidden, paired)).sum().backward(retain_graph=True)
    student.model.zero_grad(set_to_none=True)
