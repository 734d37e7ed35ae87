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
