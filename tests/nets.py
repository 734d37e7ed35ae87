"""Networks of a user's own, for tests of `model.factory`: called with the number of classes, as a sweep calls them."""

import torch
from torch import nn


class Small(nn.Module):
    """Two convolutions with any kind of norm between them, or none; `view` needs plain memory order."""

    def __init__(self, num_classes, norm, width, side=32):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.norm = norm(width)
        self.second = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.fc = nn.Linear(width * (side // 8) ** 2, num_classes)

    def forward(self, images_BCHW):
        features = torch.relu(self.second(torch.relu(self.norm(self.first(images_BCHW)))))
        return self.fc(features.view(len(features), -1))


def group_norm(num_classes, width=8):
    return Small(num_classes, lambda channels: nn.GroupNorm(2, channels), width)


def no_norm(num_classes, width=8):
    return Small(num_classes, lambda channels: nn.Identity(), width)


def batch_norm(num_classes, width=8):
    return Small(num_classes, nn.BatchNorm2d, width)


def with_classifier(num_classes):
    """It says itself what its head is, as timm's models do."""
    net = group_norm(num_classes)
    net.get_classifier = lambda: net.fc
    return net


def with_config(num_classes):
    net = group_norm(num_classes)
    net.pretrained_cfg = {"classifier": "fc"}
    return net


def always_seven(num_classes):
    return group_norm(7)


def two_heads(num_classes):
    class TwoHeads(Small):
        def __init__(self):
            super().__init__(num_classes, nn.Identity, 4)
            self.other = nn.Linear(64, num_classes)

        def forward(self, images_BCHW):
            features = torch.relu(self.second(torch.relu(self.first(images_BCHW)))).flatten(1)
            return self.fc(features) + self.other(features)

    return TwoHeads()


class Named(Small):
    """It says itself what its head is; a base for what is odd in one respect."""

    def __init__(self, num_classes):
        super().__init__(num_classes, lambda channels: nn.Identity(), 4)

    def get_classifier(self):
        return self.fc


class tied(Named):
    """Two of its layers are one tensor."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.twin = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.twin.weight = self.first.weight


class part_called_module(nn.Module):
    """Its body is called as DataParallel calls what it wraps."""

    def __init__(self, num_classes):
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images_BCHW):
        return self.fc(self.module(images_BCHW))

    def get_classifier(self):
        return self.fc


class weight_normed(Named):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.utils.parametrizations.weight_norm(self.first)


class copy_in_head(Named):
    """What is called the head holds everything that the body has."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.aux = Named(num_classes)

    def forward(self, images_BCHW):
        return super().forward(images_BCHW) + self.aux(images_BCHW)


class own_buffer(Named):
    """It computes an index that is in no file."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("index", torch.arange(4), persistent=False)


class pairs_in_training(Named):
    """As networks with auxiliary classifiers do."""

    aux_logits = True

    def forward(self, images_BCHW):
        logits_BC = super().forward(images_BCHW)
        return (logits_BC, logits_BC) if self.training else logits_BC


class keys_in_training(Named):
    def forward(self, images_BCHW):
        logits_BC = super().forward(images_BCHW)
        return {"logits": logits_BC} if self.training else logits_BC


class loss_in_training(Named):
    def forward(self, images_BCHW):
        logits_BC = super().forward(images_BCHW)
        return logits_BC.square().mean() if self.training else logits_BC


class needs_labels_in_training(Named):
    def forward(self, images_BCHW, labels_B=None):
        if self.training:
            return nn.functional.cross_entropy(super().forward(images_BCHW), labels_B)
        return super().forward(images_BCHW)


class detached(Named):
    def forward(self, images_BCHW):
        return super().forward(images_BCHW).detach()


class frozen_body(Named):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.first.requires_grad_(False)
        self.second.requires_grad_(False)


class integers_out(Named):
    def forward(self, images_BCHW):
        return super().forward(images_BCHW).long()


class lazy(Named):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.fc = nn.LazyLinear(num_classes)


class extra_state(Named):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class tensor_as_extra_state(extra_state):
    def get_extra_state(self):
        return torch.ones(1)


class complex_weights(Named):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.phase = nn.Parameter(torch.ones(64, dtype=torch.complex64))

    def forward(self, images_BCHW):
        features = torch.relu(self.second(torch.relu(self.first(images_BCHW)))).flatten(1)
        return self.fc((features * self.phase).real)


class odd_buffers(Named):
    """What is no weight: constants, counters and masks."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.count = nn.Parameter(torch.arange(3), requires_grad=False)


class sparse_buffer(Named):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("adjacency", torch.eye(2).to_sparse())


class doubles(Named):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.double()


class random_width(Named):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.extra = nn.Linear(4, int(torch.randint(4, 10_000, ())))


class random_constant(Named):
    """Drawn when it is built, and not in its state."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scale = torch.randn(64)

    def forward(self, images_BCHW):
        features = torch.relu(self.second(torch.relu(self.first(images_BCHW)))).flatten(1)
        return self.fc(features * self.scale)


class random_in_evaluation(Named):
    def forward(self, images_BCHW):
        return nn.functional.dropout(super().forward(images_BCHW))


class out_of_memory(Named):
    def forward(self, images_BCHW):
        raise torch.OutOfMemoryError("CUDA out of memory")


class out_of_memory_in_training(Named):
    def forward(self, images_BCHW):
        if self.training:
            raise MemoryError
        return super().forward(images_BCHW)


class asks_for_too_much(Named):
    def forward(self, images_BCHW):
        torch.empty(10**15)


class interrupted(Named):
    def forward(self, images_BCHW):
        raise KeyboardInterrupt


class leaves_when_it_sees_images(Named):
    def forward(self, images_BCHW):
        raise SystemExit(3)


def scripted(num_classes):
    return torch.jit.script(nn.Linear(3, num_classes))


def leaves(num_classes):
    raise SystemExit(3)


def no_module(num_classes):
    return "a network"


def pairs(num_classes):
    class Pairs(Small):
        def forward(self, images_BCHW):
            return super().forward(images_BCHW), 0

    return Pairs(num_classes, nn.Identity, 4)


def no_weights(num_classes):
    return nn.Flatten()


def raises(num_classes):
    raise KeyError("no such thing")


a_number = 3
