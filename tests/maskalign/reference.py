"""MaskAlign's loss written out with loops over every image, token, teacher layer and student layer."""

import torch


def alignment_loss(student_layers, teacher_layers, keep, weights, matrix, adapt, form):
    """All layers, the ignored ones too: `weights` (T), `matrix` (T S), `adapt(layer, x)` for one token x."""
    batch = len(keep)
    total = torch.zeros(())
    for t, weight in enumerate(weights):
        errors = []
        for b in range(batch):
            for place in range(1 + keep.shape[1]):
                target = teacher_layers[t][b, 0 if place == 0 else 1 + keep[b, place - 1]]
                target = (target - target.mean()) / (target.var(unbiased=False) + 1e-5).sqrt()
                if form == "mix_then_adapt":
                    mixed = sum(matrix[t, s] * layer[b, place] for s, layer in enumerate(student_layers))
                    prediction = adapt(t, mixed)
                else:
                    prediction = sum(matrix[t, s] * adapt(s, layer[b, place]) for s, layer in enumerate(student_layers))
                for difference in (prediction - target).abs():
                    errors.append(difference**2 / 2 if difference < 1 else difference - 0.5)
        total = total + weight * 2 * torch.stack(errors).mean()
    return total
