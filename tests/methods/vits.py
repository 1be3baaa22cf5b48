"""What the tests of methods on a ViT share: a model with uneven attention, and a batch for it."""

import torch

K = 4


def uneven(method, encoder="test_vit", **changes):
    torch.manual_seed(0)
    model = method(num_classes=K, encoder=encoder, **changes)
    for parameter in model.parameters():  # away from the near-uniform attention of a fresh net
        if parameter.ndim >= 2:
            parameter.data *= 6
    return model


def batch_of(size=(48, 64), count=3):
    image = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))
    return {"image": image, "label": torch.tensor([3, 0, 2])[:count], "index": torch.arange(count)}
