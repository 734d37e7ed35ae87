"""What would fail only after training has begun is found before, and said in one line with its key."""

import pytest
import tiny
import torch
from states import NAME, assert_equal_states, body_of, own

from raybasin.errors import UserError
from raybasin.jobs import prepare
from raybasin.sweep import specs
from raybasin.training import model_checks, models


def test_a_factory_is_called_with_the_number_of_classes_and_its_arguments():
    model = own("group_norm", args={"width": 4}, head=("fc",))
    net = model_checks.check(model, 5, 32)
    assert net.fc.weight.shape == (5, 4 * 16)
    one, same, other = (models.build(model, 5, seed).state_dict() for seed in (1, 1, 2))
    assert_equal_states(one, same)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])
    fresh = models.with_new_head(model, one, 3, seed=9)
    assert fresh.fc.weight.shape == (3, 4 * 16)
    assert_equal_states(body_of(fresh, model), {k: v for k, v in one.items() if not k.startswith("fc.")})


@pytest.mark.parametrize("function", ["with_classifier", "with_config"])
def test_a_head_that_the_network_names_itself_is_found(function):
    model = own(function)
    assert models.head_names(model_checks.check(model, 5, 32), model) == ("fc",)


def test_a_head_of_two_modules(tmp_path):
    model = own("two_heads", head=("fc", "other"))
    net = model_checks.check(model, 5, 32)
    assert not any(key.startswith(("fc.", "other.")) for key in body_of(net, model))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (own("nothing"), "model.factory: nets has no 'nothing'; known are "),
        (own("no_nrm"), "model.factory: nets has no 'no_nrm'; did you mean 'no_norm'?"),
        (own("a_number"), "model.factory: nets:a_number is a int, not a function"),
        (own("raises"), "model.factory: nets:raises(num_classes=5) fails (KeyError: 'no such thing')"),
        (own("no_module"), "model.factory: nets:no_module(num_classes=5) returns a str, not a torch.nn.Module"),
        (own("no_norm", args={"wdth": 4}), "model.factory: nets:no_norm(num_classes=5, wdth=4) fails (TypeError: "),
        (own("pairs"), "model.factory: pairs gives a tuple, not a tensor of logits"),
        (own("no_weights"), "model.factory: no_weights has no parameters to train"),
        (own("always_seven", head=("fc",)), "model.factory: always_seven gives an output of 2x7 for 2 images, not 2x5"),
        (own("no_norm"), "model.head: no_norm does not say which module is its head; name it; its Linear layers are f"),
        (own("no_norm", head=("head",)), "model.head: no_norm has no module 'head'; its Linear layers are fc"),
        (own("no_norm", head=("norm",)), "model.head: 'norm' of no_norm has no weights; its Linear layers are fc"),
        (own("no_norm", head=("first",)), "model.head: the shape of fc.weight follows the number of classes, but it is "
         "not in the head (first); name its module in model.head too"),
        (own("two_heads", head=("fc",)), "model.head: the shape of other.weight follows the number of classes"),
        (specs.Architecture(name="x", factory="no_such_package.networks:x"),
         "model.factory: no_such_package.networks cannot be imported (ModuleNotFoundError: No module named "
         "'no_such_package'); it must lie in the current folder or be installed"),
        (specs.Architecture(name=NAME, args={"wdth": 3}), "model.args: timm cannot build test_resnet so (TypeError: "),
        (specs.Architecture(name="vit_tiny_patch16_224"),
         "model.name: vit_tiny_patch16_224 does not take images of 32 px (AssertionError: "),
        (specs.Architecture(name=NAME, head=("fcc",)), "model.head: test_resnet has no module 'fcc'; its Linear layers "
         "are fc"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_network_that_cannot_be_swept_is_named_with_its_key(model, text):
    with pytest.raises(UserError) as caught:
        models.find(model)
        model_checks.check(model, 5, 32)
    said = str(caught.value)
    assert said.startswith(text) and "\n" not in said


def refusal(function):
    with pytest.raises(UserError) as caught:
        model_checks.check(own(function), 5, 32)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("model.factory: ")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("pairs_in_training", "pairs_in_training gives a tuple in training, not a tensor of logits; turn its auxiliary "
         "classifiers off with model.args: {aux_logits: false}"),
        ("keys_in_training", "keys_in_training gives a dict in training, not a tensor of logits"),
        ("loss_in_training", "loss_in_training gives an output of a scalar in training for 2 images, not 2x5 "),
        ("needs_labels_in_training", "needs_labels_in_training fails in training on two images (TypeError: "),
        ("detached", "no weight of detached gets a gradient in training; its output may be detached"),
        ("integers_out", "integers_out gives an output of torch.int64, not real logits"),
        ("lazy", "the state of lazy holds fc.weight, which has no shape until the network sees an image (a lazy "
         "layer); give the layer its sizes"),
        ("extra_state", "the state of extra_state holds _extra_state, which is not a tensor"),
        ("tensor_as_extra_state", "the state of tensor_as_extra_state holds _extra_state, which is an extra state of "),
        ("complex_weights", "the state of complex_weights holds phase, which is complex; weights are averaged, and "
         "measured, as real numbers"),
        ("sparse_buffer", "the state of sparse_buffer holds adjacency, which is sparse; weights must be dense "),
        ("doubles", "doubles does not take images of 32 px (RuntimeError: Input type (float) and bias type (double) "
         "should be the same); its weights are torch.float64, and images are torch.float32"),
        ("random_width", "random_width is another network each time it is built (extra.weight differs)"),
        ("random_constant", "random_constant gives other logits when it is built again and given the same state; "),
        ("random_in_evaluation", "random_in_evaluation gives other logits when it is built again and given the same "),
        ("scripted", "nets:scripted(num_classes=5) returns a TorchScript module; return what it was made from"),
        ("leaves", "nets:leaves(num_classes=5) fails (SystemExit: 3)"),
        ("leaves_when_it_sees_images", "leaves_when_it_sees_images does not take images of 32 px (SystemExit: 3); "),
        *((name, f"there is not enough memory to try {name} on two images, which is done on the processor before ")
          for name in ("out_of_memory", "out_of_memory_in_training", "asks_for_too_much")),
    ],
)  # fmt: skip
def test_what_would_fail_only_after_training_has_begun_is_found_before(function, text):
    assert refusal(function).startswith(text)


@pytest.mark.parametrize("function", ["tied", "frozen_body", "odd_buffers", "own_buffer", "part_called_module"])
def test_networks_that_are_odd_and_right_pass(function):
    model_checks.check(own(function), 5, 32)


def test_the_check_leaves_the_weights_statistics_and_generator_as_they_were():
    model = own("batch_norm", head=("fc",))
    before = torch.get_rng_state()
    net = model_checks.check(model, 5, 32)
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal_states(net.state_dict(), models.build(model, 5, seed=0).state_dict())
    assert net.training and all(parameter.grad is None for parameter in net.parameters())


def test_an_interruption_of_the_check_says_nothing_of_the_network():
    with pytest.raises(KeyboardInterrupt):
        model_checks.check(own("interrupted"), 5, 32)


def test_torchvisions_googlenet_is_refused_with_the_argument_that_mends_it():
    def googlenet(**args):
        return specs.Architecture(
            name="googlenet", factory="torchvision.models:googlenet", head=("fc",), args={"init_weights": False, **args}
        )

    with pytest.raises(UserError, match="gives a GoogLeNetOutputs in training, .* model.args: {aux_logits: false}"):
        model_checks._check_training(models.build(googlenet(), 5, 0), googlenet(), 5, torch.zeros(2, 3, 64, 64))
    model_checks.check(googlenet(aux_logits=False), 5, 64)


def test_a_network_is_looked_at_before_the_weights_that_are_to_fit_it(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    spec = tiny.spec(model={"factory": "nets:lazy", "pretrained": [str(tmp_path / "x.pth")]})
    with pytest.raises(UserError, match=r"model\.factory: the state of lazy holds fc\.weight"):
        prepare.prepare(spec)


def test_other_sizes_are_reached_by_arguments_of_timm():
    model = specs.Architecture(name="vit_tiny_patch16_224", args={"img_size": 32})
    state = model_checks.check(model, 5, 32).state_dict()
    assert state["pos_embed"].shape[1] == (32 // 16) ** 2 + 1  # patches of 16 pixels and the class token
